"""Reading a log that grows, by byte offsets."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.errors import ConfigError
from workers.runners._process_tail import CHUNK_BYTES, Tail, cursor_of, tails


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 160), max_size=6), junk=st.binary(max_size=3))
def test_no_character_is_cut(tmp_path, text, cuts, junk):
    """However the bytes arrive and wherever a reader starts anew, the text is that of the whole file."""
    data, path = text.encode() + junk, tmp_path / "stdout"
    seen, offset = "", 0
    for cut in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:cut])
        tail = Tail("stdout", path, offset)
        seen += tail.read(is_over=False)
        offset = tail.offset
    seen += Tail("stdout", path, offset).read(is_over=True)
    assert seen == data.decode(errors="replace")


def test_a_chunk_ends_before_a_character_that_crosses_its_end(tmp_path):
    """64 KiB at a time, and the character on the border comes whole in the next."""
    text = "a" * (CHUNK_BYTES - 1) + "€" + "b" * 10
    path = tmp_path / "stdout"
    path.write_text(text, encoding="utf-8")
    tail = Tail("stdout", path, 0)
    first = tail.read(is_over=True)
    assert first == "a" * (CHUNK_BYTES - 1)
    assert tail.has_more
    assert first + tail.read(is_over=True) == text
    assert tail.read(is_over=True) == ""


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    """A job may write anything."""
    path = tmp_path / "stdout"
    path.write_bytes(b"a\xff\xfeb\xe2\x82")
    assert Tail("stdout", path, 0).read(is_over=False) == "a��b"
    assert Tail("stdout", path, 0).read(is_over=True) == "a��b�"


def test_cursors(tmp_path):
    """A cursor is where both streams are; a foreign one is refused."""
    assert cursor_of(tails(tmp_path, None)) == "0:0"
    assert cursor_of(tails(tmp_path, "12:7")) == "12:7"
    with pytest.raises(ConfigError, match="cursor: should be like '1200:0', not '2024-01-01'"):
        tails(tmp_path, "2024-01-01")
