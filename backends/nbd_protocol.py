"""The words of the NBD protocol: numbers, messages of the client, and what a server's answers say.

Names and numbers are those of the protocol's specification, doc/proto.md of the NBD project. No sockets here: bytes and
a ``Stream`` of them are arguments. What a server sends is not trusted: every length is bounded before it is read, and
whatever breaks the protocol is a ``Violation``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple, Protocol

from iscsid.plugin import Content, Extent

PORT: Final = 10809

# The handshake.
NBDMAGIC: Final = b"NBDMAGIC"
IHAVEOPT: Final = b"IHAVEOPT"
OLDSTYLE: Final = b"\x00\x00\x42\x02\x81\x86\x12\x53"
OPTION_REPLY: Final = 0x0003E889045565A9
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1
ZEROES: Final = 124  # bytes behind the answer to NBD_OPT_EXPORT_NAME, unless both sides do without

OPT_EXPORT_NAME: Final = 1
OPT_STARTTLS: Final = 5
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR | 1
REP_ERR_TLS_REQD: Final = REP_ERROR | 5
OPTION_ERRORS: Final = {
    REP_ERR_UNSUP: "it does not know this option",
    REP_ERROR | 2: "it does not allow it",
    REP_ERROR | 3: "it calls our request invalid",
    REP_ERROR | 4: "its platform cannot do it",
    REP_ERR_TLS_REQD: "it wants TLS: use nbds://",
    REP_ERROR | 6: "it has no such export",
    REP_ERROR | 7: "it is shutting down",
    REP_ERROR | 8: "it wants its block sizes to be asked for",
    REP_ERROR | 9: "our request is too long for it",
}

INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3
ALLOCATION: Final = b"base:allocation"

# What an export can do: the transmission flags.
HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
ROTATIONAL: Final = 1 << 4
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
CAN_MULTI_CONN: Final = 1 << 8
SEND_CACHE: Final = 1 << 10

# Requests and their flags.
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
WRITES: Final = frozenset((CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES))
"""What fails as a write does."""
NAMES: Final = ("read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status")

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# Chunks of a structured reply.
FLAG_DONE: Final = 1 << 0
TYPE_NONE: Final = 0
TYPE_OFFSET_DATA: Final = 1
TYPE_OFFSET_HOLE: Final = 2
TYPE_BLOCK_STATUS: Final = 5
TYPE_ERROR: Final = (1 << 15) + 1
TYPE_ERROR_OFFSET: Final = (1 << 15) + 2

REQUEST: Final = Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, error, cookie
STRUCTURED_REPLY: Final = Struct(">IHHQI")  # magic, flags, type, cookie, length
OPTION: Final = Struct(">8sII")  # IHAVEOPT, option, length
_OPTION_REPLY: Final = Struct(">QIII")  # magic, option, type, length
_EXPORT: Final = Struct(">QH")  # size, transmission flags
_BLOCK_SIZES: Final = Struct(">III")
_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
HOLE: Final = Struct(">QI")  # offset, length
_ERROR: Final = Struct(">IH")  # errno, length of the message
_EXTENT: Final = Struct(">II")  # length, flags

MAX_NAME: Final = 4096  # bytes of a string, by the specification
MAX_OPTION_REPLIES: Final = 64  # to one option; there are three that we understand
MAX_OPTION_REPLY: Final = 65536  # bytes of one
MAX_ERROR: Final = _ERROR.size + 4096 + 8  # bytes of an error chunk: a string, perhaps an offset
MAX_STATUS: Final = _U32.size + _EXTENT.size * (1 << 20)  # bytes of a block status chunk: nbdkit's own limit
MAX_SIZE: Final = (1 << 63) - 1  # bytes of an export

SHUTTING_DOWN: Final = errno.ESHUTDOWN
#: The errors of the protocol by their numbers, which are Linux's; any other is to be taken for EINVAL.
_ERRORS: Final = frozenset(
    (
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    )
)


class Violation(Exception):
    """The server broke the protocol: nothing more can be learned from this connection."""


class Refused(Exception):
    """The server understood what we asked in the handshake, and does not do it."""


class Stream(Protocol):
    """Bytes from and to a server, with a deadline of the stream's own. Raises OSError; EOF is a ConnectionError."""

    def send(self, data: bytes) -> None: ...

    def exactly(self, length: int) -> bytes: ...


class Facts(NamedTuple):
    """What a server told of an export. Sizes in bytes."""

    size: int
    flags: int
    minimum: int = 512  # no request may be for less, or for no multiple of it
    preferred: int = 4096
    maximum: int = 32 << 20  # no data may be longer
    structured: bool = False  # read replies may come in chunks
    context: int | None = None  # the number of base:allocation on the connection


