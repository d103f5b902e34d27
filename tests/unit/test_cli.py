"""The command line: its help, how options are read, what is printed, and how fast it starts. No Redis is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import launch
from launch.cli import COMMANDS, cli
from launch.cli.enqueue import _code, _what
from launch.cli.follow import MOST_ROWS_AT_ONCE, print_metrics, print_news, print_summary
from launch.cli.operations import CAUSES
from launch.cli.options import read_config, read_file_values, read_mapping, read_variables
from launch.cli.output import metric, one_line, print_json
from launch.durations import duration
from launch.errors import ConfigError
from launch.loglines import LogLine
from launch.models import Cause, CauseKind, CommandSource, Job, LaunchSpec, RunRecord, RunState
from launch.settings import settings
from launch.watch import Metrics, Note


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A launch home of its own, in which nothing runs."""
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LAUNCH_BROKER_URL", raising=False)
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def all_commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*above, name))


# --- values of variables and files -----------------------------------------------------------------------------------


def test_variables_are_read_as_text() -> None:
    """What type a value is, the queue knows."""
    assert read_variables(["cpu=2", "image=a=b", " x =1"]) == {"cpu": "2", "image": "a=b", "x": "1"}


@pytest.mark.parametrize("values", [["cpu"], ["=2"], ["cpu=1", "cpu=2"]])
def test_a_wrong_variable_is_named(values: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--set-var: .*(cpu|=2)"):
        read_variables(values)


def test_values_of_files_are_read_like_a_config(tmp_path: Path) -> None:
    overrides = tmp_path / "o.json"
    overrides.write_text('{"name": "x"}')
    given = ["a.yaml:model.layers=50", "a.yaml:lr=0.1", 'b/c.json:{"x": {"y": 1}}', f"a.yaml:{overrides}"]
    assert read_file_values(given) == {
        "a.yaml": {"model": {"layers": 50}, "lr": 0.1, "name": "x"},
        "b/c.json": {"x": {"y": 1}},
    }


@pytest.mark.parametrize("text", ["a.yaml", "a.yaml:", ":x=1", "a.yaml:x"])
def test_a_wrong_value_of_a_file_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set-file: "):
        read_file_values([text])


# --- help and start --------------------------------------------------------------------------------------------------


def test_every_command_and_option_has_help() -> None:
    silent = []
    for name, command in all_commands(cli):
        if not command.help:
            silent.append(name)
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        silent += [f"{name} {option.opts[0]}" for option in options if not option.help]
    assert silent == []


def test_help_shows_every_command_with_a_whole_sentence() -> None:
    text = invoke("--help").output
    shown = {line.split()[0]: line for line in text.partition("Commands:")[2].splitlines() if line.strip()}
    assert set(shown) == {name for name, command in all_commands(cli) if " " not in name and not command.hidden}
    assert {"up", "down", "run", "enqueue", "agent"} <= set(shown)
    assert not [name for name in COMMANDS if shown.get(name, "").endswith("...")]


def test_the_version_is_there_within_a_quarter_of_a_second() -> None:
    """Measured over the interpreter's own start, the best of five: other tests share the machine."""
    command = [str(Path(sys.executable).with_name("launch")), "--version"]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert done.stdout == f"launch {launch.__version__}\n"
    assert min(seconds) <= 0.25


def test_the_commands_that_read_load_no_celery() -> None:
    script = (
        "import sys\n"
        "from launch.cli import cli\n"
        "try: cli(['runs'])\n"
        "except SystemExit as exit: print(exit.code, [n for n in ('celery', 'kombu', 'rich') if n in sys.modules])"
    )
    environ = {"LAUNCH_BROKER_URL": "redis://127.0.0.1:1/0", "PATH": "", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == "3 []"


def test_a_mistyped_command_is_guessed() -> None:
    result = invoke("enqeue")
    assert (result.exit_code, "enqueue" in result.stderr) == (2, True)


# --- nothing runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *(("runs",), ("show", "x"), ("logs", "x"), ("stop", "x"), ("queue", "list"), ("agents",), ("status",)),
        *(("explain", "x"), ("wait", "x"), ("hold", "x"), ("release", "x"), ("rerun", "x"), ("doctor",)),
        *(("edit", "x", "-c", "a=1"), ("retry", "--cause", "oom"), ("agents", "drain", "x"), ("queue", "delete", "x")),
    ],
)
def test_a_command_that_reads_starts_nothing(home: Path, words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: nothing runs in ")
    assert "`launch up`" in result.stderr
    assert not home.exists()


def test_down_without_anything_running_is_no_error(home: Path) -> None:
    result = invoke("down")
    assert (result.exit_code, result.output) == (0, "nothing was running\n")


def test_a_broker_that_is_away_is_named_without_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_BROKER_URL", "redis://me:secret@127.0.0.1:1/0")
    began = time.monotonic()
    result = invoke("runs")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "redis://me:********@127.0.0.1:1/0" in result.stderr
    assert "secret" not in result.stderr
    assert time.monotonic() - began < 5


def test_the_causes_to_choose_from_are_all_there_are() -> None:
    """They stand in the command's module, since that loads no models for its help."""
    assert list(CAUSES) == [str(kind) for kind in CauseKind]


# --- -c and --resource-args ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "config"),
    [
        (["epochs=3"], {"epochs": 3}),
        (
            ["lr=1e-3", "name=resnet", "flag=true", "none=null"],
            {"lr": 0.001, "name": "resnet", "flag": True, "none": None},
        ),
        (["optimizer.lr=0.1", "optimizer.name=sgd"], {"optimizer": {"lr": 0.1, "name": "sgd"}}),
        (["sizes=[1, 2]", 'text="3"', "url=a=b"], {"sizes": [1, 2], "text": "3", "url": "a=b"}),
        (['{"a": {"b": 1}}', "a.c=2", "a.b=3"], {"a": {"b": 3, "c": 2}}),
        (["empty="], {"empty": ""}),
        ([], {}),
    ],
)
def test_config_values_are_json_where_they_can_be(values: list[str], config: dict[str, Any]) -> None:
    assert read_config(values) == config


