"""The alert rules and the dashboard in ``deploy/``: read by Prometheus itself, and about metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.metrics import METRICS
from launch.server.metrics import Metrics
from launch.store import RunStore
from tests.services import need_program

RULES = Path("deploy/prometheus/alerts.yml")
DASHBOARD = Path("deploy/grafana/dashboard.json")


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"].replace("$queue", ".*") for panel in panels for target in panel["targets"]]


def rule_queries() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def promtool(*words: str | Path) -> None:
    done = subprocess.run([need_program("promtool"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def as_rules(queries: Iterable[str]) -> dict[str, Any]:
    rules = [{"record": f"launch:query:{n}", "expr": query} for n, query in enumerate(queries)]
    return {"groups": [{"name": "dashboard", "rules": rules}]}


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    """The rules, and what the dashboard asks, are PromQL."""
    asked = tmp_path / "dashboard.yml"
    asked.write_text(yaml.safe_dump(as_rules(dashboard_queries())))

    promtool("check", "rules", RULES, asked)


@pytest.mark.redis
def test_queries_are_about_metrics_that_there_are(store: RunStore) -> None:
    """No query names a metric that the server does not have: it would be silent for ever."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    there = {family.name + suffix for family in Metrics(store).collect() for suffix in suffixes[family.type]}
    assert len(there) > len(METRICS)

    for query in (*dashboard_queries(), *rule_queries()):
        assert set(re.findall(r"\blaunch_\w+", query)) <= there, query


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


CASES = {
    "LaunchQueueWithoutAgent": (
        [
            series('launch_queue_runs{queue="q",kind="waiting"}', "3x10"),
            series('launch_queue_agents{queue="q"}', "0x10"),
        ],
        [
            series('launch_queue_runs{queue="q",kind="waiting"}', "3x10"),
            series('launch_queue_agents{queue="q"}', "1x10"),
        ],
    ),
    "LaunchQueueStandsStill": (
        [
            series('launch_queue_head_age_seconds{queue="q"}', "30000x10"),
            series('launch_queue_paused{queue="q"}', "0x10"),
        ],
        [
            series('launch_queue_head_age_seconds{queue="q"}', "30000x10"),
            series('launch_queue_paused{queue="q"}', "1x10"),
        ],
    ),
    "LaunchRunsCrash": (
        [series('launch_runs_ended_total{queue="q",state="failed",cause="exit_code"}', "0+2x10")],
        [
            series('launch_runs_ended_total{queue="q",state="failed",cause="exit_code"}', "0+1x10"),
            series('launch_runs_ended_total{queue="q",state="finished",cause="exit_code"}', "0+5x10"),
        ],
    ),
    "LaunchHostsLost": (
        [series('launch_runs_ended_total{queue="q",state="crashed",cause="host_lost"}', "0 0 0 1x7")],
        [series('launch_runs_ended_total{queue="q",state="crashed",cause="oom"}', "0 0 0 1x7")],
    ),
    "LaunchTargetAway": (
        [series('launch_agent_problems{agent="a-1",name="a",host="h"}', "1x10")],
        [series('launch_agent_problems{agent="a-1",name="a",host="h"}', "0x10")],
    ),
    "LaunchRedisFull": (
        [series("launch_redis_used_bytes", "90x10"), series("launch_redis_limit_bytes", "100x10")],
        [series("launch_redis_used_bytes", "90x10"), series("launch_redis_limit_bytes", "0x10")],
    ),
    "LaunchServerDown": (
        [series('up{job="openlaunch",instance="server:8765"}', "0x10")],
        [series('up{job="openlaunch",instance="server:8765"}', "1x10")],
    ),
}
"""``{alert: (series for which it fires, series for which it does not)}``, a sample a minute."""


def test_every_alert_has_its_cases() -> None:
    """An alert that nothing tries might never fire."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == set(CASES)


def counted(query: str, expected: int) -> dict[str, Any]:
    return {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": expected}] * bool(expected)}


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """Each alert fires for what it is about, and not for what looks like it."""
    tests = []
    for alert, (bad, good) in CASES.items():
        firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        for samples, expected in ((bad, 1), (good, 0)):
            tests.append({"interval": "1m", "input_series": samples, "promql_expr_test": [counted(firing, expected)]})
    file = tmp_path / "cases.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES.absolute())], "evaluation_interval": "1m", "tests": tests})
    )

    promtool("test", "rules", file)
