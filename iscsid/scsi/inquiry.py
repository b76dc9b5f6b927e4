"""INQUIRY: standard data and vital product data pages; REQUEST SENSE.

A page is a function of unit and nexus that returns its payload; PAGES lists them, and page 00h lists PAGES.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.const import DIRECT_ACCESS_BLOCK_DEVICE, PROTOCOL_ISCSI, Association, CodeSet, Designator
from iscsid.scsi.copy_vpd import third_party_copy
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.ports import port_name, referrals
from iscsid.scsi.sanitize import refusal
from iscsid.scsi.sense import Reason, build_sense

if TYPE_CHECKING:
    from iscsid.scsi.lu import Identity, LogicalUnit, Nexus

EVPD = 0x01
DESC = 0x01  # byte 1 of REQUEST SENSE: descriptor format

# peripheral, RMB, VERSION, format, ADDITIONAL LENGTH, three bytes of flags, vendor, product, revision,
# 22 bytes that are not ours (36 - 57), VERSION DESCRIPTORS 1 - 8, reserved (SPC-4 6.6.2)
STANDARD = struct.Struct(">BBBBBBBB8s16s4s22x8H22x")
VERSION_SPC_4 = 0x06
_RMB = 0x80  # byte 1: the medium can be ejected
_HISUP, _FORMAT = 0x10, 0x02  # hierarchical LUNs; the format of SPC-2 and later
_3PC, _TPGS, _MULTIP, _CMDQUE = 0x08, 0x30, 0x10, 0x02  # bytes 5, 6 and 7
VERSION_DESCRIPTORS = (0x00A0, 0x0960, 0x0460, 0x04C0)  # SAM-5, iSCSI, SPC-4, SBC-3, no version claimed (SPC-4 6.6.5)


def inquiry(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.6."""
    page, allocation_length = cdb[2], int.from_bytes(cdb[3:5], "big")
    if not cdb[1] & EVPD:
        if page:
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
        return Reply(standard_data(lu.identity, len(lu.port_groups), lu.medium.removable)[:allocation_length])
    build = PAGES.get(page)
    if build is None:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    return Reply(vpd_page(DIRECT_ACCESS_BLOCK_DEVICE, page, build(lu, nexus))[:allocation_length])


def standard_data(identity: Identity, ports: int = 1, removable: bool = False) -> bytes:
    """Return the standard INQUIRY data (SPC-4 6.6.2) of a unit that is behind so many target ports."""
    return STANDARD.pack(
        DIRECT_ACCESS_BLOCK_DEVICE,
        _RMB if removable else 0,
        VERSION_SPC_4,
        _HISUP | _FORMAT,
        STANDARD.size - 5,
        _TPGS | _3PC,  # implicit and explicit asymmetric access; no SCC, ACC, PROTECT
        _MULTIP if ports > 1 else 0,  # no enclosure
        _CMDQUE,
        padded(identity.vendor, 8),
        padded(identity.product, 16),
        padded(identity.revision, 4),
        *VERSION_DESCRIPTORS,
        *(0,) * (8 - len(VERSION_DESCRIPTORS)),
    )


def padded(text: str, length: int) -> bytes:
    """Return ASCII data, left-aligned and filled with spaces (SPC-4 4.3.1); what is not printable becomes '?'."""
    clean = "".join(char if " " <= char <= "~" else "?" for char in text)
    return clean.encode("ascii")[:length].ljust(length)


def vpd_page(peripheral: int, page: int, payload: bytes) -> bytes:
    """Return a VPD page with its header (SPC-4 7.8.1)."""
    return struct.pack(">BBH", peripheral, page, len(payload)) + payload


# -- pages of SPC-4 --------------------------------------------------------------------------------------------------


