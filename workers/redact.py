"""One redactor for all that an agent passes on: secrets masked, in whatever form a job may print them. No I/O here.

A value is masked as it is, line by line when it has several, and as URL, base64, JSON, HTML, Python and shell quoting
write it. In a stream it may come in pieces: what could be the beginning of one is held back until more comes, or the
stream is quiet for a moment.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar
from urllib.parse import quote, quote_plus

from launch.plugins import MASK

log = logging.getLogger(__name__)

MIN_CHARS = 4
"""A shorter value is not masked: it would turn up in every other word."""
MIN_LINE_CHARS = 8
"""A shorter line of a value with several is masked only where the whole is: ``}`` is no secret."""
HOLD_S = 0.2
"""How long text that may be the beginning of a secret waits for what follows."""
_MIN_BASE64_CHARS = 8
_SENSITIVE_KEY = re.compile("key|token|secret|pass|cred|auth", re.IGNORECASE)

Place = TypeVar("Place")


class Redactor:
    """Masks values in texts; several threads may share one."""

    def __init__(self, values: Iterable[str]) -> None:
        self.values = frozenset(values)
        forms = {form for value in self.values for form in _forms(value) if len(form) >= MIN_CHARS}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def mask(self, text: str) -> str:
        """Return the text with ``********`` for each value in it; of several that begin at one place, the longest."""
        return self._pattern.sub(MASK, text) if self._is_in(text) else text

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where values are in a text, in order."""
        return [found.span() for found in self._pattern.finditer(text)] if self._is_in(text) else []

    def _is_in(self, text: str) -> bool:
        # Looking for a hundred long words takes a tenth of the time that one pattern of them takes to find nothing.
        return any(form in text for form in self._forms)

    def open_from(self, text: str) -> int:
        """Return where the longest end of the text begins that may be the beginning of a value; its length: nowhere."""
        if not self._forms:
            return len(text)
        after_newline = text.rfind("\n") + 1
        return min(
            _open_from(text, self._within_line, max(after_newline, len(text) - self._longest(self._within_line))),
            _open_from(text, self._over_lines, len(text) - self._longest(self._over_lines)),
        )

    def is_half(self, beginning: str) -> bool:
        """Whether a text is so much of the beginning of a value that it should not be seen."""
        forms = (form for group in (self._within_line, self._over_lines) for form in group.get(beginning[:1], ()))
        return len(beginning) >= MIN_CHARS and any(
            form.startswith(beginning) and 2 * len(beginning) >= len(form) for form in forms
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._forms)))

    @cached_property
    def _within_line(self) -> dict[str, list[str]]:
        return _by_first(form for form in self._forms if "\n" not in form)

    @cached_property
    def _over_lines(self) -> dict[str, list[str]]:
        return _by_first(form for form in self._forms if "\n" in form)

    @staticmethod
    def _longest(group: dict[str, list[str]]) -> int:
        return max((len(forms[0]) for forms in group.values()), default=1) - 1


NOTHING = Redactor(())


