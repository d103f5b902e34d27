"""A log for people: whole lines, progress bars folded, streams apart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from launch.loglines import MAX_LINE_CHARS, LineFolder, LogLine, fold_lines, folded


def test_progress_bars_are_folded_and_streams_kept_apart() -> None:
    chunks = [
        ("stdout", "a\nb"), ("stderr", "10%\r"), ("stderr", "\r 50%\r100%"), ("stdout", "c\r\nd"), ("stderr", "\n"),
        ("stdout", "\n\nend"),
    ]  # fmt: skip
    assert [(line.stream, line.text) for line in fold_lines(chunks)] == [
        ("stdout", "a"), ("stdout", "bc"), ("stderr", "100%"), ("stdout", "d"), ("stdout", ""), ("stdout", "end"),
    ]  # fmt: skip


@given(st.text(alphabet="ab\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_how_a_log_is_cut_into_chunks_makes_no_difference(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    chunks = [("stdout", text[start:end]) for start, end in pairwise(edges)]
    whole = text.split("\n")
    expected = [folded(line) for line in whole[:-1]] + ([folded(whole[-1])] if whole[-1] else [])
    assert [line.text for line in fold_lines(chunks)] == expected


def test_a_line_without_end_comes_in_pieces() -> None:
    folder = LineFolder()
    assert folder.feed("stdout", "x" * (MAX_LINE_CHARS + 5)) == [LogLine("stdout", "x" * MAX_LINE_CHARS)]
    assert folder.flush() == [LogLine("stdout", "x" * 5)]
