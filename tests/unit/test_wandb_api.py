"""The wandb SDK's wire format: what is read from its requests, what is refused, and where files may go."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.server import answers
from launch.server import wandb_api as api
from launch.server.files import BadNameError, place_for

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CONFIG = st.dictionaries(st.text(max_size=8).filter(lambda key: key != "_wandb"), JSON, max_size=5)


def post(**body: object) -> api.Post:
    return api.read_post(json.dumps(body).encode())


def history(*lines: str, offset: int = 0) -> dict[str, object]:
    return {"wandb-history.jsonl": {"offset": offset, "content": list(lines)}}


def test_post_of_a_running_script() -> None:
    """Rows with their place, and the last summary; the console's lines are the agent's."""
    read = post(
        files={
            **history('{"loss":1}', '{"loss":0.5}', offset=7),
            "wandb-events.jsonl": {"offset": 2, "content": ['{"cpu":1}']},
            "wandb-summary.json": {"offset": 0, "content": ['{"loss":1}', '{"loss":0.5,"_wandb":{"runtime":3}}']},
            "output.log": {"offset": 0, "content": ["hello"]},
        }
    )

    assert read.history == api.Rows(7, ('{"loss":1}', '{"loss":0.5}'))
    assert read.system == api.Rows(2, ('{"cpu":1}',))
    assert read.summary == {"loss": 0.5}
    assert read.exit_code is None
    assert read.refused == ()


def test_last_post_tells_the_exit_code() -> None:
    """Only a complete stream has an exit code; a heartbeat says nothing."""
    assert post(complete=True, exitcode=3).exit_code == 3
    assert post(complete=True).exit_code == 0
    assert post() == api.Post()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"files": [1]}',
        b'{"files": {"wandb-history.jsonl": {"offset": -1, "content": []}}}',
        b'{"files": {"wandb-history.jsonl": {"offset": 0, "content": [3]}}}',
        b'{"complete": true, "exitcode": "x"}',
    ],
)
def test_post_that_no_sdk_sends(body: bytes) -> None:
    """Nonsense is one kind of error, whatever it is."""
    with pytest.raises(api.BadPostError):
        api.read_post(body)


def test_refused_rows_keep_the_places_of_the_others() -> None:
    """A row that is too long or broken leaves a gap, so that the numbers behind it stay right."""
    long = json.dumps({"x": "y" * api.MAX_ROW_BYTES})

    read = post(files=history('{"a":1}', long, "nonsense", "[1]", '"\ud800', '{"b":2}', offset=5))

    assert read.history == api.Rows(5, ('{"a":1}', "", "", "", "", '{"b":2}'))
    assert len(read.refused) == 4
    assert "row 6: of 10" in read.refused[0]
    assert "row 7: is not a JSON object" in read.refused[1]


def test_numbers_that_json_has_not_become_words() -> None:
    """The SDK writes a bare NaN, which readers of JSON choke on."""
    read = post(files={**history('{"a":NaN,"b":-Infinity,"c":"NaN"}')})

    assert read.history is not None
    assert json.loads(read.history.rows[0], parse_constant=pytest.fail) == {"a": "NaN", "b": "-Infinity", "c": "NaN"}


@given(CONFIG)
def test_config_comes_back_as_it_was(config: dict[str, object]) -> None:
    """What the SDK wraps for the wire is plain in the record, and wrapped again for a script that resumes."""
    refused: list[str] = []

    assert api.plain_config(api.wrapped_config(config), refused) == config
    assert refused == []


def test_config_loses_what_is_the_sdks_own() -> None:
    """Telemetry is no setting of the user's."""
    assert api.plain_config('{"lr":{"value":0.5,"desc":null},"_wandb":{"value":{}}}', []) == {"lr": 0.5}


def test_summary_that_is_too_long_loses_its_largest_values() -> None:
    """One huge value does not cost the others."""
    refused: list[str] = []

    kept = api.plain_summary(json.dumps({"best": 0.9, "huge": "x" * api.MAX_OBJECT_BYTES}), refused)

    assert kept == {"best": 0.9}
    assert refused[0].startswith("the summary/huge: of 1048")


def test_key_of_an_authorization_header() -> None:
    """The key is the password, whatever the name; all else is no key."""
    good = base64.b64encode(b"api:abc").decode()

    assert api.key_of(f"Basic {good}") == api.key_of(f"basic {good}") == "abc"
    assert api.upload_headers("abc") == [f"Authorization:Basic {good}"]
    for bad in (None, "", "Basic", "Basic !!!", "Bearer abc", "Basic " + base64.b64encode(b"\xff\xfe").decode()):
        assert api.key_of(bad) is None


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        ({"query": "query Viewer { viewer { id } }"}, "Viewer"),
        ({"query": "\n  mutation UpsertBucket($id: String) { x }"}, "UpsertBucket"),
        ({"query": "query A { x } query B { x }", "operationName": "B"}, "B"),
        ({"query": "{ viewer { id } }"}, "viewer"),
        ({"query": "query { viewer { id } }"}, "viewer"),
        ({"query": ""}, ""),
    ],
)
def test_operation_of_a_query(body: dict[str, object], operation: str) -> None:
    """Named in the request, in the query, or by its first field."""
    assert api.read_query(json.dumps(body).encode()).operation == operation


def test_variables_may_be_one_input() -> None:
    """Some SDKs give fields one by one, some in one input: handlers see no difference."""
    for variables in ({"name": "r1"}, {"input": {"name": "r1"}}, '{"name": "r1"}'):
        query = api.read_query(json.dumps({"query": "mutation M { x }", "variables": variables}).encode())
        assert query.text_of("missing", "name") == "r1"


@given(st.text(max_size=20))
def test_ids_hold_their_names(name: str) -> None:
    """An id of one kind tells its name, and is none of another kind."""
    name = name.encode(errors="ignore").decode()
    made = answers.storage_id(name, "Artifact")

    assert answers.name_of(made, "Artifact") == name
    assert answers.name_of(made, "Manifest") is None
    assert answers.name_of("no id", "Artifact") is None


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=4))
def test_upload_url_leads_to_its_name(parts: list[str]) -> None:
    """Whatever a file is called, its URL has one meaning."""
    parts = [part.encode(errors="replace").decode() for part in parts]

    path = urlsplit(answers.path_url("http://host:1/", "files", *parts)).path

    assert unquote(path) == "/files/" + "/".join(parts)


@given(st.text(alphabet="ab./\\\x00\n~ü", max_size=12))
def test_file_lands_below_its_folder_or_nowhere(name: str) -> None:
    """No name climbs out."""
    folder = Path("/home/runs/r1/files")
    try:
        place = place_for(folder, name)
    except BadNameError:
        return
    assert folder in place.parents
    assert place == Path(str(place)).resolve()