@given(
    st.dictionaries(
        st.text(alphabet="abc", min_size=1, max_size=2),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        max_size=4,
    )
)
def test_any_json_value_can_be_given(config: dict[str, Any]) -> None:
    assert read_config([f"{key}={json.dumps(value)}" for key, value in config.items()]) == config


def test_config_comes_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"epochs": 3, "opt": {"lr": 1}}')
    (tmp_path / "b.yaml").write_text("opt:\n  name: sgd\n")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.yaml")]
    assert read_config([*files, "epochs=5"]) == {"epochs": 5, "opt": {"lr": 1, "name": "sgd"}}
    assert read_mapping(files[1], option="--config") == {"opt": {"name": "sgd"}}
    assert read_mapping(None, option="--config") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["epochs"], "should be key=value, a JSON object or a file, and 'epochs' is no readable file"),
        (["=3"], "has an empty key"),
        (["a..b=3"], "has an empty key"),
        (["a=1", "a.b=2"], "'a.b' goes below 'a', which has a value of its own"),
        (['{"a": '], "is no valid JSON"),
        (["{a: 1}"], "is no valid JSON"),
        (["."], "no readable file (is a directory)"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(values)
    assert str(caught.value).startswith("-c: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "should hold a mapping, not list"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.json", "{", "cannot"),
    ],
)
def test_a_file_that_holds_no_mapping_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config([str(tmp_path / name)])


# --- what is run -----------------------------------------------------------------------------------------------------


def test_words_after_dashes_are_a_jobs_arguments_or_the_command() -> None:
    assert _what("digits", None, None, ("--fast",)) == {"job": "digits", "args": ("--fast",)}
    assert _what(None, "img", None, ("python", "-c", "1")) == {"image": "img", "command": ("python", "-c", "1")}
    assert _what(None, None, "make all", ()) == {"command": "make all"}
    with pytest.raises(ConfigError, match="not both"):
        _what(None, None, "make", ("all",))


