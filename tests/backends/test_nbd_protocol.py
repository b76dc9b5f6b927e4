"""The messages of NBD: an honest server's facts, and every kind of dishonest one told apart."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from iscsid_backends import nbd_protocol as p
from nbd_kit import FLAGS, GREETING, SIZE, reply

from iscsid.plugin import Content, Extent

GO_INFO = struct.pack(">HQH", p.INFO_EXPORT, SIZE, FLAGS)
CONTEXT = struct.pack(">I", 3) + p.ALLOCATION
STRUCTURED = reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)
NO_STRUCTURED = reply(p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUP)
ALLOCATION = reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, CONTEXT) + reply(p.OPT_SET_META_CONTEXT, p.REP_ACK)
EXPORT = reply(p.OPT_GO, p.REP_INFO, GO_INFO)
ACK = reply(p.OPT_GO, p.REP_ACK)


class Tape:
    """What a server says, whatever it hears."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.heard = b""

    def send(self, data: bytes) -> None:
        self.heard += data

    def exactly(self, length: int) -> bytes:
        if length > len(self.said):
            raise ConnectionResetError("the end of the tape")
        piece, self.said = self.said[:length], self.said[length:]
        return piece


def facts_of(*said: bytes, flags: int = p.FLAG_NO_ZEROES) -> p.Facts:
    tape = Tape(b"".join(said))
    facts = p.negotiate(tape, b"disk", flags)
    assert not tape.said
    return facts


# The greeting.


def test_greeting_is_answered_with_the_flags_of_both() -> None:
    tape = Tape(p.NBDMAGIC + p.IHAVEOPT + b"\xff\xff")
    assert p.greet(tape) == p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES
    assert tape.heard == b"\0\0\0\3"
    assert p.greet(Tape(p.NBDMAGIC + p.IHAVEOPT + b"\0\1")) == p.FLAG_FIXED_NEWSTYLE


@pytest.mark.parametrize(
    ("said", "failure", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", p.Violation, "no NBD server"),
        (p.NBDMAGIC + p.OLDSTYLE + bytes(136), p.Refused, "oldstyle"),
        (p.NBDMAGIC + bytes(136), p.Violation, "NBDMAGIC is followed by"),
        (p.NBDMAGIC + p.IHAVEOPT + b"\0\2", p.Refused, "fixed newstyle"),
        (GREETING[:17], ConnectionResetError, "the end of the tape"),
    ],
)
def test_greeting_that_is_wrong_is_refused(said: bytes, failure: type[Exception], words: str) -> None:
    with pytest.raises(failure, match=words):
        p.greet(Tape(said))


def test_tls_is_started_by_an_acknowledgement_only() -> None:
    p.start_tls(Tape(reply(p.OPT_STARTTLS, p.REP_ACK)))
    with pytest.raises(p.Refused, match="TLS: it does not allow it"):
        p.start_tls(Tape(reply(p.OPT_STARTTLS, p.REP_ERROR | 2)))
    with pytest.raises(p.Violation):
        p.start_tls(Tape(reply(p.OPT_STARTTLS, p.REP_INFO, b"??")))


# The export.


def test_export_with_everything() -> None:
    sizes = reply(p.OPT_GO, p.REP_INFO, struct.pack(">HIII", p.INFO_BLOCK_SIZE, 4096, 65536, 1 << 20))
    name = reply(p.OPT_GO, p.REP_INFO, struct.pack(">H", 1) + b"disk")
    facts = facts_of(STRUCTURED, ALLOCATION, name, EXPORT, sizes, ACK)
    assert facts == p.Facts(SIZE, FLAGS, 4096, 65536, 1 << 20, True, 3)


def test_export_with_nothing_has_the_defaults_of_the_specification() -> None:
    facts = facts_of(NO_STRUCTURED, EXPORT, ACK)
    assert facts == p.Facts(SIZE, FLAGS, 512, 4096, 32 << 20, False, None)


@pytest.mark.parametrize(
    "answer",
    [
        reply(p.OPT_SET_META_CONTEXT, p.REP_ACK),
        reply(p.OPT_SET_META_CONTEXT, p.REP_ERR_UNSUP),
        reply(p.OPT_SET_META_CONTEXT, p.REP_ERROR | 3),
    ],
)
def test_server_without_the_context_has_no_block_status(answer: bytes) -> None:
    facts = facts_of(STRUCTURED, answer, EXPORT, ACK)
    assert facts.structured
    assert facts.context is None


