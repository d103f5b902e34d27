"""Secrets are masked in whatever form and in whatever pieces they come; everything else comes through as it was."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launch.plugins import MASK
from workers.redact import HOLD_S, NOTHING, Piece, Redactor, StreamRedactor

PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\nabc\n-----END KEY-----\n"
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "url": lambda value: quote(value, safe=""),
    "path": quote,
    "lower": lambda value: quote(value, safe="").lower() if value.islower() else value,
    "form": quote_plus,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "urlsafe": lambda value: base64.urlsafe_b64encode(value.encode()).decode().rstrip("="),
    "json": json.dumps,
    "unicode json": lambda value: json.dumps(value, ensure_ascii=False),
    "json in json": lambda value: json.dumps(json.dumps({"key": value})),
    "repr": repr,
    "bytes": lambda value: repr(value.encode()),
    "html": html.escape,
    "shell": shlex.quote,
    "crlf": lambda value: value.replace("\n", "\r\n"),
}
# Characters that no form shares with the text around it, so that what is left over can be told.
secrets = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=4, max_size=40).filter(
    lambda value: value == value.strip()
)
harmless = st.text("~ \n", max_size=30)


class Clock:
    """Stands still unless told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def stream_of(*values: str) -> tuple[StreamRedactor[int], Clock]:
    clock = Clock()
    return StreamRedactor(Redactor(values), clock), clock


def text_of(pieces: list[Piece[int]], stream: str = "stdout") -> str:
    return "".join(piece.text for piece in pieces if piece.stream == stream)


def fed(redactor: StreamRedactor[int], texts: list[str], stream: str = "stdout") -> list[Piece[int]]:
    pieces = [piece for place, text in enumerate(texts) for piece in redactor.feed(Piece(stream, text, place))]
    return [*pieces, *redactor.flush()]


def cut(text: str, places: list[int]) -> list[str]:
    """Return the text in pieces."""
    ends = sorted({place % (len(text) + 1) for place in places})
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]


@pytest.mark.parametrize("form", FORMS)
@given(value=secrets, before=harmless, after=harmless, places=st.lists(st.integers(0, 10_000), max_size=8))
def test_every_form_is_masked_however_it_is_cut(
    form: str, value: str, before: str, after: str, places: list[int]
) -> None:
    redactor, _ = stream_of(value)
    written = FORMS[form](value)

    shown = text_of(fed(redactor, cut(before + written + after, places)))

    assert shown == Redactor([value]).mask(before + written + after)
    assert written not in shown or set(written) <= set("~ \n*")
    assert MASK in shown


@given(values=st.lists(secrets, max_size=3), text=st.text(max_size=200), places=st.lists(st.integers(0, 10_000)))
def test_pieces_are_masked_as_the_whole_is(values: list[str], text: str, places: list[int]) -> None:
    """Whether or not the text holds a secret: only its end, which may be the beginning of one, may differ."""
    redactor, _ = stream_of(*values)
    text += "~~"
    assert text_of(fed(redactor, cut(text, places))) == Redactor(values).mask(text)


@given(text=st.text(max_size=200), places=st.lists(st.integers(0, 10_000)))
def test_without_secrets_every_piece_goes_on_at_once_as_it_is(text: str, places: list[int]) -> None:
    redactor, _ = stream_of()
    for place, part in enumerate(cut(text, places)):
        assert redactor.feed(Piece("stdout", part, place)) == [Piece("stdout", part, place)]
    assert redactor.flush() == []
    assert NOTHING.mask(text) == text


@given(
    texts=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.sampled_from(["hun", "ter2", "x", "\n", ""]))),
    pauses=st.sets(st.integers(0, 20)),
)
def test_two_streams_keep_their_order_and_their_places(texts: list[tuple[str, str]], pauses: set[int]) -> None:
    redactor, clock = stream_of("hunter2")
    pieces: list[Piece[int]] = []
    for place, (stream, text) in enumerate(texts):
        clock.now += HOLD_S if place in pauses else 0
        pieces += redactor.feed(Piece(stream, text, place))
    pieces += redactor.flush()

    assert [(piece.stream, piece.place) for piece in pieces] == [(stream, i) for i, (stream, _) in enumerate(texts)]
    for stream in ("stdout", "stderr"):
        whole = "".join(text for its, text in texts if its == stream)
        assert "hunter2" not in text_of(pieces, stream)
        assert text_of(pieces, stream).count("x") == whole.count("x")
        assert text_of(pieces, stream).count("\n") == whole.count("\n")


