"""What an engine says while it builds, as people and logs get it; and what is said of two builds' difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import BuildError, TemporaryError
from workers.builders._last_build import Inputs, differences, recall, remember
from workers.builders._progress import BuildProgress, Mask, TransferProgress
from workers.docker_engine import Refused


def masked(pieces: list[str], values: list[str], hidden: list[str]) -> str:
    log: list[str] = []
    mask = Mask(log.append, values, hidden)
    for piece in pieces:
        mask(piece)
    mask.finish()
    return "".join(log)


@given(st.lists(st.text("abs", max_size=4), max_size=12), st.integers(0, 40))
def test_no_way_to_cut_a_text_lets_a_secret_through(parts: list[str], cut: int) -> None:
    text = "secret".join(parts)
    whole = masked([text], ["secret"], [])
    assert "secret" not in whole
    assert masked(list(text), ["secret"], []) == whole
    assert masked([text[:cut], text[cut:]], ["secret"], []) == whole
    assert whole == text.replace("secret", "********")


def test_what_is_hidden_is_left_out() -> None:
    assert masked(["RUN eva", 'l "x"; make'], [], ['eval "x"; ']) == "RUN make"
    assert masked(["plain"], [], []) == "plain"


def progress() -> tuple[BuildProgress, list[str]]:
    log: list[str] = []
    return BuildProgress(Mask(log.append, ["pass"]), "the image"), log


def test_a_failure_names_its_step_and_ends_with_its_last_lines() -> None:
    told, log = progress()
    told.tell({"stream": "Step 1/2 : FROM a\n"})
    told.tell({"stream": "Step 2/2 : RUN b\n"})
    for number in range(100):
        told.tell({"stream": f"\x1b[91mline {number} pass\x1b[0m\n"})
    with pytest.raises(BuildError) as caught:
        told.tell({"error": "The command 'b pass' returned a non-zero code: 1"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "the image could not be built; this failed: Step 2/2 : RUN b"
    assert lines[1] == "The command 'b ********' returned a non-zero code: 1"
    assert lines[2:] == [f"line {number} ********" for number in range(70, 100)]
    assert "line 0 ********" in "".join(log)


@pytest.mark.parametrize("words", ["no space left on device", "No such image: sha256:0123", "connection refused"])
def test_what_passes_is_tried_again(words: str) -> None:
    with pytest.raises(TemporaryError):
        progress()[0].tell({"error": words})


def test_a_transfer_is_told_now_and_then() -> None:
    log: list[str] = []
    clock = iter([0.0, 0.5, 2.5, 2.5]).__next__
    told = TransferProgress(log.append, clock)
    for done in (1, 2):
        told.tell({"status": "Pushing", "id": "a", "progressDetail": {"current": done * 10**6, "total": 4 * 10**6}})
    told.tell({"status": "Pushed", "id": "a", "progressDetail": {}})
    told.tell({"progressDetail": {}, "aux": {"Digest": "sha256:1", "Size": 2}})
    assert log == ["pushed 2.0 of 4.0 MB\n", "a: Pushed\n"]
    assert told.digest == "sha256:1"
    with pytest.raises(Refused):
        told.tell({"error": "denied"})


# --- differences -----------------------------------------------------------------------------------------------------

BEFORE = Inputs("environment", "python:3.11", "sha256:1", "numpy==2.0\nsix\n", ("git",), "FROM python:3.11\n")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"requirements": "six\nnumpy==2.1  # new\npandas>=2\n"}, "(+pandas >=2, numpy 2.0 -> 2.1)"),
        ({"requirements": "numpy==2.0 --hash=sha256:00\nsix\n"}, "(order, comments or options)"),
        ({"requirements": ""}, "(-numpy, -six)"),
        ({"base_id": "sha256:2"}, "base image python:3.11 moved"),
        ({"base": "python:3.12", "base_id": "sha256:2"}, "base image python:3.12 instead of python:3.11"),
        ({"apt": ("git", "hello")}, "Debian packages changed (+hello)"),
        ({"apt": ()}, "Debian packages changed (-git)"),
        ({"dockerfile": "x"}, "made in another way by this version"),
        ({"platform": "linux/amd64"}, "platform linux/amd64 instead of the engine's"),
        ({"kind": "dockerfile"}, "made by a Dockerfile now"),
        ({"arguments": ("A",)}, "names of build arguments changed"),
        ({}, "the image was no longer on the engine"),
    ],
)
def test_what_changed_is_said(changed: dict[str, object], said: str) -> None:
    assert said in differences(BEFORE, replace(BEFORE, **changed))


def test_many_changes_are_counted() -> None:
    many = "".join(f"package-{letter}\n" for letter in "abcdefghij")
    assert differences(BEFORE, replace(BEFORE, requirements=many)).endswith("package-f and 6 more)")


def test_inputs_are_kept_for_each_job(tmp_path: Path) -> None:
    remember(tmp_path, "a/../b", BEFORE)
    assert recall(tmp_path, "a/../b") == BEFORE
    assert recall(tmp_path, "other") is None
    remember(tmp_path, "", BEFORE)
    assert recall(tmp_path, "") is None
    for path in (tmp_path / "builds").iterdir():
        path.write_text("{}")
    assert recall(tmp_path, "a/../b") is None


def test_everything_is_part_of_the_content() -> None:
    for name in Inputs.__dataclass_fields__:
        value = ("x",) if name in ("apt", "arguments") else "x"
        assert replace(BEFORE, **{name: value}).content != BEFORE.content
