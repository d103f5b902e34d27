"""A job's code as an archive: the same bytes as tarfile writes, and nothing unpacked that leads out of its folder."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import code_archive
from launch.code_archive import Entry, check_archive, header, pack, pack_from
from launch.errors import PermanentError, TemporaryError

Member = tuple[str, bytes, str]
"""Name, kind, and where a link leads."""


def archived(to: Path, *members: Member | tarfile.TarInfo, tail: bytes = b"") -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            if not isinstance(member, tarfile.TarInfo):
                _, info.type, info.linkname = member
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    file = to / "code.tar.gz"
    file.write_bytes(gzip.compress(buffer.getvalue() + tail))
    return file


FILE, FOLDER, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


# --- writing ---------------------------------------------------------------------------------------------------------


@given(
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=130),
    st.sampled_from([(FILE, 0o644), (FILE, 0o755), (FOLDER, 0o755)]),
    st.integers(0, 7 << 30),
)
def test_headers_are_those_of_tarfile(name: str, kind_and_mode: tuple[bytes, int], size: int) -> None:
    kind, mode = kind_and_mode
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size if kind == FILE else 0

    made = header(name + "/" * (kind == FOLDER), kind, mode, info.size)

    assert made == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def test_other_programs_read_it(tmp_path: Path) -> None:
    """Long names, long links, more than a piece, and no empty rest of one."""
    names = {"a/b/c.py": 5, "x" * 150 + "/" + "y" * 200: 3, "big.bin": (3 << 20) + 7, "block.bin": 512, "empty": 0}
    entries = []
    for name, size in sorted(names.items()):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_bytes(os.urandom(size))
        entries.append(Entry(name, 0o644, size))
    os.symlink("z" * 160, tmp_path / "code" / "zz")
    entries.append(Entry("zz", 0o777, 0, "z" * 160))

    pack(tmp_path / "code", entries, tmp_path / "code.tar.gz")

    check_archive(tmp_path / "code.tar.gz")
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xzf", "code.tar.gz", "-C", "out"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert subprocess.run(["diff", "-r", "--no-dereference", "code", "out"], cwd=tmp_path).returncode == 0


def test_any_number_of_processors_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(bytes(range(256)) * 20_000)
    digests = set()
    for processors in (1, 2, 16, None):
        monkeypatch.setattr(code_archive.os, "cpu_count", lambda processors=processors: processors)
        digests.add(pack(tmp_path, [Entry("data", 0o644, 256 * 20_000)], tmp_path / "a.gz"))

    assert len(digests) == 1


def test_how_it_was_read_does_not_show(tmp_path: Path) -> None:
    content = os.urandom(3 << 20) + b"end"
    digests = set()
    for at_once in (1 << 20, 999_999, 4 << 20, 70_001):
        pieces = [content[start : start + at_once] for start in range(0, len(content), at_once)]
        entry = Entry("data", 0o644, len(content))
        digests.add(pack_from([entry], lambda _, pieces=pieces: pieces, tmp_path / "a.gz"))

    assert len(digests) == 1


@pytest.mark.parametrize(("size", "why"), [(3, "grew"), (5, "shrank")])
def test_a_file_of_another_size_is_noticed(tmp_path: Path, size: int, why: str) -> None:
    (tmp_path / "a").write_bytes(b"four")

    with pytest.raises(TemporaryError, match=f"a {why} while"):
        pack(tmp_path, [Entry("a", 0o644, size)], tmp_path / "a.gz")


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"four")
    (tmp_path / "a").symlink_to("secret")

    with pytest.raises(TemporaryError, match=r"a could not be put into the snapshot"):
        pack(tmp_path, [Entry("a", 0o644, 4)], tmp_path / "a.gz")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))

    with pytest.raises(TemporaryError, match=r"/dev/full cannot be written: .*No space left"):
        pack(tmp_path, [Entry("a", 0o644, 1 << 20)], Path("/dev/full"))


# --- checking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        [("./a/", FOLDER, ""), ("./a/b", FILE, "")],
        [("a/b", FILE, ""), ("a/", FOLDER, "")],
        [("a/link", LINK, "../b"), ("b", FILE, "")],
        [("a/link", LINK, "../nowhere/../b")],
        [("loop", LINK, "loop"), ("one", LINK, "two"), ("two", LINK, "one")],
        [("here", LINK, "."), ("there", LINK, "here/here/a")],
        [("x" * 300, FILE, ""), ("l", LINK, "y" * 300)],
    ],
)
def test_what_stays_inside_is_accepted(tmp_path: Path, members: list[Member]) -> None:
    check_archive(archived(tmp_path, *members))


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("/etc/cron.d/x", FILE, "")], "'/etc/cron.d/x' is outside"),
        ([("../x", FILE, "")], "outside"),
        ([("a/../../x", FILE, "")], "outside"),
        ([("a/..", FOLDER, "")], "outside"),
        ([("hard", HARD, "/etc/passwd")], "neither a file"),
        ([("a", FILE, ""), ("hard", HARD, "a")], "neither a file"),
        ([("null", tarfile.CHRTYPE, "")], "neither a file"),
        ([("disk", tarfile.BLKTYPE, "")], "neither a file"),
        ([("pipe", tarfile.FIFOTYPE, "")], "neither a file"),
        ([("link", LINK, "/etc/passwd")], "a link out of its folder, to '/etc/passwd'"),
        ([("link", LINK, "..")], "a link out"),
        ([("a/link", LINK, "../../x")], "a link out"),
        # Each looks harmless alone; together they lead to the folder above.
        ([("here", LINK, "."), ("a/up", LINK, "../here/..")], "'a/up' is a link out"),
        ([("deep", LINK, "a/b"), ("up", LINK, "deep/../../..")], "'up' is a link out"),
        ([("first", LINK, "second/x"), ("second", LINK, "/tmp")], "a link out"),
        ([("link", LINK, "sub"), ("link/x", FILE, "")], "below what is no folder"),
        ([("link", LINK, "sub"), ("link", FOLDER, "")], "twice"),
        ([("sub/x", FILE, ""), ("sub", LINK, "elsewhere")], "twice"),
        ([("a", FILE, ""), ("./a", LINK, "b")], "twice"),
        ([("a", FILE, ""), ("a/b", FILE, "")], "below what is no folder"),
    ],
)
def test_what_leads_out_is_refused(tmp_path: Path, members: list[Member], why: str) -> None:
    with pytest.raises(PermanentError, match=rf"refused: .*{why}"):
        check_archive(archived(tmp_path, *members))


def test_what_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    large = tarfile.TarInfo("zeros")
    large.size = 5_000

    check_archive(archived(tmp_path, large), max_bytes=5_000)
    with pytest.raises(PermanentError, match="'zeros' is beyond the size"):
        check_archive(archived(tmp_path, large), max_bytes=4_999)


def test_entries_behind_a_bad_header_are_refused(tmp_path: Path) -> None:
    """For tarfile the archive ends there; another program goes on to what follows."""
    good = archived(tmp_path, ("a", FILE, ""))
    content = gzip.decompress(good.read_bytes())[:512]
    evil = bytearray(content)
    evil[148] ^= 1
    good.write_bytes(gzip.compress(content + bytes(evil) + content + bytes(1024)))

    with pytest.raises(PermanentError, match="what is at byte 512' is no entry"):
        check_archive(good)
    with pytest.raises(PermanentError, match="is no entry"):
        check_archive(archived(tmp_path, ("a", FILE, ""), tail=content))


def test_a_name_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    (tmp_path / "code.tar.gz").write_bytes(gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))

    with pytest.raises(PermanentError, match=r"no whole gzip tar: .* bytes at once"):
        check_archive(tmp_path / "code.tar.gz")


def test_what_is_cut_off_or_no_archive_is_refused(tmp_path: Path) -> None:
    file = archived(tmp_path, ("a", FILE, ""))
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:20], b"", b"not at all", gzip.compress(b""), whole[:-8] + bytes(8)):
        file.write_bytes(damaged)
        with pytest.raises(PermanentError, match=r"no whole gzip tar|no entry"):
            check_archive(file)