def supported_pages(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 00h (SPC-4 7.8.16): ascending."""
    return bytes(sorted(PAGES))


def unit_serial_number(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 80h (SPC-4 7.8.18)."""
    return padded(lu.identity.serial, len(lu.identity.serial))


def device_identification(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 83h (SPC-4 7.8.6): the unit by three names, then the port and the target that this nexus goes through."""
    identity = lu.identity
    t10 = padded(identity.vendor, 8) + padded(identity.serial, len(identity.serial))
    logical_unit, target_port = Association.LOGICAL_UNIT, Association.TARGET_PORT
    number = struct.pack(">2xH", nexus.portal_group_tag)  # of the port and, for each has its own, of its group
    port = name_string(port_name(nexus.target_name, nexus.portal_group_tag))
    return b"".join(
        (
            designator(logical_unit, Designator.NAA, CodeSet.BINARY, naa_locally_assigned(identity.serial)),
            designator(logical_unit, Designator.T10_VENDOR_ID, CodeSet.ASCII, t10),
            designator(logical_unit, Designator.SCSI_NAME_STRING, CodeSet.UTF_8, name_string(identity.name)),
            designator(target_port, Designator.SCSI_NAME_STRING, CodeSet.UTF_8, port),
            designator(target_port, Designator.RELATIVE_TARGET_PORT, CodeSet.BINARY, number),
            designator(target_port, Designator.TARGET_PORT_GROUP, CodeSet.BINARY, number),
            designator(
                Association.TARGET_DEVICE, Designator.SCSI_NAME_STRING, CodeSet.UTF_8, name_string(nexus.target_name)
            ),
        )
    )


def designator(association: Association, kind: Designator, code_set: CodeSet, value: bytes) -> bytes:
    """Return a designation descriptor (SPC-4 7.8.6.1); the protocol is told for ports and devices only (PIV)."""
    protocol, piv = (0, 0) if association is Association.LOGICAL_UNIT else (PROTOCOL_ISCSI, 0x80)
    return bytes((protocol << 4 | code_set, piv | association << 4 | kind, 0, len(value))) + value


def naa_locally_assigned(serial: str) -> bytes:
    """Return an NAA 3h designator (SPC-4 7.8.6.6.4): 60 bits that depend on the serial number alone.

    We own no IEEE company identifier, so none of the worldwide unique forms is ours to use.
    """
    digest = hashlib.sha256(serial.encode()).digest()
    return bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]


def name_string(name: str) -> bytes:
    """Return a SCSI name string: UTF-8, ended by a null and filled to a multiple of four (SPC-4 7.8.6.11)."""
    data = name.encode()
    return data + bytes(4 - len(data) % 4)


def management_network_addresses(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 85h (SPC-4 7.8.8): the list is empty, for the server is managed on its own host."""
    return b""


# ACTIVATE MICROCODE and protection, task attributes, caches, LUICLR, R_SUP; the rest is not supported
_EXTENDED_INQUIRY = struct.Struct(">BBBBB55x")
_HEADSUP, _ORDSUP, _SIMPSUP = 0x04, 0x02, 0x01
_V_SUP = 0x01
_LUICLR = 0x01
_R_SUP = 0x10


def extended_inquiry_data(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 86h (SPC-4 7.8.7): what of SAM and SPC is there.

    No microcode to download, no protection information. R_SUP: referrals, in page B3h. PRIOR_SUP is 0: the priority
    of a command is accepted and ignored. V_SUP tells of a cache that SYNCHRONIZE CACHE empties.
    """
    return _EXTENDED_INQUIRY.pack(0, _HEADSUP | _ORDSUP | _SIMPSUP, _V_SUP if lu.volatile else 0, _LUICLR, _R_SUP)


_ALL_PAGES_AND_SUBPAGES = b"\x3f\xff"
_SHARED = 0b00  # MODE PAGE POLICY


def mode_page_policy(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 87h (SPC-4 7.8.9): one descriptor for all pages: one set of values for all I_T nexuses of the unit."""
    return _ALL_PAGES_AND_SUBPAGES + bytes((_SHARED, 0))


_PORT_HEADER = struct.Struct(">2xH2xH")  # RELATIVE PORT IDENTIFIER, INITIATOR PORT TRANSPORTID LENGTH


def scsi_ports(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 88h (SPC-4 7.8.14): every target port of the target, by its SCSI name; none of them is an initiator."""
    descriptors = []
    for group in lu.port_groups:
        name = name_string(port_name(nexus.target_name, group.tag))
        value = designator(Association.TARGET_PORT, Designator.SCSI_NAME_STRING, CodeSet.UTF_8, name)
        descriptors.append(_PORT_HEADER.pack(group.tag, 0) + struct.pack(">2xH", len(value)) + value)
    return b"".join(descriptors)


# -- pages of SBC-3 --------------------------------------------------------------------------------------------------

# WSNZ, COMPARE AND WRITE, OPTIMAL TRANSFER LENGTH GRANULARITY, MAXIMUM and OPTIMAL TRANSFER LENGTH, PREFETCH,
# UNMAP LBA COUNT, UNMAP BLOCK DESCRIPTOR COUNT, UNMAP GRANULARITY, UGAVALID and ALIGNMENT, WRITE SAME, ATOMIC TRANSFER
# LENGTH; and no alignment, granularity or boundary of atomic writes
_BLOCK_LIMITS = struct.Struct(">BBHIIIIIIIQI16x")
_WSNZ = 0x01  # a WRITE SAME of 0 blocks is refused; without it, that would write up to the end of the medium
_UGAVALID = 0x80000000
_MAX_COMPARE_AND_WRITE = 0xFF


def block_limits(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page B0h (SBC-3 6.6.4), in logical blocks; 0 says that there is nothing to tell."""
    device = lu.device
    unmap_blocks = unmap_descriptors = granularity = alignment = 0
    if lu.thin:
        unmap_blocks, unmap_descriptors = lu.max_unmap_blocks, lu.max_unmap_descriptors
        granularity = min(device.discard_granularity >> lu.shift, 0xFFFFFFFF)
        # One block is no granularity. QEMU 7.2 aborts on the first long read where one of 4 KiB is told: it asks for
        # the status of ranges that it has rounded to 512 bytes then.
        if granularity <= 1:
            granularity = 0
        else:
            alignment = _UGAVALID | (device.discard_alignment >> lu.shift) % granularity & 0x7FFFFFFF
    return _BLOCK_LIMITS.pack(
        _WSNZ,
        _MAX_COMPARE_AND_WRITE,
        _blocks(lu, device.minimum_io, 0xFFFF),
        lu.max_blocks,
        _blocks(lu, device.optimal_io, lu.max_blocks),
        0,
        unmap_blocks,
        unmap_descriptors,
        granularity,
        alignment,
        lu.max_write_same_blocks,
        lu.max_atomic_blocks,
    )


def _blocks(lu: LogicalUnit, length: int, limit: int) -> int:
    """Return ``length`` in blocks where it is a whole number of them within the limit, else 0: not reported."""
    blocks, rest = divmod(length, lu.block_size)
    return blocks if not rest and blocks <= limit else 0


NON_ROTATING = 1
_WABEREQ = 0b01 << 6  # with WACEREQ, byte 5 of the page


def block_device_characteristics(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page B1h (SBC-3 6.6.3): MEDIUM ROTATION RATE, which is not reported for what does rotate.

    WABEREQ 01b says that what SANITIZE BLOCK ERASE has erased can be read without being written before; WACEREQ is 00b
    where there is no CRYPTOGRAPHIC ERASE.
    """
    wabereq = _WABEREQ if lu.erases else 0
    return struct.pack(">HxB56x", 0 if lu.device.rotational else NON_ROTATING, wabereq)


_LBPU, _LBPWS, _LBPWS10, _LBPRZ = 0x80, 0x40, 0x20, 0x04
_THIN_PROVISIONED = 2


def logical_block_provisioning(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page B2h (SBC-3 6.6.5): no anchors; a threshold exponent where the device tells how full its medium is."""
    if not lu.thin:
        return bytes(4)
    flags = _LBPU | _LBPWS | _LBPWS10 | (_LBPRZ if lu.device.discard_zeroes else 0)
    return bytes((lu.threshold_exponent if lu.metered else 0, flags, _THIN_PROVISIONED, 0))


PAGES: dict[int, Callable[[LogicalUnit, Nexus], bytes]] = {
    0x00: supported_pages,
    0x80: unit_serial_number,
    0x83: device_identification,
    0x85: management_network_addresses,
    0x86: extended_inquiry_data,
    0x87: mode_page_policy,
    0x88: scsi_ports,
    0x8F: third_party_copy,
    0xB0: block_limits,
    0xB1: block_device_characteristics,
    0xB2: logical_block_provisioning,
    0xB3: referrals,
}


# -- REQUEST SENSE ---------------------------------------------------------------------------------------------------


def request_sense(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.39: a waiting unit attention, which this takes, or the pollable sense data of a sanitize operation
    (SBC-3 4.11) or of a unit that is not ready, or NO SENSE; sense data never waits in iSCSI."""
    error = ScsiError(nexus.attentions.pop(0) if nexus.attentions else Reason.NO_SENSE)
    if lu.sanitize is not None and error.reason is Reason.NO_SENSE:
        error = refusal(lu.sanitize, lu.progress.value)
    elif lu.hindrance is not None and error.reason is Reason.NO_SENSE:
        error = ScsiError(lu.hindrance)
    return Reply(build_sense(error, bool(cdb[1] & DESC))[: cdb[4]])
