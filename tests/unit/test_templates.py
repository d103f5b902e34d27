"""Template variables: defined by a queue, given by a launch, filled into the resource config, and nothing beyond."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError
from launch.models import QueueSpec, TemplateVariable
from launch.plugins import runner_class
from launch.queue_spec import changed_queue, queue_notes, queue_spec
from launch.resolve import resolve
from launch.templates import allowed, names_in, read_variables, render, template_values

CPU = {"type": "integer", "minimum": 1, "maximum": 4, "default": 2}
GPU = {"type": "string", "enum": ["a100", "h100"]}


def a_queue(**settings: Any) -> QueueSpec:
    """A queue of containers whose size and kind each launch chooses."""
    defaults: dict[str, Any] = {
        "config": {"cpus": "{{cpu}}", "env": {"KIND": "gpu-{{ gpu }}", "TEAM": "ml"}, "label": ["gpu={{gpu}}"]},
        "template_variables": {"cpu": CPU, "gpu": GPU},
    }
    return queue_spec("box", "docker", **{**defaults, **settings})


def effective(queue: QueueSpec, override: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
    return resolve(queue, runner_class(queue.resource), override or {}, variables)


def refusal(queue: QueueSpec, override: dict[str, Any] | None = None, **variables: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        effective(queue, override, **variables)
    return str(caught.value)


# --- what a launch gives ----------------------------------------------------------------------------------------------


def test_variables_are_filled_in_with_their_types() -> None:
    """A value that is nothing but the variable is a number; in longer text it is text."""
    assert effective(a_queue(), cpu=4, gpu="h100") == {
        "cpus": 4,
        "env": {"KIND": "gpu-h100", "TEAM": "ml"},
        "label": ["gpu=h100"],
    }


def test_a_default_stands_in() -> None:
    assert effective(a_queue(), gpu="a100")["cpus"] == 2


def test_numbers_may_come_as_text() -> None:
    """The command line knows no types."""
    result = effective(a_queue(), cpu="3", gpu="a100")
    assert (result["cpus"], type(result["cpus"])) == (3, int)


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"cpu": 8, "gpu": "a100"}, "template_variables/cpu: should be an integer between 1 and 4, not 8"),
        ({"cpu": "many", "gpu": "a100"}, 'template_variables/cpu: should be an integer between 1 and 4, not "many"'),
        ({"cpu": 1.5, "gpu": "a100"}, "template_variables/cpu: should be an integer between 1 and 4, not 1.5"),
        ({"cpu": True, "gpu": "a100"}, "template_variables/cpu: should be an integer between 1 and 4, not true"),
        ({"cpu": None, "gpu": "a100"}, "template_variables/cpu: should be an integer between 1 and 4, not null"),
        ({"gpu": "v100"}, 'template_variables/gpu: should be one of "a100", "h100", not "v100"'),
        ({"gpu": 100}, 'template_variables/gpu: should be one of "a100", "h100", not 100'),
        ({"gpu": "a100", "cpus": 2}, "queue 'box' has no such variable; did you mean 'cpu'?"),
        ({}, 'template_variables/gpu: queue \'box\' needs a value, one of "a100", "h100"; give it as --set-var gpu'),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(given_values: dict[str, Any], message: str) -> None:
    assert message in refusal(a_queue(), **given_values)


def test_a_queue_without_variables_takes_none() -> None:
    assert "queue 'box' has no such variable; it has none" in refusal(queue_spec("box", "docker"), cpu=1)


def test_a_value_names_no_secrets() -> None:
    """What a launch gives is text: macros and secrets are named by the queue, whose owner answers for them."""
    free = a_queue(config={"env": {"A": "{{a}}"}}, template_variables={"a": {"type": "string"}})
    assert "should not hold '${'" in refusal(free, a="${secret:ROOT}")
    assert effective(free, a="{{a}}") == {"env": {"A": "{{a}}"}}


# --- beside overrides -------------------------------------------------------------------------------------------------


def test_no_override_permission_is_needed() -> None:
    assert effective(a_queue(overrides="none"), cpu=1, gpu="a100")["cpus"] == 1


def test_what_a_variable_fills_in_cannot_be_overridden() -> None:
    """Whatever the rule: it would leave the variable's bounds."""
    queue = a_queue(overrides="all")
    expected = "resource_args/cpus: the queue fills this in from a template variable; use --set-var cpu=VALUE"
    assert refusal(queue, {"cpus": 64}, gpu="a100") == expected
    assert refusal(queue, {"cpus": None}, gpu="a100") == expected
    assert "resource_args/env/KIND" in refusal(queue, {"env": {"KIND": "x"}}, gpu="a100")
    assert "resource_args/env" in refusal(queue, {"env": ["A=1"]}, gpu="a100")