def _by_first(forms: Iterable[str]) -> dict[str, list[str]]:
    """Return ``{first character: forms}``, the longest first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for form in forms:
        groups[form[0]].append(form)
    return dict(groups)


def _open_from(text: str, group: dict[str, list[str]], start: int) -> int:
    for place in range(max(0, start), len(text)):
        forms = group.get(text[place])
        if forms:
            end = text[place:]
            if any(len(form) > len(end) and form.startswith(end) for form in forms):
                return place
    return len(text)


# --- forms ------------------------------------------------------------------------------------------------------------


def _forms(value: str) -> Iterator[str]:
    """Yield what a value may look like in a text."""
    if len(value) < MIN_CHARS:
        return
    yield from (value, value.strip(), value.replace("\n", "\r\n"))
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= MIN_LINE_CHARS)
    yield from _quoted(value)
    yield from _base64(value)
    for inner in _sensitive(value):
        yield from _forms(inner)


def _sensitive(value: str) -> Iterator[str]:
    """Yield what a JSON object holds under a key such as ``private_key``: a job prints that more likely than all."""
    try:
        items = json.loads(value) if value[0] == "{" else {}
    except ValueError:
        return
    for key, item in items.items():
        if isinstance(item, str) and _SENSITIVE_KEY.search(key):
            yield item


def _quoted(value: str) -> Iterator[str]:
    for escaped in (quote(value, safe=""), quote(value), quote_plus(value)):
        yield escaped
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), escaped)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(json.dumps(value))[3:-3]
    yield repr(value)[1:-1]
    yield repr(value.encode())[2:-1]
    yield html.escape(value)
    yield shlex.quote(value).strip("'")


def _base64(value: str) -> Iterator[str]:
    """Yield a value's base64, alone and wherever it may stand in something longer, such as ``user:password``."""
    data = value.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(data).decode()
        yield from (whole, whole.rstrip("="))
        for before in range(3):
            # Each character holds six bits: those that it shares with the neighbours are not the value's own.
            first, end = -(-8 * before // 6), 8 * (before + len(data)) // 6
            inner = encode(b"\0" * before + data).decode()[first:end]
            if len(inner) >= _MIN_BASE64_CHARS:
                yield inner


# --- streams ----------------------------------------------------------------------------------------------------------


@dataclass
class Piece(Generic[Place]):
    """A piece of a stream, and the place in its source where it ends."""

    stream: str
    text: str
    place: Place


@dataclass
class _Seen:
    """The end of what a stream has passed on, as far as a value may have begun in it."""

    text: str = ""
    is_masked: bool = False


@dataclass
class StreamRedactor(Generic[Place]):
    """Masks pieces of several streams that go on as one sequence, each with its place in the source.

    What is given back has its places in the order they came, so whoever starts again at the last one misses nothing
    and repeats nothing; and a value never lies across such a place, unless its stream stood still in the middle of it.
    So pieces are held back whole, and together.
    """

    redactor: Redactor = NOTHING
    clock: Callable[[], float] = time.monotonic
    _held: list[Piece[Place]] = field(default_factory=list)
    _held_since: float = 0.0
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def go_on_after(self, stream: str, text: str) -> None:
        """Take note of what somebody else has passed on before: a value may have begun in it."""
        self._seen[stream] = _Seen(text[self.redactor.open_from(text) :])

    def feed(self, piece: Piece[Place]) -> list[Piece[Place]]:
        """Take a piece, and return those that may go on. An empty one says that there is nothing new."""
        if not self._held:
            is_alone = piece.stream not in self._seen
            if is_alone and self.redactor.open_from(piece.text) == len(piece.text):
                return [Piece(piece.stream, self.redactor.mask(piece.text), piece.place)]
            self._held_since = self.clock()
        self._held.append(piece)
        is_open = any(self.redactor.open_from(text) < len(text) for text in self._texts().values())
        if is_open and self.clock() - self._held_since < HOLD_S:
            return []
        return self.flush()

    def flush(self) -> list[Piece[Place]]:
        """Return what was held back; much of the beginning of a value is masked like all of it."""
        masked = {stream: self._masked(stream, text) for stream, text in self._texts().items()}
        pieces, self._held = self._held, []
        return [Piece(piece.stream, next(masked[piece.stream]), piece.place) for piece in pieces]

    def _texts(self) -> dict[str, str]:
        """Return ``{stream: what it has passed on and may still matter, and what is held back of it}``."""
        parts: dict[str, list[str]] = {}
        for piece in self._held:
            parts.setdefault(piece.stream, [self._seen.get(piece.stream, _Seen()).text]).append(piece.text)
        return {stream: "".join(texts) for stream, texts in parts.items()}

    def _masked(self, stream: str, text: str) -> Iterator[str]:
        """Yield each held piece of a stream, masked."""
        seen, spans = self._seen.pop(stream, _Seen()), self.redactor.spans(text)
        open_from = self.redactor.open_from(text)
        start = max([open_from, *(end for _, end in spans[-1:])])
        if len(text) - start >= MIN_CHARS and self.redactor.is_half(text[open_from:]):
            spans.append((start, len(text)))
        if open_from < len(text):
            self._seen[stream] = _Seen(text[open_from:], is_masked=any(end > open_from for _, end in spans))
        lengths = [len(piece.text) for piece in self._held if piece.stream == stream]
        return _cut(text, len(seen.text), lengths, spans, seen.is_masked)


def _cut(text: str, start: int, lengths: list[int], spans: list[tuple[int, int]], is_masked: bool) -> Iterator[str]:
    """Yield the text from ``start`` in pieces of the given lengths; a span's mask stands in the piece it begins in.

    A span that begins before ``start`` has its mask at the start, unless it was masked there already.
    """
    clipped = [(max(first, start), end, is_masked and first < start) for first, end in spans if end > start]
    for length in lengths:
        end, parts, at = start + length, [], start
        for first, last, is_shown in clipped:
            if first < end and last > start:
                parts.append(text[at:first] if first > at else "")
                parts.append(MASK if first >= start and not is_shown else "")
                at = min(last, end)
        yield "".join(parts) + text[at:end]
        start = end


# --- who masks what ---------------------------------------------------------------------------------------------------


class Redaction:
    """What is masked in all that one attempt passes on: its own secrets, and those its agent has in hand.

    Args:
        shared: returns the agent's; asked each time, since there may be more by then.
    """

    def __init__(self, shared: Callable[[], frozenset[str]] = frozenset) -> None:
        self.is_complete = False
        """Whether it knows all that the attempt has."""
        self._shared = shared
        self._own: frozenset[str] = frozenset()
        self._redactor = NOTHING

    def add(self, values: Iterable[str]) -> None:
        """Mask these too from now on."""
        self._own = self._own | frozenset(values)

    @property
    def redactor(self) -> Redactor:
        """The redactor of all values known by now."""
        values = self._own | self._shared()
        if values != self._redactor.values:
            self._redactor = Redactor(values)
        return self._redactor

    def mask(self, text: str) -> str:
        """Return a text masked."""
        return self.redactor.mask(text)


class RedactingFormatter(logging.Formatter):
    """Masks what another formatter makes of a record, its traceback included."""

    def __init__(self, inner: logging.Formatter, redaction: Redaction) -> None:
        super().__init__()
        self._inner = inner
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return self._redaction.mask(self._inner.format(record))


def redact_logging(redaction: Redaction) -> None:
    """Mask all that this process logs from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(RedactingFormatter(handler.formatter or logging.Formatter(), redaction))
