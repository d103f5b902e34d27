"""Requirements from pyproject.toml and uv.lock: in which order, and what becomes of each kind of source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch.errors import ConfigError
from launch.requirements import find_requirements, package_lines

PYPROJECT = '[project]\nname = "My.Proj"\nversion = "1"\ndependencies = [{}]\n'


def found(root: Path, **files: str) -> tuple[str | None, list[str]]:
    for name, text in files.items():
        (
            root / {"pyproject": "pyproject.toml", "lock": "uv.lock", "frozen": "requirements.frozen.txt"}[name]
        ).write_text(text)
    return find_requirements(root)


def locked(
    *packages: str, needs: str = '{ name = "a" }', asked: str = '{ name = "a" }', head: str = "version = 1\n"
) -> str:
    root = f"""
[[package]]
name = "my-proj"
version = "1"
source = {{ virtual = "." }}
dependencies = [{needs}]
[package.optional-dependencies]
gui = [{{ name = "only-gui" }}]
[package.dev-dependencies]
dev = [{{ name = "only-dev" }}]
[package.metadata]
requires-dist = [{asked}, {{ name = "only-gui", marker = "extra == 'gui'" }}]
"""
    return head + root + "".join(f"\n[[package]]\n{package}\n" for package in packages)


def package(
    name: str, *more: str, version: str = "1.0", source: str = '{ registry = "https://index.example/simple" }'
) -> str:
    return "\n".join([f'name = "{name}"', f'version = "{version}"', f"source = {source}", *more])


OTHERS = (package("only-gui"), package("only-dev"))


# --- the order -------------------------------------------------------------------------------------------------------


def test_the_first_file_that_says_something_counts(tmp_path: Path) -> None:
    assert found(tmp_path, frozen="frozen\n") == ("frozen\n", [])
    assert found(tmp_path, lock=locked(package("a"), *OTHERS))[0] == "a==1.0\n"
    assert found(tmp_path, pyproject="[tool.ruff]\n")[0] == "a==1.0\n"
    assert found(tmp_path, pyproject='[project]\nname = "other"\nversion = "1"\ndependencies = ["b>2"]\n')[0] == "b>2\n"
    (tmp_path / "requirements.txt").write_text("c\n")
    assert find_requirements(tmp_path) == ("c\n", [])
    assert find_requirements(tmp_path, tmp_path / "uv.lock")[0] == "a==1.0\n"
    assert find_requirements(tmp_path, tmp_path / "pyproject.toml")[0] == "b>2\n"
    (tmp_path / "requirements.txt").write_text("# nothing on purpose\n")
    assert find_requirements(tmp_path) == (None, [])


def test_nothing_is_none(tmp_path: Path) -> None:
    assert find_requirements(tmp_path) == (None, [])


@pytest.mark.parametrize(
    ("dependencies", "asked"),
    [
        ('"A"', '{ name = "a" }'),
        ('"a[x,y]>=1,<2"', '{ name = "a", extras = ["y", "x"], specifier = "<2,>=1" }'),
        ('"a>=1"', '{ name = "a", git = "https://host/a" }'),
        ('"a>=1"', '{ name = "a", specifier = ">=1", index = "https://own.example/simple" }'),
    ],
)
def test_a_lock_that_fits_its_project_pins_it(tmp_path: Path, dependencies: str, asked: str) -> None:
    lock = locked(package("a"), *OTHERS, asked=asked)

    assert found(tmp_path, lock=lock, pyproject=PYPROJECT.format(dependencies)) == ("a==1.0\n", [])


@pytest.mark.parametrize(
    ("dependencies", "why"),
    [
        ('"a>=3"', "a changed"),
        ('"a[x]"', "a changed"),
        ('"a", "b"', "b changed"),
        ('"b"', "a, b changed"),
        ("", "a changed"),
    ],
)
def test_a_lock_of_before_is_left_out_and_noted(tmp_path: Path, dependencies: str, why: str) -> None:
    text, notes = found(tmp_path, lock=locked(package("a"), *OTHERS), pyproject=PYPROJECT.format(dependencies))

    assert "==" not in (text or "")
    assert why in notes[0]
    assert "uv lock" in notes[0]


def test_computed_dependencies_are_known_from_a_lock_only(tmp_path: Path) -> None:
    text, notes = found(tmp_path, pyproject='[project]\nname = "my-proj"\ndynamic = ["dependencies"]\n')

    assert text is None
    assert "are computed" in notes[0]
    assert found(tmp_path, lock=locked(package("a"), *OTHERS)) == ("a==1.0\n", [])


# --- pyproject.toml --------------------------------------------------------------------------------------------------


def test_sources_are_kept(tmp_path: Path) -> None:
    """The package of that name in an index may be another."""
    uv = """