def option(number: int, data: bytes = b"") -> bytes:
    """The message for one option."""
    return OPTION.pack(IHAVEOPT, number, len(data)) + data


def greet(stream: Stream) -> int:
    """Take the server's greeting and answer it; the flags that both sides have."""
    magic = stream.exactly(16)
    if magic[:8] != NBDMAGIC:
        raise Violation(f"no NBD server: it begins with {magic[:8]!r}")
    if magic[8:] == OLDSTYLE:
        raise Refused("it does the oldstyle handshake only, which has no options")
    if magic[8:] != IHAVEOPT:
        raise Violation(f"NBDMAGIC is followed by {magic[8:]!r}")
    flags = int(_U16.unpack(stream.exactly(2))[0])
    if not flags & FLAG_FIXED_NEWSTYLE:
        raise Refused("it does not do the fixed newstyle handshake")
    ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
    stream.send(_U32.pack(ours))
    return ours


def start_tls(stream: Stream) -> None:
    """Ask for TLS; on return the server waits for the first message of TLS. Raises Refused."""
    stream.send(option(OPT_STARTTLS))
    _none(_answers(stream, OPT_STARTTLS, "TLS"), "TLS")


def negotiate(stream: Stream, export: bytes, ours: int) -> Facts:
    """Choose the export, with as much as the server can do. Raises Refused, Violation and OSError."""
    structured = _structured(stream)
    context = _allocation(stream, export) if structured else None
    stream.send(option(OPT_GO, _go(export)))
    try:
        facts = _export(_answers(stream, OPT_GO, f"the export {printable(export)}"))
    except _Unsupported:
        facts = _old_export(stream, export, ours)
    return facts._replace(structured=structured, context=context)


def _go(export: bytes) -> bytes:
    return b"".join((_U32.pack(len(export)), export, _U16.pack(1), _U16.pack(INFO_BLOCK_SIZE)))


def _structured(stream: Stream) -> bool:
    stream.send(option(OPT_STRUCTURED_REPLY))
    try:
        _none(_answers(stream, OPT_STRUCTURED_REPLY, "structured replies"), "structured replies")
    except Refused:
        return False
    return True


def _allocation(stream: Stream, export: bytes) -> int | None:
    """The number that base:allocation has on this connection; None where the server has no such context."""
    query = (_U32.pack(len(export)), export, _U32.pack(1), _U32.pack(len(ALLOCATION)), ALLOCATION)
    stream.send(option(OPT_SET_META_CONTEXT, b"".join(query)))
    context = None
    try:
        for kind, data in _answers(stream, OPT_SET_META_CONTEXT, ALLOCATION.decode()):
            if kind != REP_META_CONTEXT or len(data) < _U32.size or context is not None:
                raise Violation(f"reply {kind} of {len(data)} bytes to the question for base:allocation")
            if data[_U32.size :] != ALLOCATION:
                raise Violation(f"the context {printable(data[4:])} was not asked for")
            context = int(_U32.unpack_from(data)[0])
    except Refused:
        return None
    return context


def _none(answers: Iterator[tuple[int, bytes]], what: str) -> None:
    for kind, _ in answers:
        raise Violation(f"reply {kind} to the request for {what}")


def _answers(stream: Stream, number: int, what: str) -> Iterator[tuple[int, bytes]]:
    """The replies to an option, as (type, data), until it is acknowledged."""
    for _ in range(MAX_OPTION_REPLIES):
        magic, answered, kind, length = _OPTION_REPLY.unpack(stream.exactly(_OPTION_REPLY.size))
        if magic != OPTION_REPLY or answered != number:
            raise Violation(f"the reply to option {number} begins with {magic:#x} and option {answered}")
        if length > MAX_OPTION_REPLY:
            raise Violation(f"a reply of {length} bytes to option {number}")
        data = stream.exactly(length)
        if kind == REP_ACK:
            if data:
                raise Violation(f"the acknowledgement of option {number} has {length} bytes")
            return
        if kind == REP_ERR_UNSUP:
            raise _Unsupported(f"it refuses {what}: {OPTION_ERRORS[kind]}")
        if kind & REP_ERROR:
            words = OPTION_ERRORS.get(kind, f"error {kind & ~REP_ERROR}")
            said = f" ({printable(data)})" if data else ""
            raise Refused(f"it refuses {what}: {words}{said}")
        yield kind, data
    raise Violation(f"more than {MAX_OPTION_REPLIES} replies to option {number}")


class _Unsupported(Refused):
    """The server does not know the option."""


