"""What a job lets a launch set: declared by a schema or by its script, held against each launch, shown as a form."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from launch.errors import ConfigError
from launch.inputs_form import form, form_lines, types_lines
from launch.job_inputs import check_given, read_files, read_inputs
from launch.job_types import MAX_KEYS, leaves, recorded, types_of, with_declaration, with_job_metadata
from launch.models import CommandSource, Job, JobInputs, JobTypes, JobVersion, LaunchSpec, RunRecord, RunState
from launch.schemas import checked_schema, describe, problems

SCHEMA = {
    "type": "object",
    "properties": {
        "lr": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1, "description": "Learning rate"},
        "epochs": {"type": "integer", "exclusiveMinimum": 0},
        "optimizer": {
            "type": "object",
            "properties": {"name": {"enum": ["adam", "sgd"]}, "betas": {"type": "array", "items": {"type": "number"}}},
            "required": ["name"],
        },
        "token": {"type": "string", "format": "secret"},
    },
    "required": ["lr"],
}


def refused(config: dict[str, Any], schema: Any = SCHEMA) -> list[str]:
    return problems(config, checked_schema(schema, where="schema"), where="config")


# --- a launch's config against a schema -------------------------------------------------------------------------------


def test_part_of_a_config_is_enough() -> None:
    """A launch overrides: what it does not give, the script has."""
    assert refused({}) == []
    assert refused({"epochs": 3, "optimizer": {"betas": [0.9, 1]}}) == []


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"lr": "fast"}, 'config/lr: should be a number between 0 and 1, not "fast"'),
        ({"lr": 2}, "config/lr: should be a number between 0 and 1, not 2"),
        ({"lr": None}, "config/lr: should be a number between 0 and 1, not null"),
        ({"lr": True}, "config/lr: should be a number between 0 and 1, not true"),
        ({"epochs": 0}, "config/epochs: should be an integer above 0, not 0"),
        ({"epochs": 1.5}, "config/epochs: should be an integer above 0, not 1.5"),
        ({"lrr": 0.1}, "config/lrr: is not among what can be set; did you mean 'lr'?"),
        (
            {"optimizer": {"name": "adagrad"}},
            'config/optimizer/name: should be one of "adam", "sgd", not "adagrad"',
        ),
        ({"optimizer": {"nam": "sgd"}}, "config/optimizer/nam: is not among what can be set; did you mean 'name'?"),
        ({"optimizer": "sgd"}, 'config/optimizer: should be a mapping, not "sgd"'),
        ({"optimizer": {"betas": [0.9, "x"]}}, 'config/optimizer/betas/1: should be a number, not "x"'),
        (
            {"token": "hunter2"},
            "config/token: is a secret: it comes in a variable, as ${secret:NAME} in env of resource_args, "
            "and is never set here",
        ),
    ],
)
def test_a_wrong_value_is_named_with_type_and_range(config: dict[str, Any], line: str) -> None:
    assert refused(config) == [line]


def test_every_wrong_value_is_named() -> None:
    assert len(refused({"lr": "fast", "epochs": 0, "x": 1})) == 3


def test_not_even_a_reference_to_a_secret_is_taken_and_no_value_is_repeated() -> None:
    """A config is recorded, shown and handed to the tracking server; so is what an error says."""
    for value in ("${secret:HF_TOKEN}", "hunter2"):
        (line,) = refused({"token": value})
        assert "hunter2" not in line


def test_others_may_stand_beside_where_the_schema_says_so() -> None:
    assert refused({"other": 1}, {**SCHEMA, "additionalProperties": True}) == []
    assert refused({"other": "x"}, {**SCHEMA, "additionalProperties": {"type": "integer"}}) == [
        'config/other: should be an integer, not "x"'
    ]
    assert refused({"x_a": 1}, {**SCHEMA, "patternProperties": {"^x_": {"type": "integer"}}}) == []
    assert refused({"anything": 1}, {"type": "object"}) == []


def test_a_list_is_replaced_so_what_is_in_it_must_be_whole() -> None:
    item = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    schema = {"properties": {"layers": {"type": "array", "items": item}}}
    assert refused({"layers": [{"name": "a"}]}, schema) == []
    assert refused({"layers": [{}]}, schema) == ["config/layers/0: should be a mapping, not {}"]


class Adam(BaseModel):
    kind: Literal["adam"]
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(BaseModel):
    kind: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)


class Training(BaseModel):
    lr: float = Field(0.1, ge=0, le=1, description="Learning rate")
    optimizer: Adam | Sgd = Field(discriminator="kind")
    name: str | None = None
    previous: Training | None = None


@pytest.mark.parametrize("schema", [Training, Training(optimizer=Sgd(kind="sgd"))])
def test_a_pydantic_model_is_a_schema(schema: Any) -> None:
    """The class or an instance; one that refers to itself, to others, by choice, or may be null."""
    assert refused({"optimizer": {"momentum": 0.5}, "name": None}, schema) == []
    assert refused({"optimizer": {"kind": "sgd", "momentum": 0.5}, "previous": {"lr": 0.2}}, schema) == []
    assert refused({"lr": 7}, schema) == ["config/lr: should be a number between 0 and 1, not 7"]
    assert refused({"optimizer": {"momentum": 1}}, schema)
    # A model within itself has no end, so the second one takes anything.
    assert refused({"previous": {"lr": 7}}, schema) == []


def test_what_wandbs_schemas_may_hold_is_read() -> None:
    """``required`` as a flag of a property, and one ``allOf``."""
    schema = {"properties": {"a": {"allOf": [{"type": "integer"}], "required": True, "title": "A"}}}
    assert checked_schema(schema, where="s") == {"properties": {"a": {"type": "integer", "title": "A"}}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("x", "s: should be a JSON Schema as a mapping, or a pydantic model"),
        ({"type": "nmber"}, "s/type: is no JSON Schema"),
        ({"properties": {"a": {"minimum": "1"}}}, "s/properties/a/minimum: is no JSON Schema"),
        ({"$ref": "http://example.com/s.json"}, "s: $ref 'http://example.com/s.json' is not in the schema"),
        ({"$ref": "#/$defs/missing"}, "s: $ref '#/$defs/missing' is not in the schema"),
        ({"properties": {"a": {"pattern": "("}}}, "s/properties/a/pattern: is no JSON Schema"),
        ({"default": {1, 2}}, "s: holds what is not JSON"),
        ({"description": "x" * 70_000}, "s: has 70,"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_schema(schema, where="s")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number"}, "a number"),
        ({"type": "integer", "minimum": 1}, "an integer at least 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "a number above 0 and at most 1"),
        ({"type": ["string", "null"]}, "text or null"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "an integer or null"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, "text of 2 to 3 characters"),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, 'a list of "a", "b" none twice'),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "a list of integers of at least 2 items"),
        ({"type": "array", "items": {"type": ["integer", "null"]}}, "a list"),
        ({"const": 1}, "1"),
        ({}, "another value"),
    ],
)
def test_a_schema_in_words(schema: dict[str, Any], text: str) -> None:
    assert describe(schema) == text


# --- declarations of an author ----------------------------------------------------------------------------------------


def test_a_schema_is_of_wandb_config_or_names_its_parts() -> None:
    assert read_inputs(SCHEMA) == JobInputs(config=SCHEMA)
    parts = read_inputs({"@wandb.config": SCHEMA, "files": {"./a.yaml": {"type": "object"}, "b.json": {}}})
    assert parts == JobInputs(config=SCHEMA, files={"a.yaml": {"type": "object"}, "b.json": {}})
    assert read_inputs(None) is None


def test_a_config_that_is_called_files_is_still_a_config() -> None:
    schema = {"type": "object", "properties": {"files": {"type": "integer"}}}
    assert read_inputs(schema) == JobInputs(config=schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"files": {"/etc/a.yaml": {}}}, "should be relative to the job's folder"),
        ({"files": {"../a.yaml": {}}}, "should be relative to the job's folder"),
        ({"files": {"a.toml": {}}}, "should end with .json, .yaml or .yml"),
        ({"files": {"a.yaml": {"type": 1}}}, "schema/files/a.yaml/type: is no JSON Schema"),
        ({"files": [1]}, "schema/files: should be a mapping"),
        ({"config": SCHEMA, "@wandb.config": SCHEMA}, "are the same"),
    ],
)
def test_a_wrong_declaration_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_inputs(schema)
    assert message in str(caught.value)


# --- a launch against all that is known of its job --------------------------------------------------------------------


def checked(
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
    inputs: JobInputs | None = None,
    types: JobTypes | None = None,
) -> list[str]:
    """Return the notes of a launch that is accepted."""
    notes: list[str] = []
    check_given(config or {}, read_files(files), inputs, types, job="digits:v3", note=notes.append)
    return notes


def refusal(*arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(*arguments)
    return str(caught.value).splitlines()


def test_a_job_that_declares_nothing_takes_anything() -> None:
    assert checked({"x": {"y": 1}}, {"a.yaml": {"b": 1}}) == []


def test_the_types_of_the_first_run_lead_to_notes_only() -> None:
    types = JobTypes(config={"lr": "number", "net": {"depth": "number"}})
    assert checked({"lr": 1, "net": {"depth": 2}}, None, None, types) == []
    assert checked({"lr": "x", "net": {"dpth": 2}}, None, None, types) == [
        "config/lr: is text; in the first run of job digits:v3 it was number",
        "config/net/dpth: the first run of job digits:v3 had no such value; did you mean 'net.depth'?",
    ]


def test_what_a_script_excludes_is_refused() -> None:
    """A value that is in the config and that ``manage_wandb_config`` has left out, itself or with what is above it."""
    types = JobTypes(
        config={"lr": "number", "seed": "number", "net": {"depth": "number", "name": "text"}},
        settable={"lr": "number", "net": {"depth": "number"}},
    )
    may = "job digits:v3 does not let a launch set it; it may set: lr, net.depth"
    assert refusal({"seed": 1}, None, None, types) == [f"config/seed: {may}"]
    assert refusal({"net": {"name": "x"}}, None, None, types) == [f"config/net/name: {may}"]
    assert refusal({"net": "x"}, None, None, types) == [f"config/net: {may}"]
    assert checked({"lr": 0.2, "net": {"depth": 3}}, None, None, types) == []
    assert len(checked({"late": 1}, None, None, types)) == 1


def test_a_scripts_own_schema_holds_until_the_author_says_otherwise() -> None:
    types = JobTypes(inputs=JobInputs(config=SCHEMA))
    assert refusal({"lr": 2}, None, None, types) == ["config/lr: should be a number between 0 and 1, not 2"]
    assert checked({"lr": 2}, None, JobInputs(config={"properties": {"lr": {"type": "number"}}}), types) == []


def test_values_for_files_are_held_against_their_schema() -> None:
    inputs = JobInputs(files={"conf/a.yaml": {"properties": {"layers": {"type": "integer"}}}, "b.json": {}})
    assert checked(None, {"./conf/a.yaml": {"layers": 3}, "b.json": {"x": 1}}, inputs) == []
    assert refusal(None, {"conf/a.yaml": {"layers": "x"}}, inputs) == [
        'files/conf/a.yaml/layers: should be an integer, not "x"'
    ]
    assert refusal(None, {"conf/b.yaml": {"layers": 1}}, inputs) == [
        "files/conf/b.yaml: is no input of job digits:v3; did you mean 'conf/a.yaml'?"
    ]


def test_of_a_file_that_the_script_manages_only_what_it_includes_can_be_set() -> None:
    types = JobTypes(files={"a.yaml": {"model": {"layers": "number"}}})
    assert checked(None, {"a.yaml": {"model": {"layers": 5}}}, None, types) == []
    assert refusal(None, {"a.yaml": {"model": {"name": "x"}}}, None, types) == [
        "files/a.yaml/model/name: job digits:v3 does not let a launch set it; it may set: model.layers"
    ]
    (note,) = checked(None, {"b.yaml": {"x": 1}}, None, types)
    assert "the script of job digits:v3 manages no such file" in note


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "files: should be a mapping"),
        ({"a.yaml": 1}, "files/a.yaml: should be a mapping"),
        ({"a.yaml": {"x": 1}, "./a.yaml": {"y": 1}}, "is given twice"),
        ({"a.yaml": {"x": {1}}}, "files/a.yaml/x"),
        ({"../a.yaml": {"x": 1}}, "without '..'"),
        ({"a\\b.yaml": {"x": 1}}, "should be relative"),
        ({"": {"x": 1}}, "should be the path of a JSON or YAML file"),
        ({3: {"x": 1}}, "should be the path of a JSON or YAML file"),
    ],
)
def test_malformed_file_values_are_refused(files: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_files(files)
    assert message in str(caught.value)


# --- what a first run tells -------------------------------------------------------------------------------------------


def a_record(**fields: Any) -> RunRecord:
    job = Job(source=CommandSource(), entrypoint=("true",))
    spec = LaunchSpec(run_id="r", queue="q", resource="process", job=job, job_ref="digits:v3")
    return RunRecord(spec=spec, state=RunState.RUNNING, seq=1, created_at=0.0, tracked=True, **fields)


def test_types_of_values() -> None:
    values = {
        "lr": 1,
        "name": "x",
        "on": False,
        "none": None,
        "sizes": [1, 2],
        "net": {"depth": 3, "_private": 1},
        "empty": {},
        "image": {"_type": "image-file", "path": "a.png"},
        "_step": 5,
    }
    assert types_of(values) == {
        "lr": "number",
        "name": "text",
        "on": "true or false",
        "none": "null",
        "sizes": "list",
        "net": {"depth": "number", "_private": "number"},
        "empty": "mapping",
        "image": "image-file",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=5))
def test_types_are_a_record_whatever_the_values(values: dict[str, Any]) -> None:
    types = JobTypes(config=types_of(values))
    assert JobTypes.model_validate_json(types.model_dump_json(exclude_defaults=True)) == types
    assert all(isinstance(kind, str) for _, kind in leaves(types.config))


def test_a_huge_config_has_types_of_bounded_size() -> None:
    assert len(list(leaves(types_of({str(n): n for n in range(5000)})))) == MAX_KEYS
    deep: dict[str, Any] = {}
    place = deep
    for _ in range(500):
        place["x"] = {}
        place = place["x"]
    assert len(str(types_of(deep))) < 500


def test_our_own_declarations_are_kept() -> None:
    """Include and exclude of the config are held against the config as it was at the run's end."""
    known: dict[str, Any] = {}
    for said in (
        {"path": None, "include": [["lr"], ["net"]], "exclude": [["net", "name"]], "schema": None},
        {"path": "a.yaml", "include": [], "exclude": [], "types": {"x": "number"}, "schema": {"type": "object"}},
    ):
        known = with_declaration(known, said)
    config = {"lr": 0.1, "seed": 1, "net": {"depth": 3, "name": "x"}}

    types = recorded(a_record(config=config, summary={"loss": 1.0}), known)

    assert types.config == {"lr": "number", "seed": "number", "net": {"depth": "number", "name": "text"}}
    assert types.summary == {"loss": "number"}
    assert types.settable == {"lr": "number", "net": {"depth": "number"}}
    assert types.files == {"a.yaml": {"x": "number"}}
    assert types.inputs == JobInputs(files={"a.yaml": {"type": "object"}})