def test_dashes_end_the_options(home: Path) -> None:
    """``-c`` behind the dashes is the command's, not ours: a config named ``print(1)`` would be refused with 2."""
    result = invoke("enqueue", "--image", "img", "-q", "q", "--", "python", "-c", "print(1)")
    assert (result.exit_code, "nothing runs" in result.stderr) == (3, True)


def test_code_is_a_directory_or_a_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    assert _code(tmp_path, None) == (tmp_path, ["python", "train.py"])
    assert _code(tmp_path / "train.py", None) == (tmp_path, ["python", "train.py"])
    assert _code(tmp_path, "python -m x") == (tmp_path, "python -m x")
    (tmp_path / "main.py").touch()
    with pytest.raises(ConfigError, match=r"has both main\.py and train\.py; say what to run"):
        _code(tmp_path, None)


# --- what is printed -------------------------------------------------------------------------------------------------


def a_record(**fields: Any) -> RunRecord:
    job = Job(source=CommandSource(), entrypoint=("python", "train.py"))
    spec = LaunchSpec(run_id="r1", queue="q", resource="process", job=job, config={"opt": {"lr": 0.1}})
    return RunRecord(**{"spec": spec, "state": RunState.FINISHED, "seq": 1, "created_at": 0.0, **fields})


def test_a_run_is_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_news(
        [
            Note(1.0, RunState.BUILDING, 1, "claimed by a"),
            LogLine("build", "pulling"),
            Note(2.0, RunState.RUNNING, 1, "running"),
            LogLine("stdout", "epoch 1"),
            Metrics(({"_step": 0, "_runtime": 1.0, "loss": 0.123456789, "val": {"acc": 1}},)),
            Note(3.0, RunState.FAILED, 1, "The job exited with code 1."),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "building  claimed by a",
        "| pulling",
        "running",
        "| epoch 1",
        "* step 0  loss 0.123457  val.acc 1",
        "failed",
    ]


def test_of_very_many_rows_at_once_the_last_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(tuple({"_step": step, "loss": 1.0} for step in range(1000)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"* ... {1000 - MOST_ROWS_AT_ONCE} more rows"
    assert lines[-1] == "* step 999  loss 1"
    assert len(lines) == MOST_ROWS_AT_ONCE + 1


def test_the_summary_says_how_it_ended_and_what_to_type_next(capsys: pytest.CaptureFixture[str]) -> None:
    cause = Cause(kind=CauseKind.EXIT_CODE, message="The job exited with code 1.", exit_code=1)
    times = {"claimed_at": 1.0, "started_at": 2.0, "ended_at": 67.0}
    record = a_record(state=RunState.FAILED, cause=cause, summary={"loss": 0.5, "_step": 3}, **times)
    print_summary(record, "/home/artifacts")
    text = capsys.readouterr().out
    for part in (
        "failed in 1 min 5 s  run r1 (python train.py)",
        "cause      The job exited with code 1.",
        "metrics    loss  0.5",
        "overrides  opt.lr = 0.1",
        "log        launch logs r1    (kept in /home/artifacts)",
        "next       launch show r1 --config",
    ):
        assert part in text
    assert "_step" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (60, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"),
     (273600, "3 d 4 h"), (None, ""), (-1, "0.0 s")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_values_are_short() -> None:
    assert [metric(value) for value in (0.1234567, 3, True, None, "x", [1, 2.5])] == [
        "0.123457", "3", "true", "null", "x", "[1, 2.5]",
    ]  # fmt: skip
    assert one_line("a\n  b " + "c" * 100, 10) == "a b ccc..."


def test_json_is_json_even_with_numbers_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("nan"), "best": [float("inf"), -float("inf"), 1.5], "ü": "é"})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": "NaN",
        "best": ["Infinity", "-Infinity", 1.5],
        "ü": "é",
    }