def test_what_stands_beside_it_can() -> None:
    result = effective(a_queue(), {"memory": "1g", "env": {"TEAM": "nlp"}}, cpu=1, gpu="a100")
    assert (result["memory"], result["env"]) == ("1g", {"KIND": "gpu-a100", "TEAM": "nlp"})


def test_an_override_is_not_filled_in() -> None:
    assert effective(a_queue(), {"workdir": "/{{gpu}}"}, gpu="a100")["workdir"] == "/{{gpu}}"


# --- definitions ------------------------------------------------------------------------------------------------------


def test_wandbs_forms_are_read() -> None:
    """As sent to W&B, as read back from it, and as it is written here."""
    schema = {"type": "integer", "minimum": 1, "maximum": 4}
    expected = {"cpu": TemplateVariable(type="integer", minimum=1, maximum=4)}
    for data in (
        {"cpu": {"schema": schema}},
        [{"name": "cpu", "schema": json.dumps(schema)}],
        {"cpu": schema},
        expected,
    ):
        assert read_variables(data, where="queue") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a b": {}}, "q: a variable's name is 1 to 64 letters"),
        ({"a": {"type": "bool"}}, "q/a/type: should be 'string', 'integer' or 'number', not 'bool'"),
        ({"a": {"typ": "string"}}, "q/a/typ: unknown key; did you mean 'type'?"),
        ({"a": {"type": "integer", "minimum": 5, "maximum": 1}}, "q/a: minimum 5 is more than maximum 1"),
        ({"a": {"type": "integer", "minimum": 0.5}}, "q/a: minimum and maximum should be an integer each"),
        ({"a": {"minimum": 1}}, "q/a: minimum and maximum are for numbers"),
        ({"a": {"enum": []}}, "q/a/enum: is empty"),
        ({"a": {"type": "integer", "enum": [1, "x"]}}, 'q/a/enum/1: should be an integer, not "x"'),
        ({"a": {"type": "integer", "maximum": 4, "default": 5}}, "q/a/default: should be an integer of 4 or less"),
        ({"a": {"enum": ["x"], "default": "y"}}, 'q/a/default: should be one of "x", not "y"'),
        ({"a": {"default": True}}, "q/a/default"),
        ([{"name": "a"}], "q/0: should have a name and a schema"),
        ({"a": {"schema": "{"}}, "q/a/schema: is no valid JSON"),
        ("a", "q: should be a mapping"),
        ({f"v{n}": {} for n in range(101)}, "q: 101 variables are too many"),
    ],
)
def test_a_wrong_definition_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_variables(data, where="q")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"config": {"cpus": "{{cpuu}}"}},
            "uses {{cpuu}}, which template_variables do not define; did you mean 'cpu'?",
        ),
        ({"config": {"env": {"{{gpu}}": "1"}}}, "a template variable stands in the key '{{gpu}}'"),
        ({"config": {"memory": "{{gpu}}"}}, "config/memory"),
        ({"template_variables": {"gpu": GPU}}, "uses {{cpu}}, which template_variables do not define"),
    ],
)
def test_a_queue_and_its_variables_must_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_queue(**settings)
    assert message in str(caught.value)


def test_every_value_a_variable_allows_is_tried_on_the_config() -> None:
    """A size that the target would not take is heard of when the queue is made, not at a launch that wants it."""
    sizes = {"size": {"enum": ["2g", "4 gigs"], "default": "2g"}}
    with pytest.raises(ConfigError, match="with size=4 gigs/memory"):
        a_queue(config={"memory": "{{size}}"}, template_variables=sizes)