def test_a_line_is_never_held_back() -> None:
    redactor, _ = stream_of("hunter2", "s3cr3t-value")
    assert text_of(redactor.feed(Piece("stdout", "epoch 1 h\nloss 0.1 s3\n", 0))) == "epoch 1 h\nloss 0.1 s3\n"


def test_what_may_be_a_beginning_waits_a_moment_and_no_longer() -> None:
    redactor, clock = stream_of("hunter2")
    assert redactor.feed(Piece("stdout", "see hu", 0)) == []
    clock.now += HOLD_S
    assert redactor.feed(Piece("stdout", "", 1)) == [Piece("stdout", "see hu", 0), Piece("stdout", "", 1)]
    assert text_of(redactor.feed(Piece("stdout", "ge\n", 2))) == "ge\n"


def test_the_rest_of_a_value_that_stood_still_in_its_middle_is_masked() -> None:
    redactor, clock = stream_of("hunter2")
    redactor.feed(Piece("stdout", "hu", 0))
    clock.now += HOLD_S
    assert text_of(redactor.feed(Piece("stdout", "", 1))) == "hu"
    assert text_of(fed(redactor, ["nter2 is it\n"])) == f"{MASK} is it\n"


def test_what_is_masked_already_is_not_masked_again_by_a_longer_form() -> None:
    """In a shell ``000'`` is ``'000'"'"''``: a quotation mark behind it may be the beginning of more."""
    redactor, clock = stream_of("000'")
    redactor.feed(Piece("stdout", '"000\'"', 0))
    clock.now += HOLD_S
    assert text_of(redactor.feed(Piece("stdout", "", 1))) == f'"{MASK}"'
    assert text_of(fed(redactor, ["'\"|\n"])) == "|\n"


def test_half_of_a_value_is_masked_like_all_of_it() -> None:
    """Also when nothing follows; and what follows is not masked a second time."""
    redactor, clock = stream_of("hunter2")
    redactor.feed(Piece("stdout", "password: hunte", 0))
    clock.now += HOLD_S
    assert text_of(redactor.feed(Piece("stdout", "", 1))) == f"password: {MASK}"
    assert text_of(fed(redactor, ["r2 is it\n"])) == " is it\n"


def test_a_value_across_pieces_is_not_cut_by_a_place_to_start_again_at() -> None:
    """Whoever goes on after the first piece's place would see the rest of the value alone."""
    redactor, _ = stream_of("hunter2")
    assert redactor.feed(Piece("stdout", "hun", 0)) == []
    assert redactor.feed(Piece("stderr", "meanwhile\n", 1)) == []
    released = redactor.feed(Piece("stdout", "ter2\n", 2))
    assert [(piece.text, piece.place) for piece in released] == [(MASK, 0), ("meanwhile\n", 1), ("\n", 2)]


def test_of_overlapping_values_the_longest_is_masked() -> None:
    assert Redactor(["hunter2", "hunter2-and-more"]).mask("hunter2-and-more hunter2") == f"{MASK} {MASK}"


def test_each_long_line_of_a_key_is_masked_alone_and_a_short_one_with_the_others() -> None:
    redactor = Redactor([PEM])
    assert redactor.mask("> MIIEvQIBADANBgkq <") == f"> {MASK} <"
    assert redactor.mask("abc") == "abc"
    assert redactor.mask(f"key:\n{PEM}") == f"key:\n{MASK}"


def test_what_a_json_object_holds_under_a_telling_key_is_masked_alone() -> None:
    redactor = Redactor([json.dumps({"type": "service_account", "private_key": PEM, "id": 7})])
    assert "MIIEvQIBADANBgkq" not in redactor.mask(PEM)
    assert redactor.mask("service_account") == "service_account"


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "api"])
def test_the_header_of_basic_authorization_does_not_tell(user: str) -> None:
    value = "0123456789abcdefghij"
    header = base64.b64encode(f"{user}:{value}".encode()).decode()
    shown = Redactor([value]).mask(header)
    assert MASK in shown
    assert len(shown.replace(MASK, "")) < len(header) - len(base64.b64encode(value.encode())) + 6


def test_a_value_of_three_characters_is_left() -> None:
    assert Redactor(["abc", ""]).mask("abc") == "abc"


@example(["abab", "bab"])
@given(st.lists(st.text("ab", min_size=4, max_size=8), min_size=1, max_size=3))
def test_values_that_repeat_themselves_end(values: list[str]) -> None:
    redactor, _ = stream_of(*values)
    shown = text_of(fed(redactor, list("abbaabababbaabab" * 4)))
    assert not any(value in shown for value in values)
