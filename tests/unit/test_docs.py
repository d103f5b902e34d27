"""The documents say what is true of the code: commands, settings, modules, files, states and links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

import launch
from launch.cli import cli
from launch.models import LEGAL_MOVES, CauseKind, CommandSource, GitSource, ImageSource, Job, LaunchSpec, RunState
from launch.settings import Settings
from launch.tracking import tracking_env

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
FILES_OF_A_JOB = {"requirements.txt", "requirements.frozen.txt", "runtime.txt", "train.py"}
SUFFIXES = (".py", ".lua", ".yaml", ".yml", ".toml", ".md", ".txt", ".conf")

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, title: str) -> str:
    """Return what stands below a heading of the second level, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title!r}"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return what stands between single backticks, outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def leaves(group: click.Group, above: str = "launch") -> Iterator[tuple[str, click.Command]]:
    """Yield ``(its words, command)`` of every command that does something itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from leaves(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


COMMANDS = dict(leaves(cli))


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(words: str) -> None:
    command = COMMANDS[words]
    assert command.help, f"{words} has no help"
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{words} {option.name} has no help"
    listed = re.findall(r"^\| `([^`]+)` \|", section(read("README.md"), "Commands"), re.MULTILINE)
    assert any(row == words or row.startswith(f"{words} ") for row in listed), f"the README does not list {words}"


def typed(text: str) -> Iterator[str]:
    """Yield each ``launch ...`` of a document: in shell blocks and between backticks."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(text)]:
        start = re.match(r"(?:\.venv/bin/)?launch (?=[a-z])", line)
        if start:
            yield line[start.end() :]


@each_document
def test_no_document_types_a_command_or_option_that_there_is_not(name: str) -> None:
    for line in typed(read(name)):
        words = shlex.split(line.partition(" -- ")[0].replace("...", ""), comments=True)
        command: click.Command = cli
        while isinstance(command, click.Group) and words:
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{name}: `launch {line}`: there is no command {words[0]!r}"
            command, words = found, words[1:]
        known = {option for param in command.params for option in param.opts}
        for option in (word.partition("=")[0] for word in words if word.startswith("-")):
            assert option in known, f"{name}: `launch {line}`: there is no option {option}"


def test_the_documents_type_commands() -> None:
    """The check above looks at something."""
    assert len(list(typed(read("README.md")))) > 30


# --- settings --------------------------------------------------------------------------------------------------------