def test_a_schema_that_is_none_says_nothing() -> None:
    known = with_declaration({}, {"path": None, "schema": {"type": "nonsense"}})
    assert recorded(a_record(), known) == JobTypes()


@pytest.mark.parametrize(
    "metadata", ["", "{}", "null", "[]", "{", '{"input_types": 3}', '{"input_types": {"files": 3}}']
)
def test_metadata_that_says_nothing_costs_nothing(metadata: str) -> None:
    try:
        known = with_job_metadata({}, metadata)
    except ConfigError:
        return
    assert recorded(a_record(), known) == JobTypes()


# --- the form ---------------------------------------------------------------------------------------------------------


def version(inputs: JobInputs | None, types: JobTypes | None = None) -> JobVersion:
    job = Job(source=CommandSource(), entrypoint=("true",), inputs=inputs)
    return JobVersion(name="digits", version=3, job=job, created_at=0.0, types=types)


def test_the_form_shows_how_each_input_is_given() -> None:
    inputs = JobInputs(config=SCHEMA, files={"a.yaml": {"properties": {"layers": {"type": "integer"}}}})
    lines = form_lines(form(version(inputs)))
    assert lines[0] == "-c lr=                     a number between 0 and 1, default 0.1: Learning rate"
    assert [field.option for field in form(version(inputs))] == [
        "-c lr=",
        "-c epochs=",
        "-c optimizer.name=",
        "-c optimizer.betas=",
        "-c token=",
        "--set-file a.yaml:layers=",
    ]


def test_without_a_schema_the_form_is_what_the_first_run_had() -> None:
    types = JobTypes(config={"lr": "number", "net": {"depth": "number"}}, files={"a.yaml": {"x": "text"}})
    assert form_lines(form(version(None, types))) == [
        "-c lr=                number (as in the first run)",
        "-c net.depth=         number (as in the first run)",
        "--set-file a.yaml:x=  text (as in the first run)",
    ]
    assert types_lines(types.config) == ["lr         number", "net.depth  number"]
    assert form(version(None)) == []
