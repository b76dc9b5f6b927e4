"""Vital product data page 8Fh as tables, like those of e2e_pages: what the copy manager can do, and how much."""

from __future__ import annotations

from e2e_pages import Row, end, listed, shifted, vpd_header

MIB_64 = 64 << 20
ACCESS_UPON_REFERENCE, BLOCK_ZERO = 0x00010000, 0xFFFF0001
ROD_FEATURES, ROD_TYPES = "SPC-4 7.8.17.8", "SPC-4 7.8.17.9"


def third_party_copy(shift: int = 9) -> list[Row]:
    """Page 8Fh of a unit with blocks of ``1 << shift`` bytes."""
    parts = [
        _copy_descriptor(0x0000, _token_limits(shift)),
        _copy_descriptor(0x0001, _copy_commands()),
        _copy_descriptor(0x0004, _copy_parameters()),
        _copy_descriptor(0x0008, _counted_codes("SUPPORTED DESCRIPTOR TYPE CODES", "SPC-4 7.8.17.6", "02e4", 1)),
        _copy_descriptor(0x000C, _counted_codes("SUPPORTED CSCD IDS", "SPC-4 7.8.17.7", "ffff", 2)),
        _copy_descriptor(0x0106, _token_features()),
        _copy_descriptor(0x0108, _rod_types()),
        _copy_descriptor(0x8001, _general_copies(shift)),
    ]
    return listed(lambda length: vpd_header(0x8F, length), parts)


def _copy_descriptor(kind: int, rows: list[Row]) -> list[Row]:
    """A third-party copy descriptor, filled up to a multiple of four bytes (SPC-4 7.8.17.2)."""
    length = end(rows)
    padding: list[Row] = [(4 + length, f"*{-length % 4}", "padding", "SPC-4 7.8.17.2", 0)] if length % 4 else []
    return [
        (0, "*2", "THIRD-PARTY COPY DESCRIPTOR TYPE", "SPC-4 7.8.17.2", kind),
        (2, "*2", "THIRD-PARTY COPY DESCRIPTOR LENGTH", "SPC-4 7.8.17.2", length + -length % 4),
        *shifted(4, rows),
        *padding,
    ]


def _counted_codes(name: str, clause: str, codes: str, width: int) -> list[Row]:
    told = bytes.fromhex(codes)
    return [
        (0, f"*{width}", f"{name} LIST LENGTH", clause, len(told)),
        (width, f"*{len(told)}", name, clause, told),
    ]


def _token_limits(shift: int) -> list[Row]:
    clause = "SBC-3 6.6.6.3"
    return [
        (0, "*6", "vendor specific", clause, 0),
        (6, "*2", "MAXIMUM RANGE DESCRIPTORS", clause, 15),
        (8, "*4", "MAXIMUM INACTIVITY TIMEOUT", clause, 600),
        (12, "*4", "DEFAULT INACTIVITY TIMEOUT", clause, 60),
        (16, "*8", "MAXIMUM TOKEN TRANSFER SIZE: 256 MiB", clause, 256 << 20 >> shift),
        (24, "*8", "OPTIMAL TRANSFER COUNT: 64 MiB", clause, MIB_64 >> shift),
    ]


def _copy_commands() -> list[Row]:
    """EXTENDED COPY, LID1 and LID4, the token commands and COPY OPERATION ABORT; and what tells of them."""
    clause = "SPC-4 7.8.17.4"
    out, told = bytes.fromhex("00 01 10 11 1c"), bytes.fromhex("00 03 04 05 07")
    return [
        (0, "*1", "COMMANDS SUPPORTED LIST LENGTH", clause, 14),
        (1, "*1", "SUPPORTED OPERATION CODE", clause, 0x83),
        (2, "*1", "SUPPORTED SERVICE ACTIONS LIST LENGTH", clause, len(out)),
        (3, "*5", "SUPPORTED SERVICE ACTIONS", clause, out),
        (8, "*1", "SUPPORTED OPERATION CODE", clause, 0x84),
        (9, "*1", "SUPPORTED SERVICE ACTIONS LIST LENGTH", clause, len(told)),
        (10, "*5", "SUPPORTED SERVICE ACTIONS", clause, told),
    ]