def test_a_variable_of_which_nothing_is_known_is_not_guessed() -> None:
    queue = a_queue(config={"memory": "{{size}}", "cpus": 2}, template_variables={"size": {"type": "string"}})
    assert effective(queue, size="2g") == {"memory": "2g", "cpus": 2}
    assert "template_variables/memory" in refusal(queue, size="big")


def test_a_variable_that_nothing_uses_is_noted() -> None:
    (note,) = queue_notes(a_queue(config={"cpus": "{{cpu}}", "label": []}))
    assert "nothing in its config uses the template variable 'gpu'" in note


def test_config_and_variables_are_checked_together_when_one_changes() -> None:
    queue = a_queue()
    assert changed_queue(queue, {"config": {"cpus": "{{cpu}}"}}).template_variables == queue.template_variables
    with pytest.raises(ConfigError, match=r"uses \{\{cpu\}\}"):
        changed_queue(queue, {"template_variables": {}})
    assert changed_queue(queue, {"template_variables": {}, "config": {}}).template_variables == {}


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{n}}", 3),
        ("{{ n }}", 3),
        ("{{n}}{{n}}", "33"),
        (r"\{{n}}", "{{n}}"),
        (r"\\{{n}}", r"\3"),
        (r"\\\{{n}}", r"\{{n}}"),
        (r"a\b", r"a\b"),
        ("{{.State.Pid}}", "{{.State.Pid}}"),
        ("{{other}}", "{{other}}"),
        ("{n} {{n} {{}}", "{n} {{n} {{}}"),
    ],
)
def test_the_escaping_rule(text: str, expected: Any) -> None:
    assert render(text, {"n": 3}) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_a_config_without_variables_stays_as_it_is(config: Any) -> None:
    if "{{" not in json.dumps(config):
        assert names_in(config) == set()
        assert render(config, {"n": 1}) == config


@given(st.text(alphabet="\\{} nab", max_size=30))
def test_escaped_text_comes_out_as_it_went_in(text: str) -> None:
    """Each backslash before braces doubled, and one more: what is written so is what the job gets."""
    escaped = re.sub(r"(\\*)(\{\{\s*[a-zA-Z_][\w-]*\s*\}\})", lambda found: found[1] * 2 + "\\" + found[2], text)
    assert render(escaped, {"n": 1, "a": 2, "b": 3}) == text


variables = st.one_of(
    st.builds(
        lambda low, span, default: TemplateVariable(
            type="integer", minimum=low, maximum=low + span, default=low + span if default else None
        ),
        st.integers(-100, 100),
        st.integers(0, 100),
        st.booleans(),
    ),
    st.lists(st.text(alphabet="abc", min_size=1), min_size=1, max_size=4).map(
        lambda values: TemplateVariable(enum=tuple(values))
    ),
)


@given(variables, st.integers(-300, 300) | st.text(alphabet="abc", max_size=3))
def test_a_value_is_filled_in_as_given_or_refused(variable: TemplateVariable, value: int | str) -> None:
    """Nothing in between: what is accepted lies in the bounds, and comes out of the config as it went in."""
    if variable.enum is not None:
        fits = value in variable.enum
    else:
        assert variable.minimum is not None
        assert variable.maximum is not None
        fits = isinstance(value, int) and variable.minimum <= value <= variable.maximum
    if fits:
        values = template_values({"x": variable}, {"x": value}, queue="q")
        assert render({"a": ["{{x}}", "n={{x}}"]}, values) == {"a": [value, f"n={value}"]}
    else:
        with pytest.raises(ConfigError, match=re.escape(allowed(variable))):
            template_values({"x": variable}, {"x": value}, queue="q")


@given(variables)
def test_a_definition_survives_the_record(variable: TemplateVariable) -> None:
    """As JSON and back, values keep their types: a run's config is compared with what its queue gives."""
    queue = QueueSpec(name="q", resource="docker", template_variables={"x": variable})
    assert QueueSpec.model_validate_json(queue.model_dump_json()) == queue