@pytest.mark.parametrize("flags", [0, p.FLAG_NO_ZEROES])
def test_server_without_go_is_asked_in_the_old_way(flags: int) -> None:
    old = struct.pack(">QH", SIZE, FLAGS) + (b"" if flags else bytes(p.ZEROES))
    assert facts_of(NO_STRUCTURED, reply(p.OPT_GO, p.REP_ERR_UNSUP), old, flags=flags).size == SIZE


def test_old_server_without_the_export_is_told_of() -> None:
    with pytest.raises(p.Refused, match="closes the connection when asked for the export disk"):
        facts_of(NO_STRUCTURED, reply(p.OPT_GO, p.REP_ERR_UNSUP))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "does not allow it"),
        (5, "wants TLS: use nbds://"),
        (6, "has no such export"),
        (7, "shutting down"),
        (99, "error 99"),
    ],
)
def test_refusal_of_the_export_is_told_in_words(code: int, words: str) -> None:
    with pytest.raises(p.Refused, match=f"refuses the export disk: .*{words}"):
        facts_of(NO_STRUCTURED, reply(p.OPT_GO, p.REP_ERROR | code))
    with pytest.raises(p.Refused, match=rf"{words}.* \(not \?to\? day\)"):
        facts_of(NO_STRUCTURED, reply(p.OPT_GO, p.REP_ERROR | code, b"not \x1bto\n day"))


def _sizes(*sizes: int) -> bytes:
    return reply(p.OPT_GO, p.REP_INFO, struct.pack(">HIII", p.INFO_BLOCK_SIZE, *sizes)) + EXPORT + ACK


def _export(size: int, flags: int) -> bytes:
    return reply(p.OPT_GO, p.REP_INFO, struct.pack(">HQH", p.INFO_EXPORT, size, flags)) + ACK


WRONG = {
    "magic": reply(p.OPT_GO, p.REP_ACK).replace(b"\x00\x03\xe8", b"\x00\x03\xe9"),
    "another-option": reply(p.OPT_STARTTLS, p.REP_ACK),
    "huge-reply": struct.pack(">QIII", p.OPTION_REPLY, p.OPT_GO, p.REP_INFO, 1 << 31),
    "huge-error": struct.pack(">QIII", p.OPTION_REPLY, p.OPT_GO, p.REP_ERROR | 6, p.MAX_OPTION_REPLY + 1),
    "acknowledgement-with-data": reply(p.OPT_GO, p.REP_ACK, b"x"),
    "no-export": ACK,
    "unknown-reply": reply(p.OPT_GO, 77, b"what is this"),
    "short-info": reply(p.OPT_GO, p.REP_INFO, b"x"),
    "short-export": reply(p.OPT_GO, p.REP_INFO, GO_INFO[:-1]) + ACK,
    "long-export": reply(p.OPT_GO, p.REP_INFO, GO_INFO + b"x") + ACK,
    "short-sizes": reply(p.OPT_GO, p.REP_INFO, struct.pack(">HII", p.INFO_BLOCK_SIZE, 1, 2)) + ACK,
    "endless-replies": reply(p.OPT_GO, p.REP_INFO, b"\0\1") * (p.MAX_OPTION_REPLIES + 1),
    "size-of-0": _export(0, FLAGS),
    "size-beyond-63-bits": _export(1 << 63, FLAGS),
    "no-flags": _export(SIZE, 0),
    "minimum-of-0": _sizes(0, 4096, 4096),
    "minimum-of-3": _sizes(3, 4096, 4096),
    "minimum-too-large": _sizes(1 << 17, 1 << 17, 1 << 20),
    "preferred-of-0": _sizes(1, 0, 4096),
    "preferred-of-5000": _sizes(1, 5000, 65536),
    "maximum-of-0": _sizes(1, 512, 0),
    "maximum-below-minimum": _sizes(4096, 4096, 512),
    "maximum-below-a-sector": _sizes(1, 512, 511),
}


@pytest.mark.parametrize("kind", WRONG)
def test_export_that_makes_no_sense_is_a_violation(kind: str) -> None:
    with pytest.raises(p.Violation):
        facts_of(NO_STRUCTURED, WRONG[kind])


