"""What the pages of a unit have to be, field by field, out of the standards and without a line of the server.

A table is a list of rows: offset, bits, name, clause, expected value. Bits are "7", "7-4" or "*n" for n whole bytes;
numbers are big-endian, text is padded with spaces to the field, and a function is asked. ``check`` wants every bit of a
response explained by one row, and by one only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Row = tuple[int, str, str, str, Any]
ANY: Callable[[int], bool] = lambda value: True  # noqa: E731 - a value that the test has no way to know


def check(data: bytes, rows: Iterable[Row]) -> None:
    """Raise AssertionError with every field that is not as it should be, and every byte that no row explains."""
    wrong, seen = [], bytearray(len(data))
    for offset, bits, name, clause, expected in rows:
        width, high, low = _field(bits)
        if offset + width > len(data):
            wrong.append(f"{name} ({clause}) lies at {offset}, beyond the end at {len(data)}")
            continue
        mask = (0xFF if width > 1 else (1 << high + 1) - (1 << low)) if not bits.startswith("*") else 0xFF
        for at in range(offset, offset + width):
            if seen[at] & mask:
                wrong.append(f"{name} ({clause}) at {offset} bits {bits} is explained twice")
            seen[at] |= mask
        raw = data[offset : offset + width]
        if not _fits(raw, width, high, low, bits, expected):
            wrong.append(f"{name} ({clause}) at {offset} bits {bits}: {raw.hex()}, not {expected!r}")
    wrong += [f"byte {at}: bits {byte ^ 0xFF:#04x} are not explained" for at, byte in enumerate(seen) if byte != 0xFF]
    assert not wrong, "\n".join([data.hex(" "), *wrong])


def _field(bits: str) -> tuple[int, int, int]:
    if bits.startswith("*"):
        return int(bits[1:]), 7, 0
    high, _, low = bits.partition("-")
    return 1, int(high), int(low or high)


def _fits(raw: bytes, width: int, high: int, low: int, bits: str, expected: Any) -> bool:
    if isinstance(expected, bytes):
        return raw == expected
    if isinstance(expected, str):
        return raw == expected.encode("ascii").ljust(width)
    value = int.from_bytes(raw, "big")
    if not bits.startswith("*"):
        value = value >> low & (1 << high - low + 1) - 1
    return bool(expected(value)) if callable(expected) else value == expected


def shifted(offset: int, rows: Iterable[Row]) -> list[Row]:
    """The rows of a part that begins at ``offset``."""
    return [(offset + at, *rest) for at, *rest in rows]  # type: ignore[misc]


# -- SPC-4 6.6: INQUIRY ------------------------------------------------------------------------------------------------


def standard_inquiry(removable: int = 0) -> list[Row]:
    clause = "SPC-4 6.6.2"
    return [
        (0, "7-5", "PERIPHERAL QUALIFIER", clause, 0b000),
        (0, "4-0", "PERIPHERAL DEVICE TYPE", clause, 0x00),
        (1, "7", "RMB", clause, removable),
        (1, "6-0", "reserved, LU_CONG", clause, 0),
        (2, "*1", "VERSION", clause, 0x06),
        (3, "7-6", "reserved", clause, 0),
        (3, "5", "NORMACA", clause, 0),
        (3, "4", "HISUP", clause, 1),
        (3, "3-0", "RESPONSE DATA FORMAT", clause, 0x2),
        (4, "*1", "ADDITIONAL LENGTH", clause, 91),
        (5, "7", "SCCS", clause, 0),
        (5, "6", "ACC", clause, 0),
        (5, "5-4", "TPGS: implicit and explicit", clause, 0b11),
        (5, "3", "3PC", clause, 1),
        (5, "2-1", "reserved", clause, 0),
        (5, "0", "PROTECT", clause, 0),
        (6, "7", "reserved", clause, 0),
        (6, "6", "ENCSERV", clause, 0),
        (6, "5", "VS", clause, 0),
        (6, "4", "MULTIP: one port", clause, 0),
        (6, "3-0", "reserved, ADDR16", clause, 0),
        (7, "7-2", "reserved, WBUS16, SYNC", clause, 0),
        (7, "1", "CMDQUE", clause, 1),
        (7, "0", "VS", clause, 0),
        (8, "*8", "T10 VENDOR IDENTIFICATION", clause, "ISCSID"),
        (16, "*16", "PRODUCT IDENTIFICATION", clause, "VIRTUAL-DISK"),
        (32, "*4", "PRODUCT REVISION LEVEL", clause, "0001"),
        (36, "*20", "vendor specific", clause, 0),
        (56, "*2", "reserved, CLOCKING, QAS, IUS", clause, 0),
        (58, "*2", "VERSION DESCRIPTOR 1: SAM-5", "SPC-4 6.6.5", 0x00A0),
        (60, "*2", "VERSION DESCRIPTOR 2: iSCSI", "SPC-4 6.6.5", 0x0960),
        (62, "*2", "VERSION DESCRIPTOR 3: SPC-4", "SPC-4 6.6.5", 0x0460),
        (64, "*2", "VERSION DESCRIPTOR 4: SBC-3", "SPC-4 6.6.5", 0x04C0),
        (66, "*8", "VERSION DESCRIPTORS 5 - 8", "SPC-4 6.6.5", 0),
        (74, "*22", "reserved", clause, 0),
    ]


def vpd_header(page: int, length: int) -> list[Row]:
    return [
        (0, "7-5", "PERIPHERAL QUALIFIER", "SPC-4 7.8.1", 0b000),
        (0, "4-0", "PERIPHERAL DEVICE TYPE", "SPC-4 7.8.1", 0x00),
        (1, "*1", "PAGE CODE", "SPC-4 7.8.1", page),
        (2, "*2", "PAGE LENGTH", "SPC-4 7.8.1", length),
    ]


def supported_vpd_pages(codes: bytes) -> list[Row]:
    return [*vpd_header(0x00, len(codes)), (4, f"*{len(codes)}", "supported VPD page list", "SPC-4 7.8.16", codes)]


def serial_number(serial: str) -> list[Row]:
    return [*vpd_header(0x80, len(serial)), (4, f"*{len(serial)}", "PRODUCT SERIAL NUMBER", "SPC-4 7.8.18", serial)]


def designator(association: int, kind: int, code_set: int, value: Any, length: int) -> list[Row]:
    clause = "SPC-4 7.8.6.1"
    protocol = 0x5 if association else 0x0  # iSCSI, SPC-4 7.6.1; of a unit it is reserved
    return [
        (0, "7-4", "PROTOCOL IDENTIFIER", clause, protocol),
        (0, "3-0", "CODE SET", clause, code_set),
        (1, "7", "PIV", clause, 1 if association else 0),
        (1, "6", "reserved", clause, 0),
        (1, "5-4", "ASSOCIATION", clause, association),
        (1, "3-0", "DESIGNATOR TYPE", clause, kind),
        (2, "*1", "reserved", clause, 0),
        (3, "*1", "DESIGNATOR LENGTH", clause, length),
        (4, f"*{length}", f"DESIGNATOR of type {kind:X}h", "SPC-4 7.8.6", value),
    ]


def name_string(name: str) -> bytes:
    """SPC-4 7.8.6.11: UTF-8, null-terminated, null-padded to a multiple of four bytes."""
    return name.encode() + bytes(4 - len(name.encode()) % 4)


def device_identification(serial: str, target: str, lun: int) -> list[Row]:
    names = [name_string(f"{target},L,0x{lun:016x}"), name_string(f"{target},t,0x0001"), name_string(target)]
    vendor = b"ISCSID  " + serial.encode()
    parts = [
        designator(0, 0x3, 0x1, lambda value: value >> 60 == 0x3, 8),  # NAA locally assigned, 7.8.6.6.4
        designator(0, 0x1, 0x2, vendor, len(vendor)),  # T10 vendor ID based, 7.8.6.4
        designator(0, 0x8, 0x3, names[0], len(names[0])),  # SCSI name string
        designator(1, 0x8, 0x3, names[1], len(names[1])),
        designator(1, 0x4, 0x1, 0x00000001, 4),  # relative target port identifier, 7.8.6.7
        designator(1, 0x5, 0x1, 0x00000001, 4),  # target port group, 7.8.6.8
        designator(2, 0x8, 0x3, names[2], len(names[2])),
    ]
    return listed(lambda length: vpd_header(0x83, length), parts)


def listed(header: Callable[[int], list[Row]], parts: list[list[Row]]) -> list[Row]:
    """A header that tells the length of all parts, and then these, one behind the other."""
    rows: list[Row] = []
    start = at = end(header(0))
    for part in parts:
        rows += shifted(at, part)
        at += end(part)
    return [*header(at - start), *rows]


def end(rows: Iterable[Row]) -> int:
    return max((at + _field(bits)[0] for at, bits, *_ in rows), default=0)


def extended_inquiry(volatile: int) -> list[Row]:
    clause = "SPC-4 7.8.7"
    return [
        *vpd_header(0x86, 0x3C),
        (4, "7-6", "ACTIVATE MICROCODE", clause, 0),
        (4, "5-3", "SPT", clause, 0),
        (4, "2-0", "GRD_CHK, APP_CHK, REF_CHK", clause, 0),
        (5, "7-6", "reserved", clause, 0),
        (5, "5", "UASK_SUP", clause, 0),
        (5, "4", "GROUP_SUP", clause, 0),
        (5, "3", "PRIOR_SUP", clause, 0),
        (5, "2", "HEADSUP", clause, 1),
        (5, "1", "ORDSUP", clause, 1),
        (5, "0", "SIMPSUP", clause, 1),
        (6, "7-4", "reserved", clause, 0),
        (6, "3", "WU_SUP", clause, 0),
        (6, "2", "CRD_SUP", clause, 0),
        (6, "1", "NV_SUP", clause, 0),
        (6, "0", "V_SUP", clause, volatile),
        (7, "7-5", "reserved", clause, 0),
        (7, "4", "P_I_I_SUP", clause, 0),
        (7, "3-1", "reserved", clause, 0),
        (7, "0", "LUICLR", clause, 1),
        (8, "7-5", "reserved", clause, 0),
        (8, "4", "R_SUP", clause, 1),
        (8, "3-1", "reserved", clause, 0),
        (8, "0", "CBCS", clause, 0),
        (9, "*55", "from MULTI I_T NEXUS MICROCODE DOWNLOAD on", clause, 0),
    ]


def mode_page_policy() -> list[Row]:
    clause = "SPC-4 7.8.9"
    return [
        *vpd_header(0x87, 4),
        (4, "7-6", "reserved", clause, 0),
        (4, "5-0", "POLICY PAGE CODE: all", clause, 0x3F),
        (5, "*1", "POLICY SUBPAGE CODE: all", clause, 0xFF),
        (6, "7", "MLUS", clause, 0),
        (6, "6-2", "reserved", clause, 0),
        (6, "1-0", "MODE PAGE POLICY: shared", clause, 0b00),
        (7, "*1", "reserved", clause, 0),
    ]


def scsi_ports(target: str) -> list[Row]:
    clause, name = "SPC-4 7.8.14", name_string(f"{target},t,0x0001")
    port = [
        (0, "*2", "reserved", clause, 0),
        (2, "*2", "RELATIVE PORT IDENTIFIER", clause, 1),
        (4, "*2", "reserved", clause, 0),
        (6, "*2", "INITIATOR PORT TRANSPORTID LENGTH", clause, 0),
        (8, "*2", "reserved", clause, 0),
        (10, "*2", "TARGET PORT DESCRIPTORS LENGTH", clause, 4 + len(name)),
        *shifted(12, designator(1, 0x8, 0x3, name, len(name))),
    ]
    return listed(lambda length: vpd_header(0x88, length), [port])


# -- SBC-3 6.6: vital product data of block devices -------------------------------------------------------------------


def block_limits(granularity: int, atomic: int, transfer_granularity: int) -> list[Row]:
    clause = "SBC-3 6.6.4"
    return [
        *vpd_header(0xB0, 0x3C),
        (4, "7-1", "reserved", clause, 0),
        (4, "0", "WSNZ", clause, 1),
        (5, "*1", "MAXIMUM COMPARE AND WRITE LENGTH", clause, 255),
        (6, "*2", "OPTIMAL TRANSFER LENGTH GRANULARITY", clause, transfer_granularity),
        (8, "*4", "MAXIMUM TRANSFER LENGTH: 32 MiB", clause, 65536),
        (12, "*4", "OPTIMAL TRANSFER LENGTH", clause, 0),
        (16, "*4", "MAXIMUM PREFETCH LENGTH", clause, 0),
        (20, "*4", "MAXIMUM UNMAP LBA COUNT", clause, 1 << 20),
        (24, "*4", "MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT", clause, 256),
        (28, "*4", "OPTIMAL UNMAP GRANULARITY", clause, granularity),
        (32, "7", "UGAVALID", clause, 1),
        (32, "6-0", "UNMAP GRANULARITY ALIGNMENT, first byte", clause, 0),
        (33, "*3", "UNMAP GRANULARITY ALIGNMENT", clause, 0),
        (36, "*8", "MAXIMUM WRITE SAME LENGTH: 128 MiB", clause, 262144),
        (44, "*4", "MAXIMUM ATOMIC TRANSFER LENGTH", "SBC-4 6.6.4", atomic),
        (48, "*4", "ATOMIC ALIGNMENT", "SBC-4 6.6.4", 0),
        (52, "*4", "ATOMIC TRANSFER LENGTH GRANULARITY", "SBC-4 6.6.4", 0),
        (56, "*4", "MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY", "SBC-4 6.6.4", 0),
        (60, "*4", "MAXIMUM ATOMIC BOUNDARY SIZE", "SBC-4 6.6.4", 0),
    ]


def characteristics(erasable: int) -> list[Row]:
    clause = "SBC-3 6.6.3"
    return [
        *vpd_header(0xB1, 0x3C),
        (4, "*2", "MEDIUM ROTATION RATE: non-rotating, or not told", clause, lambda rate: rate in (0, 1)),
        (6, "*1", "PRODUCT TYPE", clause, 0),
        (7, "7-6", "WABEREQ", clause, erasable),
        (7, "5-4", "WACEREQ", clause, 0),
        (7, "3-0", "NOMINAL FORM FACTOR", clause, 0),
        (8, "*56", "FUAB, VBULS, reserved", clause, 0),
    ]


def provisioning(exponent: int = 11) -> list[Row]:
    clause = "SBC-3 6.6.5"
    return [
        *vpd_header(0xB2, 4),
        (4, "*1", "THRESHOLD EXPONENT: 1 MiB", clause, exponent),
        (5, "7", "LBPU", clause, 1),
        (5, "6", "LBPWS", clause, 1),
        (5, "5", "LBPWS10", clause, 1),
        (5, "4-3", "reserved", clause, 0),
        (5, "2", "LBPRZ", clause, 1),
        (5, "1", "ANC_SUP", clause, 0),
        (5, "0", "DP", clause, 0),
        (6, "7-3", "reserved", clause, 0),
        (6, "2-0", "PROVISIONING TYPE: thin", clause, 2),
        (7, "*1", "reserved", clause, 0),
    ]


def referrals() -> list[Row]:
    clause = "SBC-3 6.6.7"
    return [
        *vpd_header(0xB3, 0x0C),
        (4, "*4", "reserved", clause, 0),
        (8, "*4", "USER DATA SEGMENT SIZE", clause, 0),
        (12, "*4", "USER DATA SEGMENT MULTIPLIER", clause, 0),
    ]


# -- SPC-4 7.5, SBC-3 6.5: mode pages ----------------------------------------------------------------------------------


def mode_header(length: int, *, long: bool, descriptor: int) -> list[Row]:
    clause, size = "SPC-4 7.5.5", 2 if long else 1
    rows: list[Row] = [
        (0, f"*{size}", "MODE DATA LENGTH", clause, length),
        (size, "*1", "MEDIUM TYPE", clause, 0),
        (size + 1, "7", "WP", "SBC-3 6.5.1", 0),
        (size + 1, "6-5", "reserved", "SBC-3 6.5.1", 0),
        (size + 1, "4", "DPOFUA", "SBC-3 6.5.1", 1),
        (size + 1, "3-0", "reserved", "SBC-3 6.5.1", 0),
    ]
    if long:
        rows += [(4, "7-1", "reserved", clause, 0), (4, "0", "LONGLBA", clause, 0), (5, "*1", "reserved", clause, 0)]
    return [*rows, (6 if long else 3, f"*{size}", "BLOCK DESCRIPTOR LENGTH", clause, descriptor)]


def block_descriptor(blocks: int) -> list[Row]:
    clause = "SBC-3 6.5.2.2"
    return [
        (0, "*4", "NUMBER OF LOGICAL BLOCKS", clause, blocks),
        (4, "*1", "reserved", clause, 0),
        (5, "*3", "LOGICAL BLOCK LENGTH", clause, 512),
    ]


def mode_page(code: int, length: int, ps: int, *, subpage: int = 0) -> list[Row]:
    clause = "SPC-4 7.5.7"
    rows: list[Row] = [
        (0, "7", "PS", clause, ps),
        (0, "6", "SPF", clause, 1 if subpage else 0),
        (0, "5-0", "PAGE CODE", clause, code),
    ]
    if subpage:
        return [*rows, (1, "*1", "SUBPAGE CODE", clause, subpage), (2, "*2", "PAGE LENGTH", clause, length)]
    return [*rows, (1, "*1", "PAGE LENGTH", clause, length)]


def mode_pages(wce: int) -> list[list[Row]]:
    """All pages in the order of MODE SENSE with 3Fh and FFh, as they are when nobody has changed anything."""
    recovery, disconnect, caching = "SBC-3 6.5.8", "SPC-4 7.5.10", "SBC-3 6.5.5"
    control, extension, exceptions, thresholds = "SPC-4 7.5.8", "SPC-4 7.5.9", "SPC-4 7.5.11", "SBC-3 6.5.7"
    return [
        [
            *mode_page(0x01, 10, 1),
            (2, "*1", "AWRE, ARRE, TB, RC, EER, PER, DTE, DCR", recovery, 0),
            (3, "*1", "READ RETRY COUNT", recovery, 0),
            (4, "*3", "obsolete", recovery, 0),
            (7, "7", "LBPERE", recovery, 0),
            (7, "6-0", "reserved", recovery, 0),
            (8, "*1", "WRITE RETRY COUNT", recovery, 0),
            (9, "*1", "reserved", recovery, 0),
            (10, "*2", "RECOVERY TIME LIMIT", recovery, 0),
        ],
        [
            *mode_page(0x02, 14, 0),
            (2, "*1", "BUFFER FULL RATIO", disconnect, 0),
            (3, "*1", "BUFFER EMPTY RATIO", disconnect, 0),
            (4, "*2", "BUS INACTIVITY LIMIT", disconnect, 0),
            (6, "*2", "DISCONNECT TIME LIMIT", disconnect, 0),
            (8, "*2", "CONNECT TIME LIMIT", disconnect, 0),
            (10, "*2", "MAXIMUM BURST SIZE", disconnect, 0),
            (12, "*1", "EMDP, FAIR ARBITRATION, DIMM, DTDC", disconnect, 0),
            (13, "*1", "reserved", disconnect, 0),
            (14, "*2", "FIRST BURST SIZE", disconnect, 0),
        ],
        [
            *mode_page(0x08, 18, 1 if wce else 0),
            (2, "7-3", "IC, ABPF, CAP, DISC, SIZE", caching, 0),
            (2, "2", "WCE", caching, wce),
            (2, "1", "MF", caching, 0),
            (2, "0", "RCD", caching, 0),
            (3, "*1", "retention priorities", caching, 0),
            (4, "*8", "pre-fetch lengths", caching, 0),
            (12, "*1", "FSW, LBCSS, DRA, SYNC_PROG, NV_DIS", caching, 0),
            (13, "*1", "NUMBER OF CACHE SEGMENTS", caching, 0),
            (14, "*2", "CACHE SEGMENT SIZE", caching, 0),
            (16, "*4", "reserved, obsolete", caching, 0),
        ],
        [
            *mode_page(0x0A, 10, 1),
            (2, "7-5", "TST: a task set for each nexus", control, 0b001),
            (2, "4-3", "TMF_ONLY, DPICZ", control, 0),
            (2, "2", "D_SENSE", control, 0),
            (2, "1-0", "GLTSD, RLEC", control, 0),
            (3, "7-4", "QUEUE ALGORITHM MODIFIER: unrestricted", control, 0x1),
            (3, "3", "NUAR", control, 0),
            (3, "2-1", "QERR", control, 0b00),
            (3, "0", "obsolete", control, 0),
            (4, "7-4", "RAC, UA_INTLCK_CTRL", control, 0),
            (4, "3", "SWP", control, 0),
            (4, "2-0", "obsolete", control, 0),
            (5, "*1", "ATO, TAS, ATMPE, RWWP, AUTOLOAD MODE", control, 0),
            (6, "*2", "obsolete", control, 0),
            (8, "*2", "BUSY TIMEOUT PERIOD", control, 0),
            (10, "*2", "EXTENDED SELF-TEST COMPLETION TIME", control, 0),
        ],
        [
            *mode_page(0x0A, 0x1C, 0, subpage=0x01),
            (4, "7-3", "reserved", extension, 0),
            (4, "2", "TCMOS", extension, 0),
            (4, "1", "SCSIP", extension, 0),
            (4, "0", "IALUAE", extension, 1),
            (5, "*1", "INITIAL COMMAND PRIORITY", extension, 0),
            (6, "*1", "MAXIMUM SENSE DATA LENGTH", extension, 0),
            (7, "*25", "reserved", extension, 0),
        ],
        [
            *mode_page(0x1C, 10, 0),
            (2, "7-4", "PERF, EBF, EWASC", exceptions, 0),
            (2, "3", "DEXCPT", exceptions, 1),
            (2, "2-0", "TEST, EBACKERR, LOGERR", exceptions, 0),
            (3, "*1", "MRIE", exceptions, 0),
            (4, "*4", "INTERVAL TIMER", exceptions, 0),
            (8, "*4", "REPORT COUNT", exceptions, 0),
        ],
        [
            *mode_page(0x1C, 0x14, 1, subpage=0x02),
            (4, "7-1", "reserved", thresholds, 0),
            (4, "0", "SITUA", thresholds, 0),
            (5, "*11", "reserved", thresholds, 0),
            (16, "7", "ENABLED", thresholds, 0),
            (16, "6", "reserved", thresholds, 0),
            (16, "5-3", "THRESHOLD TYPE", thresholds, 0b000),
            (16, "2-0", "THRESHOLD ARMING: decreasing", thresholds, 0b000),
            (17, "*1", "THRESHOLD RESOURCE: available", thresholds, 0x01),
            (18, "*2", "reserved", thresholds, 0),
            (20, "*4", "THRESHOLD COUNT", thresholds, 0),
        ],
    ]


def mode_sense(pages: list[list[Row]], blocks: int, *, long: bool) -> list[Row]:
    parts = [block_descriptor(blocks), *pages]
    size = 8 if long else 4
    whole = size + sum(map(end, parts)) - (2 if long else 1)
    return listed(lambda _: mode_header(whole, long=long, descriptor=8), parts)


# -- SPC-4 7.3, SBC-3 6.4: log pages -----------------------------------------------------------------------------------


def log_header(code: int, length: int, *, subpage: int = 0) -> list[Row]:
    clause = "SPC-4 7.3.2.1"
    return [
        (0, "7", "DS: nothing is saved", clause, 1 if code else 0),
        (0, "6", "SPF", clause, 1 if subpage else 0),
        (0, "5-0", "PAGE CODE", clause, code),
        (1, "*1", "SUBPAGE CODE", clause, subpage),
        (2, "*2", "PAGE LENGTH", clause, length),
    ]


def log_parameter(code: int, length: int, linking: int) -> list[Row]:
    clause = "SPC-4 7.3.2.2"
    return [
        (0, "*2", "PARAMETER CODE", clause, code),
        (2, "7", "DU", clause, 0),
        (2, "6", "obsolete", clause, 0),
        (2, "5", "TSD", clause, 1),
        (2, "4", "ETC", clause, 0),
        (2, "3-2", "TMC", clause, 0b00),
        (2, "1-0", "FORMAT AND LINKING", clause, linking),
        (3, "*1", "PARAMETER LENGTH", clause, length),
    ]


LOG_PAGES = bytes((0x00, 0x02, 0x03, 0x0C, 0x19))


def log_lists() -> tuple[list[Row], list[Row]]:
    """Pages 00h/00h and 00h/FFh."""
    pairs = bytes.fromhex("0000 00ff 0200 0300 0c00 1900")
    return (
        [*log_header(0, len(LOG_PAGES)), (4, f"*{len(LOG_PAGES)}", "page list", "SPC-4 7.3.18", LOG_PAGES)],
        [*log_header(0, len(pairs), subpage=0xFF), (4, f"*{len(pairs)}", "page list", "SPC-4 7.3.19", pairs)],
    )


def error_counters(code: int, moved: int) -> list[Row]:
    clause = "SPC-4 7.3.23" if code == 0x02 else "SPC-4 7.3.14"
    parts: list[list[Row]] = [
        [*log_parameter(0x0005, 8, 0b00), (4, "*8", "total bytes processed", clause, moved)],
        [*log_parameter(0x0006, 8, 0b00), (4, "*8", "total uncorrected errors", clause, 0)],
    ]
    return listed(lambda length: log_header(code, length), parts)


def resource_counts(used: int) -> list[Row]:
    clause = "SBC-3 6.4.4"
    parts: list[list[Row]] = [
        [
            *log_parameter(0x0001, 8, 0b11),
            (4, "*4", "RESOURCE COUNT available", clause, lambda count: count > 0),
            (8, "7-2", "reserved", clause, 0),
            (8, "1-0", "SCOPE: not dedicated", clause, 0b10),
            (9, "*3", "reserved", clause, 0),
        ],
        [
            *log_parameter(0x0002, 8, 0b11),
            (4, "*4", "RESOURCE COUNT used", clause, used),
            (8, "7-2", "reserved", clause, 0),
            (8, "1-0", "SCOPE: dedicated", clause, 0b01),
            (9, "*3", "reserved", clause, 0),
        ],
    ]
    return listed(lambda length: log_header(0x0C, length), parts)


def statistics(reads: int, writes: int, received: int, transmitted: int) -> list[Row]:
    clause = "SPC-4 7.3.8"
    names = ("READ COMMANDS", "WRITE COMMANDS", "LOGICAL BLOCKS RECEIVED", "LOGICAL BLOCKS TRANSMITTED")
    counts: list[Row] = [
        (4 + 8 * number, "*8", f"NUMBER OF {name}", clause, value)
        for number, (name, value) in enumerate(zip(names, (reads, writes, received, transmitted), strict=True))
    ]
    part: list[Row] = [*log_parameter(0x0001, 0x40, 0b11), *counts, (36, "*32", "intervals and weights", clause, 0)]
    idle: list[Row] = [*log_parameter(0x0002, 8, 0b11), (4, "*8", "IDLE TIME INTERVALS", clause, 0)]
    interval: list[Row] = [
        *log_parameter(0x0003, 8, 0b11),
        (4, "*4", "EXPONENT", clause, 0),
        (8, "*4", "INTEGER: time is not measured", clause, 0),
    ]
    return listed(lambda length: log_header(0x19, length), [part, idle, interval])


# -- capacity, ports, units --------------------------------------------------------------------------------------------


def capacity_10(blocks: int) -> list[Row]:
    return [
        (0, "*4", "RETURNED LOGICAL BLOCK ADDRESS", "SBC-3 5.15.2", blocks - 1),
        (4, "*4", "LOGICAL BLOCK LENGTH IN BYTES", "SBC-3 5.15.2", 512),
    ]


def capacity_16(blocks: int, exponent: int) -> list[Row]:
    clause = "SBC-3 5.16.2"
    return [
        (0, "*8", "RETURNED LOGICAL BLOCK ADDRESS", clause, blocks - 1),
        (8, "*4", "LOGICAL BLOCK LENGTH IN BYTES", clause, 512),
        (12, "7-4", "reserved", clause, 0),
        (12, "3-1", "P_TYPE", clause, 0),
        (12, "0", "PROT_EN", clause, 0),
        (13, "7-4", "P_I_EXPONENT", clause, 0),
        (13, "3-0", "LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT", clause, exponent),
        (14, "7", "LBPME", clause, 1),
        (14, "6", "LBPRZ", clause, 1),
        (14, "5-0", "LOWEST ALIGNED LOGICAL BLOCK ADDRESS, first bits", clause, 0),
        (15, "*1", "LOWEST ALIGNED LOGICAL BLOCK ADDRESS", clause, 0),
        (16, "*16", "reserved", clause, 0),
    ]


ALUA_STATES = 0x8F | 0x40  # T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP


def port_groups(settable: int) -> list[Row]:
    clause = "SPC-4 6.37"
    return [
        (0, "*4", "RETURN DATA LENGTH", clause, 12),
        (4, "7", "PREF", clause, 0),
        (4, "6-4", "reserved", clause, 0),
        (4, "3-0", "ASYMMETRIC ACCESS STATE: active/optimized", clause, 0x0),
        (5, "*1", "T_SUP, O_SUP, LBD_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP", clause, settable),
        (6, "*2", "TARGET PORT GROUP", clause, 1),
        (8, "*1", "reserved", clause, 0),
        (9, "*1", "STATUS CODE", clause, 0),
        (10, "*1", "vendor specific", clause, 0),
        (11, "*1", "TARGET PORT COUNT", clause, 1),
        (12, "*2", "obsolete", clause, 0),
        (14, "*2", "RELATIVE TARGET PORT IDENTIFIER", clause, 1),
    ]


def luns(numbers: Iterable[int]) -> list[Row]:
    units = list(numbers)
    head: list[Row] = [
        (0, "*4", "LUN LIST LENGTH", "SPC-4 6.33", 8 * len(units)),
        (4, "*4", "reserved", "SPC-4 6.33", 0),
    ]
    rows: list[Row] = [(8 + 8 * at, "*8", f"LUN {lun}", "SAM-5 4.7", lun << 48) for at, lun in enumerate(units)]
    return head + rows
