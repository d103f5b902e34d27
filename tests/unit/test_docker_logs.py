"""A container's log read in pieces: the same text wherever a reader stops and another goes on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import ConfigError
from launch.plugins import LogChunk
from workers.runners.docker_logs import Entry, LogReader, Splitter

SECONDS = st.lists(st.integers(0, 200), min_size=1, max_size=30)


def stamp(seconds: int, nanoseconds: int = 0) -> str:
    return f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.{nanoseconds:09d}Z"


def frame(entry: Entry) -> bytes:
    body = f"{entry.stamp} ".encode() + entry.data
    return bytes([1 if entry.stream == "stdout" else 2, 0, 0, 0]) + len(body).to_bytes(4, "big") + body


def engine_since(entries: Sequence[Entry], since: str) -> list[Entry]:
    """What the engine answers: Docker 20.10 looks at each entry's stamp."""
    if since == "0":
        return list(entries)
    seconds, _, nanoseconds = since.partition(".")
    oldest = stamp(int(seconds) - 1767225600, int(nanoseconds))
    return [entry for entry in entries if entry.stamp >= oldest]


def read(entries: Sequence[Entry], cursor: str | None = None) -> list[LogChunk]:
    reader = LogReader.at(cursor)
    since, skips = reader.resume()
    return [*reader.read(engine_since(entries, since), skips), *reader.finish()]


def texts(chunks: Sequence[LogChunk]) -> dict[str, str]:
    joined = {"stdout": "", "stderr": ""}
    for chunk in chunks:
        joined[chunk.stream] += chunk.text
    return joined


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Entries as the engine keeps them: whole lines and parts of long ones, two streams, repeated stamps."""
    entries: list[Entry] = []
    now = {"stdout": 0, "stderr": 0}
    for gap in draw(SECONDS):
        stream = draw(st.sampled_from(["stdout", "stderr"]))
        now[stream] = max(now.values()) + gap
        text = draw(st.text("aé€😀", max_size=6)).encode()
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=2)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        parts[-1] += b"\n"
        entries += [Entry(stream, stamp(now[stream]), part) for part in parts]  # type: ignore[arg-type]
    return entries


@given(logs(), st.integers(0, 100))
def test_a_reader_goes_on_where_another_stopped(entries: list[Entry], stop: int) -> None:
    """From the cursor of any chunk, also one within a long line, the rest follows: no gap, no repeat."""
    whole = texts(read(entries))
    seen: list[LogChunk] = []
    for count in range(len(entries)):  # the log grows while it is read
        if count % (stop + 1) == 0:
            seen += read_live(entries[: count + 1], seen[-1].cursor if seen else None)
    seen += read(entries, seen[-1].cursor if seen else None)
    assert texts(seen) == whole


def read_live(entries: Sequence[Entry], cursor: str | None) -> list[LogChunk]:
    """Read what is there, and leave without an end."""
    reader = LogReader.at(cursor)
    since, skips = reader.resume()
    return list(reader.read(engine_since(entries, since), skips))


def test_a_clock_that_was_set_back_loses_nothing() -> None:
    """Once the reader has seen it, it counts entries from the start, since stamps tell nothing any more."""
    seconds = [100, 101, 40, 41, 102, 102, 103]
    streams = ["stdout", "stderr", "stdout", "stderr", "stderr", "stdout", "stdout"]
    entries = [Entry(name, stamp(at), b"%d\n" % at) for name, at in zip(streams, seconds, strict=True)]  # type: ignore[arg-type]
    whole = texts(read(entries))
    for count in range(3, len(entries)):
        first = read_live(entries[:count], None)
        rest = read(entries, first[-1].cursor)
        assert texts([*first, *rest]) == whole


@given(logs(), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_apart_in_any_pieces(entries: list[Entry], sizes: list[int]) -> None:
    """The network may cut the engine's answer anywhere."""
    data = b"".join(map(frame, entries))
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    splitter = Splitter()
    assert [entry for piece in pieces for entry in splitter.split([piece])] == entries
    assert Splitter().split(pieces) == entries
    assert Splitter().split([data[:-1]]) == entries[:-1]


def test_the_newline_that_the_engine_loses_comes_back() -> None:
    """The last part of a long line has none; another stamp tells that a new line began."""
    entries = [
        Entry("stdout", stamp(1), b"a" * 16384),
        Entry("stdout", stamp(1), b"end"),
        Entry("stdout", stamp(2), b"next\n"),
        Entry("stdout", stamp(3), b"no newline"),
    ]
    expected = "a" * 16384 + "end\nnext\nno newline"
    assert texts(read(entries))["stdout"] == expected
    first = read_live(entries[:2], None)
    assert texts([*first, *read(entries, first[-1].cursor)])["stdout"] == expected


def test_half_a_character_waits_for_the_rest() -> None:
    """A part that ends within a character is completed by the next, also in another reader."""
    entries = [Entry("stdout", stamp(1), b"x\xe2\x82"), Entry("stdout", stamp(1), b"\xac\n")]
    first = read_live(entries[:1], None)
    assert [chunk.text for chunk in first] == ["x"]
    assert texts(read(entries, first[-1].cursor))["stdout"] == "€\n"
    assert texts(read(entries[:1]))["stdout"] == "x\N{REPLACEMENT CHARACTER}"


def test_a_foreign_cursor_is_refused() -> None:
    """A cursor of another target is no place in a Docker log."""
    with pytest.raises(ConfigError, match="cursor: '12:34' is not a place"):
        LogReader.at("12:34")
