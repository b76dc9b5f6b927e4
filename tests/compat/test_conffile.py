"""Lines, fields, comments, continuations, backslashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.compat.conffile import MAX_FILE, MAX_LINE, Line, Message, lines, read


def fields(text: str, separators: str = " \t") -> list[tuple[str, ...]]:
    found = list(lines(text, separators))
    assert all(isinstance(line, Line) for line in found)
    return [line.fields for line in found if isinstance(line, Line)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c", [("a", "b", "c")]),
        ("  a \t b\t\tc  ", [("a", "b", "c")]),
        ("a b\r\nc d\r\n", [("a", "b"), ("c", "d")]),
        ("", []),
        ("\n \n\t\n", []),
        ("# all of it\na", [("a",)]),
        ("   # as well\na", [("a",)]),
        ("a # no comment", [("a", "#", "no", "comment")]),
        ("a\\ b c", [("a b", "c")]),
        ("a\\b c", [("a\\b", "c")]),
        ("a\\\\ b", [("a\\\\", "b")]),
        ("a \\\nb", [("a", "b")]),
        ("a\\\nb", [("ab",)]),
        ("a\\\n b", [("a", "b")]),  # the original glued " b" together
        ("a \\\nb \\\nc", [("a", "b", "c")]),
        ("a \\", [("a",)]),
        ("# comment \\\na", [("a",)]),
        ("\\ ", [(" ",)]),
    ],
)
def test_lines_of_a_text_give_their_fields(text: str, expected: list[tuple[str, ...]]) -> None:
    assert fields(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user:chap:a secret with blanks ", [("user", "chap", "a secret with blanks ")]),
        ("a\\:b:CHAP:x", [("a:b", "CHAP", "x")]),
        ("a::b", [("a", "b")]),
        ("  a:b", [("a", "b")]),
        (":", []),
    ],
)
def test_lines_with_colons_keep_blanks_within_fields(text: str, expected: list[tuple[str, ...]]) -> None:
    assert fields(text, ":") == expected


def test_lines_are_numbered_by_where_they_begin() -> None:
    assert [line.number for line in lines("# one\n\na \\\nb\nc\n")] == [3, 5]


def test_line_that_is_too_long_becomes_a_message_and_the_next_is_read() -> None:
    first, second = lines("x" * (MAX_LINE + 1) + "\nb\n")
    assert isinstance(first, Message)
    assert first.at("file").startswith("file:1: Error: a line of more than")
    assert second == Line(2, ("b",))


def test_read_refuses_a_file_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"a" * (MAX_FILE + 1))
    with pytest.raises(ValueError, match="longer than"):
        read(path)


def test_read_refuses_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"target0\0")
    with pytest.raises(ValueError, match="not a text file"):
        read(path)


def test_read_takes_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin"
    path.write_bytes(b"extent0 /tmp/\xe4 0 1M\n")
    (line,) = lines(read(path))
    assert isinstance(line, Line)
    assert line.fields[1].encode("utf-8", "surrogateescape") == b"/tmp/\xe4"


@given(st.text(alphabet="ab \t\\#\n:", max_size=60))
def test_lines_of_any_text_have_fields_without_line_ends(text: str) -> None:
    for line in lines(text):
        assert isinstance(line, Line)
        assert line.fields
        assert 1 <= line.number <= text.count("\n") + 1
        assert not any("\n" in field for field in line.fields)
