"""``manage_config_file`` and its kin, as a job's script calls them: on the environment, the file, and nothing else."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import launch
from launch.errors import ConfigError
from launch.inputs import checked_path, file_overrides, merged_values, selected, split_path
from launch.models import CommandSource, Job, LaunchSpec
from launch.tracking import launch_env

CONFIG = {"model": {"name": "resnet", "layers": 18}, "epochs": 10}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config file, outside of a launch."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_CONFIG", "WANDB_LAUNCH_FILE_OVERRIDES", "WANDB_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    Path("config.yaml").write_text("# of the author\n" + yaml.safe_dump(CONFIG, sort_keys=False))
    return tmp_path


def launched(monkeypatch: pytest.MonkeyPatch, *, chunk_chars: int = 32670, **fields: Any) -> None:
    """Set the environment of a launch."""
    job = Job(source=CommandSource(), entrypoint=("python", "x.py"))
    spec = LaunchSpec(run_id="r1", queue="q", resource="process", job=job, **fields)
    for name, value in launch_env(spec, 1, chunk_chars=chunk_chars).items():
        monkeypatch.setenv(name, value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_outside_of_a_launch_nothing_changes() -> None:
    before = Path("config.yaml").read_text()
    launch.manage_config_file("config.yaml", include=["model"], schema={"type": "object"})
    launch.manage_wandb_config(exclude=["seed"])
    assert Path("config.yaml").read_text() == before
    assert launch.load_wandb_config() == {}


def test_a_launchs_values_are_put_into_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings merge, the rest is replaced, null is a value; order and mode stay, and no other file is left behind."""
    Path("config.yaml").chmod(0o640)
    launched(monkeypatch, files={"config.yaml": {"model": {"layers": 50}, "epochs": None, "new": {"a": [1]}}})

    launch.manage_config_file("./config.yaml")

    text = Path("config.yaml").read_text()
    expected = {"model": {"name": "resnet", "layers": 50}, "epochs": None, "new": {"a": [1]}}
    assert yaml.safe_load(text) == expected
    assert list(yaml.safe_load(text)) == list(expected)
    assert stat.S_IMODE(Path("config.yaml").stat().st_mode) == 0o640
    assert [path.name for path in Path().iterdir()] == ["config.yaml"]


def test_json_is_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("conf").mkdir()
    Path("conf/a.json").write_text('{"lr": 0.1, "name": "ü"}')
    launched(monkeypatch, files={"conf/a.json": {"lr": 0.5}})
    launch.manage_config_file("conf/a.json")
    assert json.loads(Path("conf/a.json").read_text()) == {"lr": 0.5, "name": "ü"}


def test_a_link_keeps_pointing_where_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("link.yaml").symlink_to("config.yaml")
    launched(monkeypatch, files={"link.yaml": {"epochs": 3}})
    launch.manage_config_file("link.yaml")
    assert Path("link.yaml").is_symlink()
    assert yaml.safe_load(Path("config.yaml").read_text())["epochs"] == 3


