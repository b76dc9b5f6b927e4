"""The qcow2 format on disk (QEMU's docs/interop/qcow2.txt), as pure functions: bytes in, objects out, and back.

An image comes from anywhere, so everything that a header declares is checked here before anybody allocates, seeks or
loops by it. What is wrong is a BlockError(INVALID) whose words name the file and the thing. Numbers on disk are
big-endian; offsets and lengths are bytes; a cluster is the unit of allocation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from iscsid.plugin import BlockError, Fault

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
#: QEMU's own limits: larger tables are refused rather than read into memory.
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE = 16 << 20
MAX_SNAPSHOT_EXTRA = 1024
MAX_BACKING_NAME = 1023
MAX_REFCOUNT_ORDER = 6
SUBCLUSTERS = 32

# Incompatible features: an image with one that is not known here cannot be opened.
DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2
# Compatible features: one that is not known can be ignored.
LAZY_REFCOUNTS = 1 << 0
# Autoclear features: whoever writes and does not know one has to clear it.
BITMAPS = 1 << 0
RAW_DATA = 1 << 1

# Header extensions.
EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

# Entries of L1 and L2 tables.
COPIED = 1 << 63  # the reference count is exactly 1: may be written in place
COMPRESSED = 1 << 62
ZERO = 1 << 0  # reads as zeros (version 3, standard L2 entries)
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

DEFLATE, ZSTD = 0, 1
COMPRESSIONS = {DEFLATE: "zlib", ZSTD: "zstd"}

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2: 72 bytes
_MORE = struct.Struct(">QQQII")  # version 3 goes on to 104
V2_LENGTH, V3_LENGTH, FULL_LENGTH = 72, 104, 112
_EXTENSION = struct.Struct(">II")
_SNAPSHOT = struct.Struct(">QIHHIIQII")

_FEATURE_NAMES: tuple[tuple[int, int, str], ...] = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)


def refuse(name: str, words: str, fault: Fault = Fault.INVALID) -> NoReturn:
    """Raise the BlockError that says what is wrong with the image ``name``."""
    raise BlockError(fault, f"{name}: {words}")


@dataclass(slots=True)
class Header:
    """The header of an image and its extensions. ``backing`` and ``data_file`` are names as they stand there."""

    version: int = 3
    cluster_bits: int = 16
    size: int = 0
    l1_size: int = 0  # entries
    l1_offset: int = 0
    reftable_offset: int = 0
    reftable_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    crypt_method: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = FULL_LENGTH
    compression: int = DEFLATE
    backing: str = ""
    backing_format: str = ""
    data_file: str = ""
    extensions: list[tuple[int, bytes]] = field(default_factory=list)  # those that are not fields above
    rest: bytes = b""  # header fields of a later revision, kept as they are
    backing_offset: int = 0

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended(self) -> bool:
        """Whether L2 entries have 128 bits and clusters have subclusters."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended else 8

    @property
    def l2_entries(self) -> int:
        """Entries of one L2 table, which takes one cluster."""
        return self.cluster_size // self.l2_entry_size

    @property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @property
    def lazy(self) -> bool:
        return bool(self.compatible & LAZY_REFCOUNTS)

    @property
    def external(self) -> bool:
        return bool(self.incompatible & EXTERNAL_DATA)

    @property
    def raw_data(self) -> bool:
        """Whether the external data file must always be a valid raw image."""
        return self.external and bool(self.autoclear & RAW_DATA)

    @property
    def l1_needed(self) -> int:
        """Entries of an L1 table for ``size``."""
        return l1_entries(self, self.size)

    def fixed(self) -> bytes:
        """The fixed part, all of it within the first sector: what is written over the old one in one go."""
        head = _FIXED.pack(
            MAGIC,
            self.version,
            self.backing_offset,
            len(self.backing.encode()),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version == 2:
            return head
        head += _MORE.pack(self.incompatible, self.compatible, self.autoclear, self.refcount_order, self.header_length)
        if self.header_length >= FULL_LENGTH:
            head += bytes((self.compression,)) + bytes(7)
        return head


def l1_entries(header: Header, size: int) -> int:
    """How many L1 entries a disk of ``size`` bytes needs."""
    return -(-size // (header.cluster_size * header.l2_entries))


def pack(header: Header, name: str = "image") -> bytes:
    """The first cluster of an image, up to the end of the backing file's name; sets ``backing_offset``."""
    extensions = bytearray()
    if header.backing_format:
        extensions += _extension(EXT_BACKING_FORMAT, header.backing_format.encode())
    if header.data_file:
        extensions += _extension(EXT_DATA_FILE, header.data_file.encode())
    for kind, data in header.extensions:
        extensions += _extension(kind, data)
    start = V2_LENGTH if header.version == 2 else header.header_length
    backing = header.backing.encode()
    names = b"".join(struct.pack(">BB46s", kind, bit, text.encode()) for kind, bit, text in _FEATURE_NAMES)
    names = _extension(EXT_FEATURE_NAMES, names)
    if header.version > 2 and start + len(extensions) + len(names) + len(backing) + 8 <= header.cluster_size:
        extensions += names  # for messages only; in the smallest clusters other things need the room
    extensions += _EXTENSION.pack(EXT_END, 0)
    header.backing_offset = start + len(extensions) if backing else 0
    whole = header.fixed().ljust(start, b"\0") + extensions + backing
    if len(whole) > header.cluster_size or len(backing) > MAX_BACKING_NAME:
        refuse(name, "the header and the names in it do not fit into one cluster")
    return bytes(whole)


def _extension(kind: int, data: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)


def cluster_bits_of(data: bytes, name: str) -> int:
    """``cluster_bits`` of a header that begins ``data``, so that all of its cluster can be read."""
    if data[:4] != MAGIC:
        refuse(name, "not a qcow2 image")
    if len(data) < V2_LENGTH:
        refuse(name, f"the header ends after {len(data)} bytes")
    bits: int = _FIXED.unpack_from(data)[4]
    if not MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS:
        refuse(name, f"cluster_bits {bits}: not from {MIN_CLUSTER_BITS} to {MAX_CLUSTER_BITS}")
    return bits


def parse(data: bytes, name: str, file_size: int) -> Header:
    """The header in ``data``, the first cluster of a file of ``file_size`` bytes, checked as a whole."""
    bits = cluster_bits_of(data, name)
    header = Header(cluster_bits=bits, version=0)
    (_, header.version, header.backing_offset, backing_size, _, header.size, header.crypt_method, *tables) = (
        _FIXED.unpack_from(data)
    )
    (header.l1_size, header.l1_offset, header.reftable_offset, header.reftable_clusters, *snapshots) = tables
    header.nb_snapshots, header.snapshots_offset = snapshots
    if header.version not in (2, 3):
        refuse(name, f"version {header.version} of qcow2; 2 and 3 are known", Fault.UNSUPPORTED)
    if header.crypt_method:
        kind = {1: "AES", 2: "LUKS"}.get(header.crypt_method, "of an unknown kind")
        refuse(name, f"the image is encrypted ({kind}), which is not supported", Fault.UNSUPPORTED)
    header.header_length = V2_LENGTH
    if header.version == 3:
        _parse_version_3(header, data, name)
    _parse_extensions(header, data, name)
    _parse_backing(header, data, backing_size, name)
    _check_features(header, name)
    _check_tables(header, name, file_size)
    return header


def _parse_version_3(header: Header, data: bytes, name: str) -> None:
    if len(data) < V3_LENGTH:
        refuse(name, f"the header ends after {len(data)} bytes")
    header.incompatible, header.compatible, header.autoclear, header.refcount_order, length = _MORE.unpack_from(
        data, V2_LENGTH
    )
    if length < V3_LENGTH or length % 8 or length > min(len(data), header.cluster_size):
        refuse(name, f"header_length {length} makes no sense")
    header.header_length = length
    if length > V3_LENGTH:
        header.compression = data[V3_LENGTH]
    header.rest = data[FULL_LENGTH:length]
    if header.refcount_order > MAX_REFCOUNT_ORDER:
        refuse(name, f"refcount_order {header.refcount_order}: at most {MAX_REFCOUNT_ORDER}")


def _parse_extensions(header: Header, data: bytes, name: str) -> None:
    end = header.backing_offset if 0 < header.backing_offset <= len(data) else len(data)
    at = header.header_length
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(data, at)
        at += _EXTENSION.size
        if kind == EXT_END:
            return
        if length > end - at:
            refuse(name, f"the header extension {kind:#010x} of {length} bytes is longer than the header")
        content = data[at : at + length]
        at += -(-length // 8) * 8
        if kind == EXT_BACKING_FORMAT:
            header.backing_format = _text(content, name, "the format of the backing file")
        elif kind == EXT_DATA_FILE:
            header.data_file = _text(content, name, "the name of the data file")
        elif kind != EXT_FEATURE_NAMES:  # that one is written anew
            header.extensions.append((kind, content))


def _parse_backing(header: Header, data: bytes, size: int, name: str) -> None:
    if not header.backing_offset:
        return
    if size > MAX_BACKING_NAME or header.backing_offset + size > min(len(data), header.cluster_size):
        refuse(name, f"the name of the backing file ({size} bytes at {header.backing_offset}) is not in the header")
    header.backing = _text(data[header.backing_offset : header.backing_offset + size], name, "the backing file's name")


def _text(data: bytes, name: str, what: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        refuse(name, f"{what} is not UTF-8")
    if "\0" in text:
        refuse(name, f"{what} has a NUL in it")
    return text


def _check_features(header: Header, name: str) -> None:
    unknown = header.incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        bits = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        refuse(name, f"needs features that are not known here (incompatible bits {bits})", Fault.UNSUPPORTED)
    if header.compression not in COMPRESSIONS:
        refuse(name, f"compression type {header.compression} is not known here", Fault.UNSUPPORTED)
    if bool(header.incompatible & COMPRESSION_TYPE) != (header.compression != DEFLATE):
        refuse(name, "the compression type does not agree with its feature bit")
    if header.extended and header.cluster_bits < 14:
        refuse(name, f"extended L2 entries need clusters of 16384 bytes, not {header.cluster_size}")
    if header.external and not header.data_file:
        refuse(name, "its data is in another file, whose name is not recorded")
    if header.raw_data and header.backing:
        refuse(name, "a raw data file and a backing file exclude each other")


def _check_tables(header: Header, name: str, file_size: int) -> None:
    """Every table is aligned, within the limits and within the file, so that reading it is bounded by the file."""
    if header.size > 1 << 62:
        refuse(name, f"a size of {header.size} bytes is too large")
    needed = header.l1_needed
    if needed * 8 > MAX_L1_BYTES or header.l1_size * 8 > MAX_L1_BYTES:
        refuse(name, f"an L1 table of {max(needed, header.l1_size)} entries is too large")
    if header.l1_size < needed:
        refuse(name, f"the L1 table has {header.l1_size} entries; {header.size} bytes need {needed}")
    if not header.reftable_clusters:
        refuse(name, "there is no refcount table")
    if header.nb_snapshots > MAX_SNAPSHOTS:
        refuse(name, f"{header.nb_snapshots} snapshots are too many")
    reftable = header.reftable_clusters << header.cluster_bits
    if reftable > MAX_REFTABLE_BYTES:
        refuse(name, f"a refcount table of {reftable} bytes is too large")
    end = -(-file_size // header.cluster_size) * header.cluster_size
    for what, offset, length in (
        ("L1 table", header.l1_offset, header.l1_size * 8),
        ("refcount table", header.reftable_offset, reftable),
        ("snapshot table", header.snapshots_offset, header.nb_snapshots and _SNAPSHOT.size),
    ):
        check_place(header, name, what, offset, length, end)


def check_place(header: Header, name: str, what: str, offset: int, length: int, end: int) -> None:
    """Refuse a table that is not aligned, lies over the header, or does not end before ``end``."""
    if not length:
        return
    if offset & (header.cluster_size - 1):
        refuse(name, f"the {what} at {offset:#x} is not aligned to a cluster")
    if not offset:
        refuse(name, f"the {what} lies over the header")
    if offset + length > end:
        refuse(name, f"the {what} ({length} bytes at {offset:#x}) lies behind the end of the file")


# Snapshots.


@dataclass(slots=True)
class Snapshot:
    """One entry of the snapshot table; ``seconds`` and ``nanoseconds`` since 1970 tell when it was made."""

    id: str
    name: str
    l1_offset: int
    l1_size: int  # entries
    disk_size: int  # bytes
    seconds: int = 0
    nanoseconds: int = 0
    vm_clock: int = 0
    vm_state_size: int = 0
    extra: bytes = b""  # behind what is decoded here

    def pack(self) -> bytes:
        extra = struct.pack(">QQ", self.vm_state_size, self.disk_size) + self.extra
        identity, title = self.id.encode(), self.name.encode()
        head = _SNAPSHOT.pack(
            self.l1_offset,
            self.l1_size,
            len(identity),
            len(title),
            self.seconds,
            self.nanoseconds,
            self.vm_clock,
            min(self.vm_state_size, 0xFFFFFFFF),
            len(extra),
        )
        entry = head + extra + identity + title
        return entry + bytes(-len(entry) % 8)


def parse_snapshots(data: bytes, header: Header, name: str, file_size: int) -> tuple[list[Snapshot], int]:
    """The snapshots in ``data``, which begins at the table and may go on behind it, and the length of the table."""
    found: list[Snapshot] = []
    at = 0
    end = -(-file_size // header.cluster_size) * header.cluster_size
    for number in range(header.nb_snapshots):
        if at + _SNAPSHOT.size > len(data):
            refuse(name, f"the snapshot table ends within entry {number}")
        offset, entries, id_size, name_size, seconds, nano, clock, state, extra_size = _SNAPSHOT.unpack_from(data, at)
        at += _SNAPSHOT.size
        if extra_size > MAX_SNAPSHOT_EXTRA or at + extra_size + id_size + name_size > len(data):
            refuse(name, f"entry {number} of the snapshot table makes no sense")
        extra = data[at : at + extra_size]
        at += extra_size
        identity = data[at : at + id_size].decode(errors="replace")
        at += id_size
        title = data[at : at + name_size].decode(errors="replace")
        at = -(-(at + name_size) // 8) * 8
        large_state = int.from_bytes(extra[:8], "big") if extra_size >= 8 else state
        size = int.from_bytes(extra[8:16], "big") if extra_size >= 16 else header.size
        _check_snapshot(header, name, title, offset, entries, size, end)
        found.append(Snapshot(identity, title, offset, entries, size, seconds, nano, clock, large_state, extra[16:]))
    return found, at


def _check_snapshot(header: Header, name: str, title: str, offset: int, entries: int, size: int, end: int) -> None:
    what = f"L1 table of snapshot {title!r}"
    if entries * 8 > MAX_L1_BYTES or size > 1 << 62 or l1_entries(header, size) * 8 > MAX_L1_BYTES:
        refuse(name, f"the {what} is too large")
    check_place(header, name, what, offset, entries * 8, end)


# L2 entries.


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Where the data of a compressed cluster lies: its first byte, and how many bytes it may have at most."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * 512 - (offset & 511)


def clusters_of(offset: int, length: int, cluster_bits: int) -> Iterator[int]:
    """Numbers of the host clusters that the range touches."""
    if length:
        yield from range(offset >> cluster_bits, (offset + length - 1 >> cluster_bits) + 1)
