"""text.codec: bytes to pairs and back, C-bit sequences, the encodings of single values."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError, RemoteProtocolError
from iscsid.text import codec

keys = st.from_regex(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}", fullmatch=True)
values = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60)


def test_parse_keeps_order_and_duplicates() -> None:
    assert codec.parse(b"B=2\0A=1\0B=3\0") == [("B", "2"), ("A", "1"), ("B", "3")]


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_parse_takes_any_buffer(buffer: type) -> None:
    assert codec.parse(buffer(b"InitialR2T=Yes\0")) == [("InitialR2T", "Yes")]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (b"", []),
        (b"\0\0\0", []),
        (b"A=\0", [("A", "")]),
        (b"A=1", [("A", "1")]),  # the last NUL is missing
        (b"A=1\0\0\0", [("A", "1")]),  # padding counted in
        (b"CHAP_C=0bAA==\0", [("CHAP_C", "0bAA==")]),  # "=" in a value
        ("InitiatorAlias=Büro\0".encode(), [("InitiatorAlias", "Büro")]),
        (b"iSCSIProtocolLevel=1\0X#NodeArchitecture=pc\0X-org.example.a=1\0", None),
    ],
)
def test_parse_of_lenient_forms_returns_the_pairs(text: bytes, pairs: list[codec.Pair] | None) -> None:
    found = codec.parse(text)
    assert found == pairs if pairs is not None else len(found) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"NoEqualSign\0", "no '='"),
        (b"A=1\0rest", "no '='"),
        (b"=1\0", "name of a key"),
        (b"1A=1\0", "name of a key"),
        (b"A B=1\0", "name of a key"),
        (b"A" * 64 + b"=1\0", "name of a key"),
        (b"A\n=1\0", "name of a key"),
        (b"A=\xff\xfe\0", "not UTF-8"),
        (b"".join(b"K%d=1\0" % number for number in range(257)), "257 keys"),
        (b"A=" + b"x" * codec.TEXT_LIMIT + b"\0", "longer than"),
    ],
)
def test_parse_of_broken_text_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        codec.parse(text)


def test_parse_of_the_longest_key_and_most_pairs_is_accepted() -> None:
    assert codec.parse(b"A" * codec.KEY_LIMIT + b"=1\0") == [("A" * 63, "1")]
    assert len(codec.parse(b"".join(b"K%d=1\0" % number for number in range(codec.PAIR_LIMIT)))) == 256


def test_parse_with_limits_of_its_own_keeps_to_them() -> None:
    assert len(codec.parse(b"A=1\0" * 300, pair_limit=300)) == 300
    with pytest.raises(RemoteProtocolError, match="longer than 3"):
        codec.parse(b"A=1\0", text_limit=3)


def test_build_ends_every_pair_with_a_nul() -> None:
    assert codec.build([("A", "1"), ("B", "")]) == b"A=1\0B=\0"
    assert codec.build([]) == b""


@pytest.mark.parametrize("pair", [("", "1"), ("A=B", "1"), ("A", "1\0B=2")])
def test_build_of_what_would_read_otherwise_is_our_bug(pair: codec.Pair) -> None:
    with pytest.raises(LocalProtocolError):
        codec.build([pair])


@settings(deadline=None)
@given(st.lists(st.tuples(keys, values), max_size=20))
def test_parse_undoes_build(pairs: list[codec.Pair]) -> None:
    assert codec.parse(codec.build(pairs)) == pairs


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_parse_of_any_bytes_raises_only_remote_errors(text: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        codec.parse(text)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 70))
def test_split_and_collect_return_the_text(text: bytes, limit: int) -> None:
    pieces = codec.split(text, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert b"" not in pieces[1:]
    collector = codec.Collector()
    whole = [collector.add(piece, more=number < len(pieces)) for number, piece in enumerate(pieces, 1)]
    assert whole[:-1] == [None] * (len(pieces) - 1)
    assert whole[-1] == text
    assert not collector.pending


def test_split_of_no_text_is_one_empty_segment() -> None:
    assert codec.split(b"", 8192) == [b""]


def test_split_into_nothing_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        codec.split(b"abc", 0)


def test_collector_copies_what_it_is_given() -> None:
    buffer = bytearray(b"A=1")
    collector = codec.Collector()
    assert collector.add(memoryview(buffer), more=True) is None
    assert collector.pending
    buffer[:] = b"xxx"
    assert collector.add(b"\0", more=False) == b"A=1\0"


def test_collector_beyond_its_limit_is_refused() -> None:
    collector = codec.Collector(10)
    assert collector.add(b"12345", more=True) is None
    with pytest.raises(RemoteProtocolError, match="longer than 10"):
        collector.add(b"678901", more=True)


def test_collector_begins_anew_after_each_text() -> None:
    collector = codec.Collector(4)
    assert collector.add(b"abcd", more=False) == b"abcd"
    assert collector.add(b"efgh", more=False) == b"efgh"


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("8192", 8192), ("0x2000", 8192), ("0X2a", 42), ("007", 7), (str(2**64 - 1), 2**64 - 1)],
)
def test_parse_number_reads_decimal_and_hexadecimal(text: str, number: int) -> None:
    assert codec.parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", " 1", "1 ", "1\n", "1_000", "0x", "1.5", "Yes", str(2**64), "9" * 30, "0x1" + "0" * 16, "²"],
)
def test_parse_number_of_anything_else_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        codec.parse_number(text)


@pytest.mark.parametrize(("text", "value"), [("Yes", True), ("No", False), ("yes", True), ("no", False)])
def test_parse_boolean_reads_yes_and_no(text: str, value: bool) -> None:
    assert codec.parse_boolean(text) is value
    assert codec.format_boolean(value) == text.capitalize()


@pytest.mark.parametrize("text", ["", "YES", "true", "1", "Yes,No", "Reject"])
def test_parse_boolean_of_anything_else_is_no_boolean(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        codec.parse_boolean(text)


def test_parse_list_keeps_the_order_of_preference() -> None:
    assert codec.parse_list("CRC32C,None") == ("CRC32C", "None")


@pytest.mark.parametrize("text", ["", ",", "None,", ",None", "CRC32C,,None"])
def test_parse_list_with_an_empty_member_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        codec.parse_list(text)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("0x00ff", b"\x00\xff"),
        ("0XAB", b"\xab"),
        ("0xabc", b"\x0a\xbc"),
        ("0bAP8=", b"\x00\xff"),
        ("0BAP8=", b"\x00\xff"),
    ],
)
def test_parse_binary_reads_hexadecimal_and_base64(text: str, data: bytes) -> None:
    assert codec.parse_binary(text, 16) == data


@pytest.mark.parametrize("text", ["", "0x", "0b", "ff", "0xfg", "0b*", "0bAP8", "0x0 0", "0b\u0661"])
def test_parse_binary_of_anything_else_is_no_binary_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"not|base64|ASCII"):
        codec.parse_binary(text, 16)


def test_parse_binary_beyond_its_limit_is_refused() -> None:
    assert codec.parse_binary("0x" + "00" * 16, 16) == bytes(16)
    with pytest.raises(ValueError, match="longer than 16"):
        codec.parse_binary("0x" + "00" * 17, 16)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64))
def test_parse_binary_undoes_format_binary(data: bytes) -> None:
    assert codec.parse_binary(codec.format_binary(data), 64) == data


def test_format_binary_of_nothing_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        codec.format_binary(b"")
