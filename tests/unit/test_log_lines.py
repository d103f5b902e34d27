"""Log lines: for people at a terminal, for programs otherwise, and what each is about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from launch.errors import ConfigError
from launch.log_lines import about, set_up_logging, thread_about

log = logging.getLogger("workers.agent")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


def test_a_program_gets_json_with_all_that_a_line_is_about() -> None:
    """Run, attempt, queue and agent are fields, and odd text stays one line."""
    out = io.StringIO()
    set_up_logging(stream=out, agent="box-1a2b3c")

    with about(run="r1", attempt=2, queue="gpu"):
        log.warning("run %s: two\nlines and a snowman ☃", "r1")
    log.info("outside")

    first, second = map(json.loads, out.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        **{"level": "warning", "logger": "workers.agent", "message": "run r1: two\nlines and a snowman ☃"},
        **{"agent": "box-1a2b3c", "run": "r1", "attempt": 2, "queue": "gpu"},
    }
    assert "run" not in second
    assert second["agent"] == "box-1a2b3c"


def test_a_traceback_is_part_of_its_line() -> None:
    """What went wrong does not tear a line into many."""
    out = io.StringIO()
    set_up_logging("json", stream=out)

    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("stumbled")

    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: bad")


def test_a_threads_lines_are_about_what_started_it() -> None:
    """A thread that follows a run for another says which run it is."""
    out = io.StringIO()
    set_up_logging("json", stream=out)
    with about(run="r1"):
        thread = thread_about(log.info, "followed")
    thread.start()
    thread.join()

    assert json.loads(out.getvalue())["run"] == "r1"


@pytest.mark.parametrize(("wanted", "out", "is_json"), [("auto", Terminal(), False), ("auto", io.StringIO(), True)])
def test_a_terminal_gets_text(wanted: str, out: io.StringIO, is_json: bool) -> None:
    """People read lines, not JSON."""
    set_up_logging(wanted, stream=out)
    log.info("hello")
    assert out.getvalue().startswith("{") is is_json
    assert "hello" in out.getvalue()


def test_another_format_is_refused() -> None:
    """The message says which there are."""
    with pytest.raises(ConfigError, match="LAUNCH_LOG_FORMAT: should be one of auto, text, json, not 'xml'"):
        set_up_logging("xml")
