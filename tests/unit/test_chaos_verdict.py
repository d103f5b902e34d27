"""The verdict: every broken promise is seen, and a clean world has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from launch.chaos.ledger import Entry
from launch.chaos.plan import ChaosOptions
from launch.chaos.play import Outcome
from launch.chaos.report import PROMISES, as_rows
from launch.chaos.verdict import Breach, Evidence, judge, running_at, waiting_spans
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, Priority, RetryPolicy, RunRecord, RunState
from launch.records import RunEvent


def a_record(run_id: str, seq: int, **fields: Any) -> RunRecord:
    told = {name: fields.pop(name) for name in ("queue", "priority", "retry") if name in fields}
    spec = LaunchSpec(
        run_id=run_id,
        resource="process",
        job=Job(source=CommandSource(), entrypoint=("true",)),
        **{"queue": "q", "priority": Priority.MEDIUM, **told},
    )
    done = {
        "state": RunState.FINISHED,
        "attempt": 1,
        "created_at": float(seq),
        "cause": Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 0."),
    }
    return RunRecord(spec=spec, seq=seq, **{**done, **fields})


def events(*moves: tuple[float, str, str], attempt_when_queued: int = 0) -> list[RunEvent]:
    return [
        RunEvent(str(number), at, RunState(state), attempt_when_queued if state == "queued" else 1, note)
        for number, (at, state, note) in enumerate(moves)
    ]


def a_life(claimed_at: float, ended_at: float, end: str = "finished") -> list[RunEvent]:
    return events(
        (claimed_at, "building", "claimed by a"), (claimed_at + 0.1, "running", "started"), (ended_at, end, "")
    )


def lines(*words: str) -> list[Entry]:
    """``"start r1 1"`` each."""
    split = [word.split() for word in words]
    return [Entry(what, run, int(attempt), 1, 0.0, number) for number, (what, run, attempt) in enumerate(split)]


def evidence(records: Sequence[RunRecord], lives: dict[str, list[RunEvent]], ledger: list[Entry]) -> Evidence:
    found = {record.id: record for record in records}
    return Evidence(dict.fromkeys(found, "one"), frozenset(), found, lives, ledger, {})


def clean() -> Evidence:
    ledger = lines("start r1 1", "end r1 1", "start r2 1", "end r2 1")
    return evidence(
        [a_record("r1", 1), a_record("r2", 2)], {"r1": a_life(10.0, 12.0), "r2": a_life(11.0, 13.0)}, ledger
    )


def told(breaches: Sequence[Breach]) -> list[tuple[str, str | None]]:
    return [(breach.promise, breach.run_id) for breach in breaches]


def test_a_clean_world_has_no_breach() -> None:
    assert judge(clean()) == []


def test_an_acknowledged_run_without_a_record_is_lost() -> None:
    breaches = judge(replace(clean(), acknowledged={"r1": "one", "r2": "one", "r3": "celery"}))
    assert told(breaches) == [("nothing is lost", "r3")]
    assert "celery" in breaches[0].what


def test_a_finished_run_whose_job_never_ran_is_lost() -> None:
    breaches = judge(replace(clean(), ledger=lines("start r1 1", "end r1 1")))
    assert told(breaches) == [("nothing is lost", "r2")]


def test_an_end_of_another_attempt_does_not_count() -> None:
    records = {**clean().records, "r2": a_record("r2", 2, attempt=2)}
    ledger = lines("start r1 1", "end r1 1", "start r2 1", "end r2 1", "start r2 2")
    breaches = judge(replace(clean(), records=records, ledger=ledger))
    assert told(breaches) == [("nothing is lost", "r2")]
    assert "no end" in breaches[0].what


def test_two_starts_of_one_attempt_are_seen_and_of_two_are_not() -> None:
    doubled = [*clean().ledger, *lines("start r1 1")]
    assert told(judge(replace(clean(), ledger=doubled))) == [("nothing starts twice", "r1")]
    records = {**clean().records, "r1": a_record("r1", 1, attempt=2)}
    ledger = [*clean().ledger, *lines("start r1 2", "end r1 2")]
    assert judge(replace(clean(), records=records, ledger=ledger)) == []


def test_a_start_that_the_record_knows_nothing_of_is_seen() -> None:
    ledger = [*clean().ledger, *lines("start r1 2", "start r9 1")]
    assert told(judge(replace(clean(), ledger=ledger))) == [
        ("nothing starts twice", "r9"),
        ("nothing starts twice", "r1"),
    ]


def test_a_run_that_never_ends_is_seen() -> None:
    records = {**clean().records, "r2": a_record("r2", 2, state=RunState.RUNNING, cause=None)}
    assert told(judge(replace(clean(), records=records))) == [("every run ends", "r2")]


def test_ends_without_a_cause_or_by_nobody_are_seen() -> None:
    stopped = Cause(kind=CauseKind.STOPPED, message="Stopped by x.")
    broken = Cause(kind=CauseKind.INTERNAL, message="KeyError")
    for fields in (
        {"cause": None},
        {"state": RunState.STOPPED, "cause": stopped},
        {"state": RunState.FAILED, "cause": broken},
    ):
        records = {**clean().records, "r2": a_record("r2", 2, **fields)}
        assert told(judge(replace(clean(), records=records))) == [("every end has a cause", "r2")]
    records = {**clean().records, "r2": a_record("r2", 2, state=RunState.STOPPED, cause=stopped)}
    assert judge(replace(clean(), records=records, stopped=frozenset({"r2"}))) == []


def test_a_claim_past_a_waiting_run_is_out_of_order() -> None:
    lives = {"r1": a_life(11.0, 12.0), "r2": a_life(10.0, 13.0)}
    breaches = judge(replace(clean(), events=lives))
    assert told(breaches) == [("runs start in order", "r2")]
    assert "r1 waited before it" in breaches[0].what


def test_a_higher_class_goes_first_and_another_queue_is_another_line() -> None:
    lives = {"r1": a_life(11.0, 12.0), "r2": a_life(10.0, 13.0)}
    higher = {**clean().records, "r2": a_record("r2", 2, priority=Priority.HIGH)}
    assert judge(replace(clean(), events=lives, records=higher)) == []
    elsewhere = {**clean().records, "r2": a_record("r2", 2, queue="other")}
    assert judge(replace(clean(), events=lives, records=elsewhere)) == []


def test_a_run_that_came_back_keeps_its_place() -> None:
    returned = events(
        (10.0, "building", "claimed by a"), (10.5, "queued", "target away"), (14.0, "building", "claimed by a"),
        (15.0, "finished", ""),
    )  # fmt: skip
    breaches = judge(replace(clean(), events={"r1": returned, "r2": a_life(11.0, 13.0)}))
    assert told(breaches) == [("runs start in order", "r2")]
    assert judge(replace(clean(), events={"r1": returned, "r2": a_life(14.5, 16.0)})) == []


def test_a_run_that_pauses_before_its_retry_is_not_in_line() -> None:
    moves = ((10.0, "building", "claimed by a"), (10.5, "queued", "host lost"), (14.0, "building", "claimed by a"))
    pausing = a_record("r1", 1, retry=RetryPolicy(backoff_s=2.0))
    at_once = a_record("r1", 1, retry=RetryPolicy(backoff_s=0.0))

    def spans(record: RunRecord, attempt_when_queued: int) -> list[tuple[float, float]]:
        found = waiting_spans(record, events(*moves, attempt_when_queued=attempt_when_queued))
        return [(span.since, span.until) for span in found]

    assert spans(pausing, 1) == [(1.0, 10.0)]
    over = RunEvent("9", 12.5, RunState.QUEUED, 1, "its pause is over")
    back, *rest = events(*moves[1:], attempt_when_queued=1)
    promoted = waiting_spans(pausing, [*events(moves[0]), back, over, *rest])
    assert [(span.since, span.until) for span in promoted] == [(1.0, 10.0), (12.5, 14.0)]
    assert spans(pausing, 0) == spans(at_once, 1) == [(1.0, 10.0), (10.5, 14.0)]


def test_more_runs_at_once_than_a_limit_allows_are_seen() -> None:
    assert told(judge(replace(clean(), limits={"q": 1}))) == [("limits hold", "r2")]
    assert judge(replace(clean(), limits={"q": 2})) == []


def test_a_log_with_a_gap_or_a_repeat_is_seen() -> None:
    good = (["line 1", "line 2"], ["line 1", "line 2"])
    assert judge(replace(clean(), logs={"r1": good})) == []
    for logged in (["line 1"], ["line 1", "line 1", "line 2"]):
        breaches = judge(replace(clean(), logs={"r1": (good[0], logged)}))
        assert told(breaches) == [("logs have no gap and no repeat", "r1")]
    deaf = replace(clean(), unheard=frozenset({"r1"}))
    assert judge(replace(deaf, logs={"r1": (good[0], ["line 2"])})) == [], "its engine was dead meanwhile"
    assert told(judge(replace(deaf, logs={"r1": (good[0], ["line 2", "line 1"])})))


def test_what_a_container_says_without_its_engine_may_be_missing_but_not_doubled() -> None:
    first = [Entry("start", "r1", 1, 7, 100.0, 0), Entry("end", "r1", 1, 7, 105.0, 1)]
    ledger = [*first, Entry("start", "r2", 1, 7, 110.0, 2)]
    assert running_at(ledger, [103.0]) == {"r1"}
    assert running_at(ledger, [107.5]) == frozenset()
    assert running_at(ledger, [300.0]) == {"r2"}

    def breaches(logged: list[str]) -> int:
        return len(judge(replace(clean(), logs={"r1": (["line 1", "line 2"], logged)}, unheard=frozenset({"r1"}))))

    assert breaches(["line 1"]) == breaches(["line 2"]) == 0
    assert breaches(["line 1", "line 1"]) == breaches(["line 2", "line 1"]) == 1


def test_the_table_says_of_each_promise_whether_it_was_kept() -> None:
    outcome = Outcome(ChaosOptions(), breaches=[Breach("limits hold", "r1", "x"), Breach("limits hold", "r2", "x")])
    rows = {what: count for part, what, count in as_rows(outcome) if part == "promises"}
    assert rows.pop("limits hold") == "2 breaches"
    assert set(rows.values()) == {"kept"}
    assert set(rows) == set(PROMISES) - {"limits hold"}