def _copy_parameters() -> list[Row]:
    clause = "SPC-4 7.8.17.5"
    return [
        (0, "*4", "reserved", clause, 0),
        (4, "*2", "MAXIMUM CSCD DESCRIPTOR COUNT", clause, 16),
        (6, "*2", "MAXIMUM SEGMENT DESCRIPTOR COUNT", clause, 16),
        (8, "*4", "MAXIMUM DESCRIPTOR LIST LENGTH: 16 x 32 + 16 x 28", clause, 960),
        (12, "*4", "MAXIMUM INLINE DATA LENGTH", clause, 0),
        (16, "*12", "reserved", clause, 0),
    ]


def _token_features() -> list[Row]:
    clause = ROD_FEATURES
    return [
        (0, "7-4", "reserved", clause, 0),
        (0, "3-0", "REMOTE TOKENS: none are taken", clause, 0),
        (1, "*11", "reserved", clause, 0),
        (12, "*4", "MINIMUM TOKEN LIFETIME", clause, 1),
        (16, "*4", "MAXIMUM TOKEN LIFETIME", clause, 600),
        (20, "*4", "MAXIMUM TOKEN INACTIVITY TIMEOUT", clause, 600),
        (24, "*18", "reserved", clause, 0),
        (42, "*2", "ROD DEVICE TYPE SPECIFIC FEATURES DESCRIPTORS LENGTH", clause, 48),
        (44, "7-5", "DESCRIPTOR FORMAT", clause, 0),
        (44, "4-0", "PERIPHERAL DEVICE TYPE", clause, 0),
        (45, "*1", "reserved", clause, 0),
        (46, "*2", "DESCRIPTOR LENGTH", clause, 0x2C),
        (48, "*2", "reserved", clause, 0),
        (50, "*2", "OPTIMAL BLOCK ROD LENGTH GRANULARITY", clause, 0),
        (52, "*8", "MAXIMUM BYTES IN BLOCK ROD: no limit", clause, 0),
        (60, "*8", "OPTIMAL BYTES IN BLOCK ROD TRANSFER", clause, MIB_64),
        (68, "*8", "OPTIMAL BYTES TO TOKEN PER SEGMENT", clause, MIB_64),
        (76, "*8", "OPTIMAL BYTES FROM TOKEN PER SEGMENT", clause, MIB_64),
        (84, "*8", "reserved", clause, 0),
    ]


def _rod_types() -> list[Row]:
    def described(kind: int, token_out: int) -> list[Row]:
        return [
            (0, "*4", "ROD TYPE", ROD_TYPES, kind),
            (4, "7", "ECPY_INT", ROD_TYPES, 0),
            (4, "6-2", "reserved", ROD_TYPES, 0),
            (4, "1", "TOKEN_IN", ROD_TYPES, 1),
            (4, "0", "TOKEN_OUT", ROD_TYPES, token_out),
            (5, "*1", "reserved", ROD_TYPES, 0),
            (6, "*2", "PREFERENCE INDICATOR", ROD_TYPES, 0),
            (8, "*56", "reserved", ROD_TYPES, 0),
        ]

    return [
        (0, "*2", "reserved", ROD_TYPES, 0),
        (2, "*2", "ROD TYPE DESCRIPTORS LENGTH", ROD_TYPES, 128),
        *shifted(4, described(ACCESS_UPON_REFERENCE, 1)),
        *shifted(68, described(BLOCK_ZERO, 0)),
    ]


def _general_copies(shift: int) -> list[Row]:
    clause = "SPC-4 7.8.17.11"
    return [
        (0, "*4", "TOTAL CONCURRENT COPIES", clause, 64),
        (4, "*4", "MAXIMUM IDENTIFIED CONCURRENT COPIES", clause, 64),
        (8, "*4", "MAXIMUM SEGMENT LENGTH: 256 MiB", clause, 256 << 20),
        (12, "*1", "DATA SEGMENT GRANULARITY, as a power of two", clause, shift),
        (13, "*1", "INLINE DATA GRANULARITY", clause, 0),
        (14, "*18", "reserved", clause, 0),
    ]