@pytest.mark.parametrize(
    "answer",
    [
        reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, b"\0\0\0\3base:other"),
        reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, b"\0"),
        reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, CONTEXT) * 2,
        reply(p.OPT_SET_META_CONTEXT, p.REP_INFO, CONTEXT),
    ],
)
def test_context_that_was_not_asked_for_is_a_violation(answer: bytes) -> None:
    with pytest.raises(p.Violation):
        facts_of(STRUCTURED, answer, reply(p.OPT_SET_META_CONTEXT, p.REP_ACK), EXPORT, ACK)


def test_handshake_cut_anywhere_ends() -> None:
    said = b"".join((STRUCTURED, ALLOCATION, EXPORT, ACK))
    for length in range(len(said)):
        with pytest.raises(ConnectionResetError):
            p.negotiate(Tape(said[:length]), b"disk", 0)


def test_handshake_with_one_wrong_byte_gives_facts_or_a_clear_end() -> None:
    said = b"".join((STRUCTURED, ALLOCATION, EXPORT, ACK))
    for place in range(len(said)):
        for bit in (1, 128):
            wrong = bytearray(said)
            wrong[place] ^= bit
            try:
                facts = p.negotiate(Tape(bytes(wrong)), b"disk", 0)
            except (p.Violation, p.Refused, ConnectionResetError):
                continue
            assert 0 < facts.size <= p.MAX_SIZE


# Answers.


def test_errors_of_the_protocol_are_errnos_and_unknown_ones_invalid() -> None:
    assert [p.error_number(code) for code in (1, 5, 12, 22, 28, 75, 95, 108)] == [
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.EOPNOTSUPP,
        errno.ESHUTDOWN,
    ]
    assert p.error_number(11) == p.error_number(1 << 31) == errno.EINVAL


def test_error_chunk_tells_code_and_message() -> None:
    assert p.error_chunk(p.TYPE_ERROR, struct.pack(">IH", 5, 0)) == (5, "")
    assert p.error_chunk(p.TYPE_ERROR, struct.pack(">IH", 28, 4) + b"full") == (28, "full")
    assert p.error_chunk(p.TYPE_ERROR_OFFSET, struct.pack(">IH", 5, 3) + b"bad" + bytes(8)) == (5, "bad")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (p.TYPE_ERROR, b""),
        (p.TYPE_ERROR, struct.pack(">IH", 5, 1)),
        (p.TYPE_ERROR, struct.pack(">IH", 5, 0) + b"x"),
        (p.TYPE_ERROR, struct.pack(">IH", 0, 0)),
        (p.TYPE_ERROR_OFFSET, struct.pack(">IH", 5, 0)),
        (p.TYPE_ERROR_OFFSET, struct.pack(">IH", 5, 65535) + bytes(8)),
    ],
)
def test_error_chunk_that_does_not_add_up_is_a_violation(kind: int, data: bytes) -> None:
    with pytest.raises(p.Violation):
        p.error_chunk(kind, data)


def _status(*words: int) -> bytes:
    return struct.pack(f">{len(words)}I", *words)


def test_block_status_is_extents_cut_to_the_range() -> None:
    data, hole, zero = Content.DATA, Content.HOLE, Content.ZERO
    assert p.extents(1, _status(1, 512, 0), 1024, 512) == [Extent(1024, 512, data)]
    assert p.extents(1, _status(1, 512, 3, 1 << 30, 2), 0, 2048) == [
        Extent(0, 512, hole | zero),
        Extent(512, 1536, zero),
    ]
    assert p.extents(1, _status(1, 512, 0xFFFFFFFD), 0, 2048) == [Extent(0, 512, hole)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        _status(1),
        _status(1, 512),
        _status(2, 512, 0),
        _status(1, 0, 0),
        _status(1, 512, 0, 1, 0),
        b"x" * 13,
    ],
)
def test_block_status_that_makes_no_sense_is_a_violation(data: bytes) -> None:
    with pytest.raises(p.Violation):
        p.extents(1, data, 0, 512)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"disk", "disk"),
        (b"\xff\x00\x1b[31m\n", "\N{REPLACEMENT CHARACTER}??[31m?"),
        (b"a" * 300, "a" * 200 + "…"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}x".encode(), "?x"),
    ],
)
def test_what_a_stranger_says_is_made_printable(data: bytes, words: str) -> None:
    assert p.printable(data) == words


def test_request_is_packed_as_the_specification_has_it() -> None:
    packed: Any = p.REQUEST.pack(p.REQUEST_MAGIC, p.CMD_FLAG_FUA, p.CMD_WRITE, 0x0102, 512, 4096)
    assert packed.hex() == "25609513000100010000000000000102000000000000020000001000"