def test_a_file_that_is_right_already_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a job calls it, and the code may lie where nobody can write."""
    launched(monkeypatch, files={"config.yaml": {"epochs": 10}})
    before = Path("config.yaml").stat().st_mtime_ns, Path("config.yaml").read_text()
    launch.manage_config_file("config.yaml")
    assert (Path("config.yaml").stat().st_mtime_ns, Path("config.yaml").read_text()) == before


def test_a_file_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays as it was."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    launched(monkeypatch, files={"config.yaml": {"epochs": 3}})
    before = Path("config.yaml").read_text()
    monkeypatch.setattr("launch.inputs.tempfile.mkstemp", full)
    with pytest.raises(ConfigError, match=r"config file 'config\.yaml': cannot be written: .*No space left"):
        launch.manage_config_file("config.yaml")
    assert Path("config.yaml").read_text() == before


def test_an_empty_yaml_file_is_an_empty_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.yaml").write_text("# nothing yet\n")
    launched(monkeypatch, files={"config.yaml": {"a": 1}})
    launch.manage_config_file("config.yaml")
    assert yaml.safe_load(Path("config.yaml").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/config.yaml", "should be relative to the job's folder"),
        ("../config.yaml", "should be relative to the job's folder"),
        ("a/../../config.yaml", "should be relative to the job's folder"),
        ("missing.yaml", "there is no such file"),
        ("config.toml", "should end with .json, .yaml or .yml"),
        ("", "should be the path of a JSON or YAML file"),
    ],
)
def test_a_wrong_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch.manage_config_file(path)
    assert message in str(caught.value)


def test_two_dots_in_a_name_lead_nowhere() -> None:
    assert checked_path("a..b/./c.yaml") == "a..b/c.yaml"


@pytest.mark.parametrize("text", ["- a\n", "a: [", "a: 1\n---\nb: 2\n", "3"])
def test_a_file_that_holds_no_mapping_is_refused(text: str) -> None:
    Path("config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config file 'config\.yaml'"):
        launch.manage_config_file("config.yaml")


@pytest.mark.parametrize("text", ["{", "[1]", '{"config.yaml": 3}'])
def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WANDB_LAUNCH_FILE_OVERRIDES", text)
    with pytest.raises(ConfigError, match=r"^WANDB_LAUNCH_FILE_OVERRIDES"):
        launch.manage_config_file("config.yaml")


# --- the environment --------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(40, 512))
def test_values_of_any_length_arrive_whole(length: int, chunk_chars: int) -> None:
    """In one variable or in pieces, none longer than asked."""
    config, files = {"text": "ü" * length}, {"a.yaml": {"text": "x" * length * 3}}
    with pytest.MonkeyPatch.context() as monkeypatch:
        launched(monkeypatch, chunk_chars=chunk_chars, config=config, files=files)
        assert (launch.load_wandb_config(), file_overrides()) == (config, files)


def test_wandbs_own_reader_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is W&B Launch's: its SDK puts the pieces together too."""
    files = pytest.importorskip("wandb.sdk.launch.inputs.files", reason="needs the wandb SDK: pip install wandb")
    values = {"a.yaml": {"text": "x" * 1000}}
    launched(monkeypatch, chunk_chars=512, files=values)
    monkeypatch.setattr(files.FileOverrides, "_instance", None)
    assert files.FileOverrides().overrides == values


# --- include and exclude ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        (r"a\.b", ("a.b",)),
        (r"a\.b.c", ("a.b", "c")),
        (r"a\b", (r"a\b",)),
        (r"a\\", (r"a\\",)),
    ],
)
def test_paths_with_dots(path: str, keys: tuple[str, ...]) -> None:
    """A backslash that escapes no dot is itself; W&B's reader never returns from one."""
    assert split_path(path) == keys


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", 3])
def test_a_path_with_an_empty_key_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="config path"):
        split_path(path)


@given(st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_keys_can_be_written_as_a_path(keys: list[str]) -> None:
    assert split_path(".".join(key.replace(".", r"\.") for key in keys)) == tuple(keys)


def test_a_text_instead_of_a_list_is_refused() -> None:
    """``include="model"`` would be five paths of one letter."""
    with pytest.raises(ConfigError, match="include: should be a list"):
        launch.manage_wandb_config(include="model")


trees = st.recursive(
    st.integers(0, 3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=8,
).map(lambda tree: tree if isinstance(tree, dict) else {"a": tree})
paths = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple), max_size=3)


def flat(tree: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict):
        return {above: tree}
    return {path: value for key, item in tree.items() for path, value in flat(item, (*above, key)).items()}


@given(trees, paths, paths)
def test_exclude_goes_before_include(tree: dict[str, Any], include: Any, exclude: Any) -> None:
    """A value is selected when it lies below an included path, or none is given, and below no excluded one."""

    def lies_below(path: tuple[str, ...], starts: Any) -> bool:
        return any(path[: len(start)] == start for start in starts)

    expected = {
        path: value
        for path, value in flat(tree).items()
        if (not include or lies_below(path, include)) and not lies_below(path, exclude)
    }
    assert {path: value for path, value in flat(selected(tree, include, exclude)).items() if path} == expected


@given(trees, trees)
def test_merging_twice_is_merging_once(config: dict[str, Any], override: dict[str, Any]) -> None:
    """Every rank of a job puts the same values into the same file."""
    once = merged_values(config, override)
    assert merged_values(once, override) == once
    assert flat(once).items() >= flat(override).items()


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_script_needs_neither_wandb_nor_our_own_dependencies() -> None:
    """Only what is needed is loaded: PyYAML for a YAML file, nothing for the config."""
    heavy = ["wandb", "jsonschema", "pydantic", "redis", "celery", "click"]
    script = (
        "import sys, launch; launch.manage_wandb_config(include=['a']); launch.load_wandb_config(); "
        f"launch.manage_config_file('config.yaml'); print([name for name in {heavy} if name in sys.modules])"
    )
    root = Path(launch.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert done.stdout.strip() == "[]", done.stderr


def test_a_server_that_is_away_does_not_stop_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_JOB_NAME", "openlaunch-job-inputs")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    launch.manage_wandb_config(include=["lr"], schema={"type": "object"})
    launch.manage_config_file("config.yaml")
