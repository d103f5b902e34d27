"""References to secrets: what is one, what is text, and who may write which where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError
from launch.resolve import check_config, render_macros
from launch.secrets import foreign_references, references, render
from launch.testing import FakeRunner
from workers.runners.docker import DockerRunner
from workers.runners.process import ProcessRunner

NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_./-]{0,20}(#[A-Za-z0-9_.-]{1,9})?\Z")
texts = st.text(st.characters(exclude_characters="$"))
values = st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)


def filled(value: Any, **options: Any) -> Any:
    return render(value, "<{}>".format, **options)[0]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${secret:A}", "<A>"),
        ("Bearer ${secret:A}!", "Bearer <A>!"),
        ("${secret:A}${secret:B}", "<A><B>"),
        ("${secret:team/db#password}", "<team/db#password>"),
        ("$${secret:A}", "${secret:A}"),
        ("$$${secret:A}", "$<A>"),
        ("$$$${secret:A}", "$${secret:A}"),
        ("$${secret:not one", "${secret:not one"),
        ("$$ $x ${x} ${secret} {secret:A}", "$$ $x ${x} ${secret} {secret:A}"),
        ("", ""),
    ],
)
def test_what_a_reference_is(text: str, result: str) -> None:
    assert filled(text) == result


@pytest.mark.parametrize(
    "text", ["${secret:}", "${secret:1A}", "${secret:A B}", "${secret:A", "${secret:A#}", "${secret:{{x}}}"]
)
def test_what_only_begins_like_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no reference to a secret: write"):
        references({"env": [text]})


@given(values, NAMES)
def test_references_are_found_and_filled_in_however_deep(value: Any, name: str) -> None:
    deep = {"a": [value, {"b": f"x${{secret:{name}}}"}], "c": value, "d": 1, "e": None, "f": True}
    assert references(deep) == {name}
    result, used = render(deep, lambda asked: asked.upper())
    assert result == {"a": [value, {"b": f"x{name.upper()}"}], "c": value, "d": 1, "e": None, "f": True}
    assert used == {name.upper()}


@given(values)
def test_without_a_dollar_nothing_changes(value: Any) -> None:
    assert render(value, str.upper) == (value, frozenset())
    assert references(value) == frozenset()


def test_macros_and_secrets_are_apart() -> None:
    """Neither reads the other's, and what a secret holds is text: a launch's name cannot name a secret."""
    text = "${run_name} ${secret:A} ${run_id}"
    assert (
        render_macros(text, {"secret": "no", "run_name": "${secret:B}", "run_id": "7"}) == "${secret:B} ${secret:A} 7"
    )

    macros = {"run_name": "${secret:B}", "run_id": "7"}
    result, _ = render(
        text, {"A": "${run_id} ${secret:C}"}.__getitem__, rest=lambda part: str(render_macros(part, macros))
    )

    assert result == "${secret:B} ${run_id} ${secret:C} 7"


@pytest.mark.parametrize(
    ("own", "effective", "foreign"),
    [
        ({"env": {"A": "${secret:X}"}}, {"env": {"A": "${secret:X}", "B": "1"}}, set()),
        ({"env": {"A": "${secret:X}"}}, {"env": {"A": "${secret:X}", "B": "${secret:X}"}}, {"X"}),
        ({"env": {"A": "${secret:X}"}}, {"env": {"A": "${secret:Y}"}}, {"Y"}),
        ({"env": {"A": "1"}}, {"env": ["A=${secret:X}"]}, {"X"}),
        ({"env": ["A=${secret:X}", "B=1"]}, {"env": ["A=${secret:X}", "B=2"]}, set()),
        ({"url": "http://u:${secret:X}@{{host}}"}, {"url": "http://u:${secret:X}@h"}, set()),
        ({"url": "http://{{host}}"}, {"url": "http://${secret:X}"}, {"X"}),
        ({}, {}, set()),
    ],
)
def test_a_launchs_own_references_are_told_from_its_queues(own: Any, effective: Any, foreign: set[str]) -> None:
    assert foreign_references(own, effective) == foreign


@pytest.mark.parametrize(
    ("runner", "key", "value"),
    [
        (DockerRunner, "label", ["a=${secret:X}"]),
        (DockerRunner, "entrypoint", ["sh", "${secret:X}"]),
        (DockerRunner, "volume", ["/data/${secret:X}:/data"]),
        (DockerRunner, "builder", {"base_image": "${secret:X}"}),
        (ProcessRunner, "workdir", "${secret:X}"),
    ],
)
def test_a_secret_may_not_stand_where_others_can_read_it(runner: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"config/{key}: the secret 'X' cannot stand here.*put it into env"):
        check_config(runner, {key: value}, where="config")


@pytest.mark.parametrize("runner", [DockerRunner, ProcessRunner, FakeRunner])
def test_a_secret_may_stand_in_a_variable(runner: Any) -> None:
    check_config(runner, {"env": {"A": "${secret:X}"}}, where="config")
    with pytest.raises(ConfigError, match=r"config/env: '\$\{secret:\}' is no reference"):
        check_config(runner, {"env": {"A": "${secret:}"}}, where="config")