def _export(answers: Iterator[tuple[int, bytes]]) -> Facts:
    """Facts from the replies to NBD_OPT_GO; pieces of information that we did not ask for are passed over."""
    export: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    for kind, data in answers:
        if kind != REP_INFO or len(data) < _U16.size:
            raise Violation(f"reply {kind} of {len(data)} bytes to NBD_OPT_GO")
        what, rest = _U16.unpack_from(data)[0], data[_U16.size :]
        if what == INFO_EXPORT:
            export = _unpacked(_EXPORT, rest, "NBD_INFO_EXPORT")
        elif what == INFO_BLOCK_SIZE:
            sizes = _unpacked(_BLOCK_SIZES, rest, "NBD_INFO_BLOCK_SIZE")
    if not export:
        raise Violation("NBD_OPT_GO is acknowledged without a word of the export")
    size, flags = export
    facts = Facts(size, flags)
    if sizes:
        minimum, preferred, maximum = sizes
        facts = facts._replace(minimum=minimum, preferred=preferred, maximum=maximum)
    return _checked(facts)


def _old_export(stream: Stream, export: bytes, ours: int) -> Facts:
    """By NBD_OPT_EXPORT_NAME, for servers without NBD_OPT_GO, which close the connection for an error."""
    stream.send(option(OPT_EXPORT_NAME, export))
    try:
        facts = _checked(Facts(*_EXPORT.unpack(stream.exactly(_EXPORT.size))))
    except ConnectionError as error:
        raise Refused(f"it closes the connection when asked for the export {printable(export)}") from error
    if not ours & FLAG_NO_ZEROES:
        stream.exactly(ZEROES)
    return facts


def _unpacked(form: Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != form.size:
        raise Violation(f"{what} has {len(data)} bytes, not {form.size}")
    return form.unpack(data)


def _checked(facts: Facts) -> Facts:
    if not facts.flags & HAS_FLAGS:
        raise Violation("the transmission flags have no NBD_FLAG_HAS_FLAGS")
    if not 0 < facts.size <= MAX_SIZE:
        raise Violation(f"an export of {facts.size} bytes")
    for name in ("minimum", "preferred"):
        size = getattr(facts, name)
        if size <= 0 or size & (size - 1):
            raise Violation(f"the {name} block size is {size}, not a power of two")
    if facts.minimum > 65536:
        raise Violation(f"the minimum block size is {facts.minimum}, more than 65536")
    if facts.maximum < max(facts.minimum, 512):
        raise Violation(f"the maximum block size is {facts.maximum}, the minimum {facts.minimum}")
    return facts


def error_number(code: int) -> int:
    """An errno for an error of the protocol."""
    return code if code in _ERRORS else errno.EINVAL


def error_chunk(kind: int, data: bytes) -> tuple[int, str]:
    """(code, message) of an error chunk."""
    if len(data) < _ERROR.size:
        raise Violation(f"an error chunk of {len(data)} bytes")
    code, length = _ERROR.unpack_from(data)
    rest = len(data) - _ERROR.size - length
    if rest < 0 or (kind == TYPE_ERROR and rest) or (kind == TYPE_ERROR_OFFSET and rest != 8):
        raise Violation(f"an error chunk of {len(data)} bytes with a message of {length}")
    if not code:
        raise Violation("an error chunk without an error")
    return code, printable(data[_ERROR.size : _ERROR.size + length])


def extents(context: int, data: bytes, offset: int, length: int) -> list[Extent]:
    """What a block status chunk says of the range, the last extent cut to its end; it may end before."""
    count, rest = divmod(len(data) - _U32.size, _EXTENT.size)
    if count < 1 or rest:
        raise Violation(f"a block status chunk of {len(data)} bytes")
    if _U32.unpack_from(data)[0] != context:
        raise Violation(f"block status of the context {_U32.unpack_from(data)[0]}, not {context}")
    found = []
    end = offset + length
    for size, flags in _EXTENT.iter_unpack(memoryview(data)[_U32.size :]):
        if not size or offset >= end:
            raise Violation("block status: an extent that is empty, or behind the end of the range")
        # NBD_STATE_HOLE and NBD_STATE_ZERO are 1 and 2, as ours are; the other bits are not defined.
        found.append(Extent(offset, min(size, end - offset), Content(flags & (Content.HOLE | Content.ZERO))))
        offset += size
    return found


def printable(data: bytes) -> str:
    """What a stranger sent, for a message: no control characters, not long."""
    text = data.decode("utf-8", "replace")
    words = "".join(char if char.isprintable() else "?" for char in text[:200])
    return words + "…" if len(text) > 200 else words