[tool.uv.sources]
A = { git = "https://host/team/a", tag = "v1", subdirectory = "python" }
b = { url = "https://host/b-1.whl", marker = "sys_platform == 'linux'" }
c = [{ git = "git@host:team/c.git", marker = "os_name == 'nt'" }, { index = "own" }]
[[tool.uv.index]]
name = "own"
url = "https://own.example/simple"
"""
    text, _ = found(tmp_path, pyproject=PYPROJECT.format('"a>1", "b[x]; python_version > \'3.8\'", "c~=1.0", "d"') + uv)

    assert text is not None
    assert text.replace(" @ ", "@ ").splitlines() == [  # which of them, packaging's version says
        "--extra-index-url https://own.example/simple",
        "a@ git+https://host/team/a@v1#subdirectory=python",
        'b[x]@ https://host/b-1.whl ; python_version > "3.8" and sys_platform == "linux"',
        'c@ git+ssh://git@host/team/c.git ; os_name == "nt"',
        "c~=1.0",
        "d",
    ]


@pytest.mark.parametrize(
    ("dependencies", "more", "why"),
    [
        ('"a @ file:///x"', "", "without the job's code"),
        ('"a b"', "", "'a b' is no requirement"),
        ("3", "", "3 is no requirement"),
        ('"a"', "[tool.uv.sources]\na = { path = '../a' }", "tool/uv/sources/a: path = '../a': .* publish"),
        ('"a"', "[tool.uv.sources]\na = { workspace = true }", "workspace = True"),
        ('"a"', "[tool.uv.sources]\na = 3", "should be a table"),
        ('"a"', "[tool.uv.sources]\na = { git = 'https://h/a', marker = 'x y' }", "is no marker"),
        ('"a"', "[tool]\nuv = 3", "uv: should be a table"),
        ('"a', "", r"pyproject\.toml: is not TOML"),
    ],
)
def test_a_project_that_cannot_travel_is_refused(tmp_path: Path, dependencies: str, more: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        found(tmp_path, pyproject=PYPROJECT.format(dependencies) + more)


def test_dependencies_that_are_no_list_are_refused(tmp_path: Path) -> None:
    for text in ('[project]\ndependencies = "a"\n', "project = 3\n"):
        with pytest.raises(ConfigError, match="should be a"):
            found(tmp_path, pyproject=text)


# --- uv.lock ---------------------------------------------------------------------------------------------------------


def test_what_is_reached_is_pinned_with_the_markers_of_the_way(tmp_path: Path) -> None:
    packages = [
        package("a", 'dependencies = [{ name = "B", marker = "os_name == \'nt\'" }, { name = "both" }]'),
        package("b", 'dependencies = [{ name = "deep", marker = "python_version < \'3.12\'" }, { name = "a" }]'),
        package("deep"),
        package("both", "dependencies = [{ name = \"deep\", marker = \"sys_platform == 'x' or os_name == 'y'\" }]"),
        package("unreached"),
    ]

    text, _ = found(tmp_path, lock=locked(*packages, *OTHERS))

    assert text is not None
    assert text.splitlines() == [
        "a==1.0",
        "b==1.0 ; os_name == 'nt'",
        "both==1.0",
        "deep==1.0 ; (sys_platform == 'x' or os_name == 'y') or (os_name == 'nt' and python_version < '3.12')",
    ]


def test_extras_that_are_asked_for_are_followed(tmp_path: Path) -> None:
    extras = '[package.optional-dependencies]\nx = [{ name = "c", extra = ["y"] }]\nz = [{ name = "only-z" }]'
    packages = [
        package("a", extras),
        package("c", '[package.optional-dependencies]\ny = [{ name = "d", marker = "os_name == \'nt\'" }]'),
        package("d"),
        package("only-z"),
    ]

    text, _ = found(tmp_path, lock=locked(*packages, *OTHERS, needs='{ name = "a", extra = ["x"] }'))

    assert text is not None
    assert package_lines(text) == ["a==1.0", "c==1.0", "d==1.0 ; os_name == 'nt'"]


def test_a_package_in_several_versions_is_told_apart(tmp_path: Path) -> None:
    registry = 'source = { registry = "https://index.example/simple" }'
    needs = ", ".join(
        f'{{ name = "a", version = "{version}", {registry}, marker = "os_name {sign} \'nt\'" }}'
        for version, sign in (("1.0", "=="), ("2.0", "!="))
    )

    text, _ = found(tmp_path, lock=locked(package("a"), package("a", version="2.0"), *OTHERS, needs=needs))

    assert text == "a==1.0 ; os_name == 'nt'\na==2.0 ; os_name != 'nt'\n"


def test_hashes_are_kept_if_all_have_them(tmp_path: Path) -> None:
    files = [f'{{ url = "https://host/f{n}", hash = "sha256:{n * 64}" }}' for n in "21"]
    hashed = package("a", f"sdist = {files[0]}", f"wheels = [{files[1]}]", 'dependencies = [{ name = "b" }]')

    text, _ = found(tmp_path, lock=locked(hashed, package("b", f"sdist = {files[0]}"), *OTHERS))
    one, two = (f" \\\n    --hash=sha256:{digit * 64}" for digit in "12")
    assert text == f"a==1.0{one}{two}\nb==1.0{two}\n"
    text, _ = found(tmp_path, lock=locked(hashed, package("b"), *OTHERS))
    assert text == "a==1.0\nb==1.0\n"


def test_sources_of_a_lock_are_kept(tmp_path: Path) -> None:
    commit = "c" * 40
    needs = ", ".join(f'{{ name = "{name}" }}' for name in "abcd")
    packages = [
        package("a", source=f'{{ git = "https://host/a?tag=v1&subdirectory=python#{commit}" }}'),
        package("b", source='{ url = "https://host/b-1.0-py3-none-any.whl" }'),
        package("c", source='{ registry = "https://own.example/simple" }'),
        *(package(name, source='{ registry = "https://index.example/simple" }') for name in "de"),
        package("f", source='{ registry = "https://index.example/simple" }'),
    ]

    text, _ = found(tmp_path, lock=locked(*packages, *OTHERS, needs=needs + ', { name = "e" }, { name = "f" }'))

    assert text is not None
    assert text.splitlines() == [
        "--extra-index-url https://own.example/simple",
        f"a @ git+https://host/a@{commit}#subdirectory=python",
        "b @ https://host/b-1.0-py3-none-any.whl",
        *(f"{name}==1.0" for name in "cdef"),
    ]


def test_an_index_that_the_project_names_is_named(tmp_path: Path) -> None:
    index = '[[tool.uv.index]]\nurl = "https://index.example/simple/"\ndefault = true\n'

    text, _ = found(tmp_path, lock=locked(package("a"), *OTHERS), pyproject=PYPROJECT.format('"a"') + index)

    assert text == "--index-url https://index.example/simple\na==1.0\n"


@pytest.mark.parametrize("kind", ["editable", "directory", "path", "virtual", "registry"])
def test_a_folder_of_this_machine_cannot_travel(tmp_path: Path, kind: str) -> None:
    lock = locked(package("a", source=f'{{ {kind} = "packages/a" }}'), *OTHERS)

    with pytest.raises(ConfigError, match=rf"package 'a' is from {kind} 'packages/a'"):
        found(tmp_path, lock=lock)


def test_ways_without_end_are_cut(tmp_path: Path) -> None:
    """Two edges between each two packages double the ways; what all have in common stays."""
    packages = []
    for number in range(12):
        edges = ", ".join(
            f'{{ name = "p{number + 1}", marker = "extra == \'{number}{side}\'" }}' for side in ("left", "right")
        )
        packages.append(package(f"p{number}", f"dependencies = [{edges}]"))
    needs = '{ name = "p0", marker = "sys_platform == \'win32\'" }'

    text, _ = found(tmp_path, lock=locked(*packages, package("p12"), *OTHERS, needs=needs))

    assert text is not None
    assert "p12==1.0 ; sys_platform == 'win32'" in text.splitlines()


@pytest.mark.parametrize(
    ("lock", "why"),
    [
        (locked(package("a"), *OTHERS, head="version = 2\n"), "version: is 2, and only 1"),
        ("", "version: is None"),
        ("version = ", "not TOML"),
        ('version = 1\n[[package]]\nname = "a"\nsource = { editable = "x" }\n', "no project of its own folder"),
        (locked(*OTHERS), "package 'a' is there 0 times"),
        (locked(package("a"), package("a", version="2"), *OTHERS), "package 'a' is there 2 times"),
        (locked(package("a", version="1\\nevil"), *OTHERS), "is no requirement"),
        (locked(package("a"), *OTHERS, needs='{ name = "a", marker = "x\\n--index-url y" }'), "is no requirement"),
        (locked(package("a"), *OTHERS, needs="3"), "should be"),
        (locked(package("a", source="3"), *OTHERS), "package/1/source"),
        ("version = 1\npackage = 3\n", "package"),
    ],
)
def test_a_bad_lock_is_refused(tmp_path: Path, lock: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        found(tmp_path, lock=lock)


def test_pip_reads_what_is_written(tmp_path: Path) -> None:
    """Every line of every kind, by pip's own parser."""
    commit = "c" * 40
    packages = [
        package("a", source=f'{{ git = "ssh://git@host/a?rev=main#{commit}" }}'),
        package("b", f'sdist = {{ url = "https://host/b", hash = "sha256:{"1" * 64}" }}'),
    ]
    needs = '{ name = "a" }, { name = "b", marker = "os_name == \'nt\'" }'
    text, _ = found(tmp_path, lock=locked(*packages, *OTHERS, needs=needs))
    assert text is not None
    assert [Requirement(line).name for line in package_lines(text)] == ["a", "b"]
    (tmp_path / "r.txt").write_text("".join(f"{line}\n" for line in text.splitlines() if "git+" not in line))

    command = [sys.executable, "-m", "pip", "download", "--no-index", "--disable-pip-version-check", "-r", "r.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Ignoring b: markers" in done.stdout + done.stderr
