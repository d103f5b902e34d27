r"""A container's log as text with a cursor: entries told apart, put together again, resumed where one left off.

The engine sends one frame per log *entry*: an 8-byte header (stream, three zeros, length), a time stamp of fixed
width, a space, and what the job wrote: a line with its ``\n``, or a part of at most 16 KiB of a longer one. All parts
of a line carry the stamp of its first. Stamps have nanoseconds and grow within a stream, but a stream's long line may
be older than the other stream's last. So a cursor names, for each stream, the stamp of its last entry and how many
entries with that stamp were read; reading goes on from the earlier of the two stamps and skips what each stream had.

Two faults of the engine's ``local`` log driver, seen with Docker 20.10: the newline after a line of several parts is
lost (it is put back when the next entry has another stamp), and following ends before the last part of an unfinished
line (so :mod:`workers.runners.docker` reads once more when the container has ended). The ``json-file`` driver is no
better: it replaces a character cut in two by the 16 KiB limit for good. No I/O here.

Source: https://docs.docker.com/reference/api/engine/, "attach to a container", stream format; tried with Docker 20.10.
"""

from __future__ import annotations

import calendar
import codecs
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.errors import ConfigError
from launch.plugins import LogChunk, LogStream

STREAMS: Mapping[int, LogStream] = {1: "stdout", 2: "stderr"}
STAMP_CHARS = len("2006-01-02T15:04:05.000000000Z")
SLACK_S = 60
"""How much older than the other stream's newest entry a stream's next entry may be, when it is not within a line."""
MAX_CHUNK_BYTES = 1 << 16

_HEADER_BYTES = 8


class Entry(NamedTuple):
    """One frame of the engine's log."""

    stream: LogStream
    stamp: str
    """When it was written, in UTC: sorts as text."""
    data: bytes


class Splitter:
    """Takes a log's bytes as they come, and gives the entries that are complete."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, pieces: Iterable[bytes]) -> list[Entry]:
        """Return the entries that end in these pieces; a started one waits for the next."""
        data = self._rest + b"".join(pieces)
        entries, start, length = [], 0, len(data)
        while length - start >= _HEADER_BYTES:
            body = start + _HEADER_BYTES
            end = body + int.from_bytes(data[start + 4 : body], "big")
            if length < end:
                break
            stamp = data[body : body + STAMP_CHARS].decode("ascii")
            entries.append(Entry(STREAMS[data[start]], stamp, data[body + STAMP_CHARS + 1 : end]))
            start = end
        self._rest = data[start:]
        return entries


@dataclass
class Place:
    """How far one stream has been read."""

    stamp: str = ""
    """Of the last entry read; empty: none was."""
    count: int = 0
    """How many entries with that stamp were read."""
    total: int = 0
    """How many entries were read in all: the place when stamps cannot be trusted."""
    is_open: bool = False
    """Whether the last entry did not end its line."""
    clock_went_back: bool = False
    half: bytes = b""
    """The start of a character whose rest is still to come."""

    def advance(self, entry: Entry) -> bytes:
        """Count an entry, and return what it adds to the text."""
        lost_newline = b"\n" if self.is_open and entry.stamp != self.stamp else b""
        self.clock_went_back = self.clock_went_back or entry.stamp < self.stamp
        self.count = self.count + 1 if entry.stamp == self.stamp else 1
        self.stamp = entry.stamp
        self.total += 1
        self.is_open = not entry.data.endswith(b"\n")
        return lost_newline + entry.data

    def text(self) -> str:
        """Return the place as a cursor's part."""
        flags = f"{self.is_open:d}{self.clock_went_back:d}"
        return f"{self.stamp},{self.count},{self.total},{flags},{self.half.hex()}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return the place that :meth:`text` told."""
        stamp, count, total, flags, half = text.split(",")
        return cls(stamp, int(count), int(total), flags[0] == "1", flags[1] == "1", bytes.fromhex(half))


@dataclass
class _Skip:
    """Which of a stream's entries were read before: older than ``stamp``, and ``count`` from there on."""

    stamp: str
    count: int

    def covers(self, entry: Entry) -> bool:
        if entry.stamp < self.stamp:
            return True
        self.count -= 1
        if self.count <= 0:
            self.stamp = ""  # from here on everything is new, whatever the clock says
        return self.count >= 0


@dataclass
class LogReader:
    """Turns entries into chunks, and keeps the cursor: the same one for reading on here and in another agent."""

    places: dict[LogStream, Place] = field(default_factory=lambda: {name: Place() for name in STREAMS.values()})

    @classmethod
    def at(cls, cursor: str | None) -> LogReader:
        """Return a reader that goes on where a chunk with that cursor ended.

        Raises:
            ConfigError: it is no cursor of this runner.
        """
        if not cursor:
            return cls()
        try:
            return cls(dict(zip(STREAMS.values(), map(Place.parse, cursor.split(";")), strict=True)))
        except (ValueError, IndexError) as exc:
            raise ConfigError(f"cursor: {cursor!r} is not a place in a Docker log") from exc

    @property
    def cursor(self) -> str:
        """Where the reader is."""
        return ";".join(self.places[name].text() for name in STREAMS.values())

    def resume(self) -> tuple[str, dict[LogStream, _Skip]]:
        """Return the ``since`` to ask the engine for (``"0"``: everything), and what to skip of its answer."""
        newest = max(place.stamp for place in self.places.values())
        if not newest or any(place.clock_went_back for place in self.places.values()):
            return "0", {name: _Skip("", place.total) for name, place in self.places.items()}
        floor = _earlier(newest, SLACK_S)
        skips = {name: _skip(place, floor) for name, place in self.places.items()}
        return _unix(min(skip.stamp for skip in skips.values())), skips

    def read(self, entries: Iterable[Entry], skips: Mapping[LogStream, _Skip]) -> Iterator[LogChunk]:
        """Yield what the entries add, joined as long as the stream stays the same."""
        stream, data = None, bytearray()
        for entry in entries:
            if skips[entry.stream].covers(entry):
                continue
            if stream and (entry.stream != stream or len(data) >= MAX_CHUNK_BYTES):
                yield self._chunk(stream, bytes(data))
                data.clear()
            stream = entry.stream
            data += self.places[stream].advance(entry)
        if stream:
            yield self._chunk(stream, bytes(data))

    def finish(self) -> Iterator[LogChunk]:
        """Yield what is left when nothing follows: a character that was never completed."""
        for name, place in self.places.items():
            if place.half:
                text, place.half = place.half.decode("utf-8", "replace"), b""
                yield LogChunk(name, text, self.cursor)

    def _chunk(self, stream: LogStream, data: bytes) -> LogChunk:
        place = self.places[stream]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(place.half + data)
        place.half = decoder.getstate()[0]
        return LogChunk(stream, text, self.cursor)


def _skip(place: Place, floor: str) -> _Skip:
    if place.stamp < floor and not place.is_open:
        return _Skip(floor, 0)
    return _Skip(place.stamp, place.count)


def _unix(stamp: str) -> str:
    """Return a stamp as the seconds with nine decimals that ``since`` takes."""
    seconds = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    return f"{seconds}.{stamp[20:29]}"


def _earlier(stamp: str, seconds: int) -> str:
    moment = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + stamp[19:]