def documented_fields(path: Path, class_name: str) -> dict[str, str | None]:
    """Return ``{field: the docstring under it}`` of a class in a module."""
    tree = ast.parse(path.read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    result: dict[str, str | None] = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = getattr(getattr(below, "value", None), "value", None) if isinstance(below, ast.Expr) else None
            result[node.target.id] = text if isinstance(text, str) else None
    return result


@pytest.mark.parametrize(
    ("module", "class_name"),
    [
        ("launch/settings.py", "Settings"),
        ("workers/config.py", "AgentConfig"),
        ("launch/git/access.py", "GitAccess"),
        ("launch/git/access.py", "GitCredential"),
        ("workers/docker_settings.py", "EngineSettings"),
        ("workers/docker_settings.py", "PipSettings"),
        ("workers/docker_settings.py", "RegistryLogin"),
        ("workers/runners/_process_options.py", "ProcessSettings"),
        *(("workers/secret_sources.py", f"{name}Settings") for name in ("Secret", "Env", "File", "Aws")),
    ],
)
def test_every_setting_has_its_docstring(module: str, class_name: str) -> None:
    fields = documented_fields(ROOT / module, class_name)
    assert fields
    assert [field for field, text in fields.items() if not text] == []


def test_the_readme_lists_the_settings_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(LAUNCH_\w+)` \| (.*?) \|", section(read("README.md"), "Settings"), re.MULTILINE))
    assert set(rows) == {f"LAUNCH_{field.upper()}" for field in Settings.model_fields}
    for field, info in Settings.model_fields.items():
        if isinstance(info.default, int | float):
            assert rows[f"LAUNCH_{field.upper()}"] == f"`{info.default:.10g}`"


@each_document
def test_no_document_names_a_setting_that_there_is_not(name: str) -> None:
    known = {f"LAUNCH_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"\bLAUNCH_[A-Z_]+[A-Z]\b", re.sub(r"WANDB_LAUNCH\w*", "", read(name)))) <= known


# --- modules, files, make targets ------------------------------------------------------------------------------------


def exists_as_a_name(dotted: str) -> bool:
    """Whether it is a module, something in one, or a group of entry points."""
    if f'entry-points."{dotted}"' in read("pyproject.toml"):
        return True
    first, *rest = dotted.split(".")
    found = import_module(first)
    for place, part in enumerate(rest):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(".".join([first, *rest[: place + 1]]))
            except ImportError:
                return False
    return True


@each_document
def test_every_module_and_function_in_backticks_exists(name: str) -> None:
    dotted = [found[0] for span in spans(read(name)) if (found := re.match(r"(launch|workers)(\.\w+)+(?=$|\()", span))]
    assert [span for span in dotted if not exists_as_a_name(span)] == []


@each_document
def test_every_file_in_backticks_exists(name: str) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    files = {path.name for folder in ("launch", "workers", "tests", "config", "deploy") for path in folders_of(folder)}
    missing = []
    for span in spans(read(name)):
        if not re.fullmatch(r"[\w./-]+", span) or "WANDB" in span:
            continue
        is_path = "/" in span and span.split("/")[0] in folders
        is_file = "/" not in span and span.endswith(SUFFIXES) and span not in FILES_OF_A_JOB
        if (is_path and not (ROOT / span).exists()) or (is_file and not ((ROOT / span).exists() or span in files)):
            missing.append(span)
    assert missing == []


def folders_of(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.*")


def test_the_module_map_is_complete() -> None:
    """Each module right below a package stands in ARCHITECTURE.md; a package stands for what is in it."""
    map_ = section(read("ARCHITECTURE.md"), "Modules")
    for package in ("launch", "workers"):
        for path in (ROOT / package).iterdir():
            is_module = path.suffix == ".py" or (path / "__init__.py").exists()
            if is_module and not path.name.startswith("_"):
                assert f"`{package}.{path.stem}`" in map_, f"{package}.{path.stem} is not in the module map"


def test_the_table_of_keys_has_what_the_scripts_list() -> None:
    table = section(read("ARCHITECTURE.md"), "Data in Redis")
    listed = re.findall(r"^--   ([a-z]+(?::\S+)?)  ", read("launch/scripts/prelude.lua"), re.MULTILINE)
    assert len(listed) > 10
    for key in listed:
        first, last = key.partition(":")[0], key.rpartition(":")[2]
        assert f"`{first}" in table, f"{key} is not in ARCHITECTURE.md"
        assert last in table, f"{key} is not in ARCHITECTURE.md"


def test_make_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    for name in DOCUMENTS:
        text = read(name)
        lines = [*spans(text), *(line for block in blocks(text, "sh") for line in block.splitlines())]
        typed_targets = {found[1] for line in lines if (found := re.match(r"make ([a-z]+)", line))}
        assert typed_targets <= targets, name
        if name == "CONTRIBUTING.md":
            assert targets - {"help", "venv"} <= typed_targets


# --- what the README says of runs ------------------------------------------------------------------------------------


def test_the_picture_of_a_runs_life_shows_legal_moves_only() -> None:
    (picture,) = blocks(read("README.md"), "mermaid")
    moves = re.findall(r"(\w+) --> (\w+)", picture)
    assert {state for move in moves for state in move} == set(RunState)
    for before, after in moves:
        assert RunState(after) in LEGAL_MOVES[RunState(before)], f"{before} --> {after}"


def test_the_causes_in_the_readme_are_kinds_of_causes() -> None:
    (listed,) = re.findall(r"a kind for programs \((.*?)\)", section(read("README.md"), "A run's life"), re.DOTALL)
    assert set(spans(listed)) <= set(CauseKind)


def test_the_variables_in_the_readme_are_given_to_jobs() -> None:
    rows = section(read("README.md"), "For users of W&B Launch")
    (row,) = [line for line in rows.splitlines() if line.startswith("| `WANDB_*` given")]
    given: set[str] = {"WANDB_API_KEY"}
    git = GitSource(remote="https://git.example/x", commit="0" * 40)
    sources = (ImageSource(image="busybox"), CommandSource(), git)
    for source, config in zip(sources, ({}, {"text": "x" * 40_000}, {}), strict=True):
        job = Job(source=source, entrypoint=("true",))
        spec = LaunchSpec(run_id="a", queue="q", resource="docker", job=job, name="n", author="ada", config=config)
        given |= set(tracking_env(spec, 1, base_url="http://127.0.0.1:1", wandb_dir=None))
    assert set(re.findall(r"`(WANDB_[A-Z0-9_]+)`", row)) - given == set()


def test_the_python_names_in_the_readme_are_public() -> None:
    used = set(re.findall(r"\blaunch\.([A-Za-z_]+)\(", read("README.md")))
    assert used
    assert used <= set(launch.__all__)


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_internal_links_resolve(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / (path or name)).exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(read(path or name)), f"{name}: {target}"
