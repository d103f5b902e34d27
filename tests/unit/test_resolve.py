"""From queue default and override to the effective config: the rules, as properties and as the messages users see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from launch.checking import Model
from launch.errors import ConfigError
from launch.models import CommandSource, Job, LaunchSpec, QueueSpec
from launch.resolve import (
    as_json,
    check_overrides,
    macro_values,
    merge,
    own_section,
    provenance,
    render_macros,
    resolve,
)

KEYS = st.sampled_from(["a", "b", "c", "d"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
CONFIGS = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=3), lambda below: st.dictionaries(KEYS, SCALARS | below, max_size=3)
)


class Options(Model):
    cpus: float | None = None
    shm_size: str | None = Field(default=None, alias="shm-size")
    env: dict[str, str] = {}
    privileged: bool = False


class ATarget:
    """A runner's class as far as resolving looks at it; ``shm-size`` has two spellings."""

    name: ClassVar[str] = "docker"
    aliases: ClassVar[tuple[str, ...]] = ("local-container",)
    Options = Options
    safe_overrides: ClassVar[frozenset[str]] = frozenset({"cpus", "shm-size", "env"})
    public_options: ClassVar[frozenset[str]] = frozenset({"label"})

    @classmethod
    def canonical(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {key.replace("_", "-"): value for key, value in config.items()}


def a_queue(**fields: Any) -> QueueSpec:
    return QueueSpec(**{"name": "gpu", "resource": "docker", **fields})


def without_nulls(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: without_nulls(value) for key, value in config.items() if value is not None}


# --- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "override", "effective"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "b"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_merge_is_json_merge_patch(default: Any, override: Any, effective: Any) -> None:
    """The examples of RFC 7396, appendix A, whose target and patch are objects."""
    assert merge(default, override) == effective


@given(CONFIGS)
def test_an_empty_override_changes_nothing(default: Any) -> None:
    assert merge(default, {}) == default


@given(CONFIGS, CONFIGS)
def test_an_override_is_idempotent(default: Any, override: Any) -> None:
    once = merge(default, override)
    assert merge(once, override) == once


@given(CONFIGS)
def test_what_is_overridden_where_there_was_nothing_loses_only_its_nulls(override: Any) -> None:
    assert merge({}, override) == without_nulls(override)


@given(CONFIGS, CONFIGS)
def test_merging_changes_neither_side(default: Any, override: Any) -> None:
    before = json.dumps([default, override])
    effective = merge(default, override)
    for value in effective.values():
        if isinstance(value, dict):
            value["new"] = 1
    assert json.dumps([default, override]) == before


@given(CONFIGS, CONFIGS)
def test_provenance_names_every_value_of_the_effective_config_once(default: Any, override: Any) -> None:
    paths = provenance(default, override)
    assert list(paths) == list(leaves(merge(default, override)))


@given(CONFIGS, CONFIGS)
def test_a_value_is_the_launchs_just_when_the_override_gives_it(default: Any, override: Any) -> None:
    effective = leaves(merge(default, override))
    given_by_launch = leaves(merge({}, override))
    for path, origin in provenance(default, override).items():
        if origin == "launch":
            assert given_by_launch[path] == effective[path]
        else:
            assert leaves(default)[path] == effective[path]


def leaves(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{above}{key}/")
        else:
            found[f"{above}{key}"] = value
    return found


# --- override guard --------------------------------------------------------------------------------------------------


def test_a_refused_override_names_the_key_the_rule_and_what_may_be_overridden() -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides("safe", ["cpus", "privileged"], {"cpus", "env"}, "gpu")
    assert str(caught.value) == (
        "resource_args: queue 'gpu' does not let a launch override 'privileged' (overrides: safe); "
        "it may override: cpus, env"
    )


@pytest.mark.parametrize(
    ("rule", "keys", "is_allowed"),
    [
        ("all", ["privileged"], True),
        ("safe", ["cpus"], True),
        ("safe", ["privileged"], False),
        ("none", ["cpus"], False),
        ("none", [], True),
        (("privileged",), ["privileged"], True),
        (("privileged",), ["cpus"], False),
    ],
)
def test_the_rule_decides(rule: Any, keys: list[str], is_allowed: bool) -> None:
    if is_allowed:
        check_overrides(rule, keys, {"cpus"}, "gpu")
    else:
        with pytest.raises(ConfigError, match="does not let a launch override"):
            check_overrides(rule, keys, {"cpus"}, "gpu")


def test_deleting_a_key_is_overriding_it() -> None:
    with pytest.raises(ConfigError, match="'privileged'"):
        resolve(a_queue(config={"privileged": False}), ATarget, {"privileged": None})


# --- resolve ---------------------------------------------------------------------------------------------------------


def test_spellings_of_one_key_meet() -> None:
    queue = a_queue(config={"shm_size": "1g", "cpus": 1})
    assert resolve(queue, ATarget, {"shm-size": "2g"}) == {"shm-size": "2g", "cpus": 1}


def test_a_rule_may_use_any_spelling() -> None:
    assert resolve(a_queue(overrides=("shm_size",)), ATarget, {"shm-size": "2g"}) == {"shm-size": "2g"}


def test_one_key_in_two_spellings_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'shm_size' and 'shm-size' are the same key"):
        resolve(a_queue(), ATarget, {"shm_size": "1g", "shm-size": "2g"})


def test_an_unknown_key_says_which_was_meant() -> None:
    with pytest.raises(ConfigError, match="resource_args/cpsu: unknown key; did you mean 'cpus'"):
        resolve(a_queue(), ATarget, {"cpsu": 2})


def test_a_value_that_does_not_fit_names_its_path() -> None:
    with pytest.raises(ConfigError, match=r"resource_args/cpus: .*'two'"):
        resolve(a_queue(), ATarget, {"cpus": "two"})


def test_the_builders_section_is_not_the_runners() -> None:
    queue = a_queue(config={"builder": {"base_image": "debian"}}, overrides="all")
    assert resolve(queue, ATarget, {"builder": {"cuda": True}}) == {"builder": {"base_image": "debian", "cuda": True}}


# --- W&B's nested form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resource_args",
    [
        {"cpus": 2},
        {"docker": {"cpus": 2}},
        {"local-container": {"cpus": 2}},
        {"resource_args": {"local-container": {"cpus": 2}}},
    ],
)
def test_the_nested_form_means_the_same(resource_args: Any) -> None:
    assert own_section(resource_args, ("docker", "local-container")) == {"cpus": 2}


@pytest.mark.parametrize(
    "resource_args", [{"kubernetes": {"spec": {}}}, {"resource_args": {"kubernetes": {}}}, {"process": {"env": []}}]
)
def test_a_section_for_another_resource_is_refused(resource_args: Any) -> None:
    with pytest.raises(ConfigError, match="the queue's resource is 'docker'"):
        own_section(resource_args, ("docker", "local-container"))


def test_a_key_beside_the_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cpus' stands beside the section 'docker'"):
        own_section({"docker": {"env": []}, "cpus": 2}, ("docker",))


# --- macros ----------------------------------------------------------------------------------------------------------


def test_macros_are_rendered_however_deep_and_unknown_ones_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is never read."""
    monkeypatch.setenv("HOME", "/root")
    config = {"a": ["${run_id}-${project_name}", {"b": "${HOME} ${secret:X} $run_id"}], "n": 1}
    rendered = render_macros(config, {"run_id": "r1", "project_name": "${run_id}"})
    assert rendered == {"a": ["r1-${run_id}", {"b": "${HOME} ${secret:X} $run_id"}], "n": 1}


def test_every_macro_of_wandb_has_a_value() -> None:
    job = Job(source=CommandSource(), entrypoint=("true",))
    spec = LaunchSpec(run_id="r1", queue="q", resource="docker", job=job, project="p", author="ann")
    text = "${run_id} ${image_uri} ${project_name} ${entity_name} ${run_name} ${author}"
    assert render_macros(text, macro_values(spec, "img:1")) == "r1 img:1 p local r1 ann"


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(CONFIGS)
def test_json_is_copied_as_it_is(config: Any) -> None:
    copy = as_json(config, "config")
    assert copy == config == json.loads(json.dumps(copy))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lr": float("nan")}, "config/lr: nan is not JSON"),
        ({"a": [{"b": float("-inf")}]}, "config/a/0/b: -inf is not JSON"),
        ({"tags": {"x"}}, "config/tags: {'x'} is not JSON (set)"),
        ({1: "x"}, "config: the key 1 should be text"),
        ({"f": print}, "config/f: <built-in function print> is not JSON"),
        ({"s": "\ud800"}, "config/s: holds half a character"),
        ({"\ud800": 1}, "config: holds half a character"),
        ({"n": 1 << 20_000}, "config/n: an integer of 20001 bits is too large"),
        ({"b": b"x"}, "config/b: b'x' is not JSON (bytes)"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_json(value, "config")
    assert message in str(caught.value)


def test_a_mapping_that_holds_itself_is_refused() -> None:
    config: dict[str, Any] = {}
    config["self"] = config
    with pytest.raises(ConfigError, match="nested deeper than 100"):
        as_json(config, "config")
