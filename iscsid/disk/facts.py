"""What can be asked of a disk, as plain values; and the same in the words of people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from iscsid import screen
from iscsid.disk.ends import serial_of
from iscsid.errors import SenseError, Unsupported
from iscsid.initiator import Disk, Provisioning, connect
from iscsid.initiator.commands import parse_inquiry, parse_luns
from iscsid.initiator.unit import Unit
from iscsid.scsi.const import SenseKey

DIRECT_ACCESS: Final = 0
MAX_EXTENTS: Final = 100_000  # stretches that the mapped share is counted from: more would take minutes


def disk_facts(disk: Disk) -> dict[str, Any]:
    """Identity, size, provisioning, limits, mapped bytes and reservation; None for what the target does not tell.

    Sizes are bytes. Raises InitiatorError.
    """
    inquiry, capacity, limits, block = disk.inquiry(), disk.capacity(), disk.limits, disk.block_size
    return {
        "url": _url(disk),
        "vendor": inquiry.vendor,
        "product": inquiry.product,
        "revision": inquiry.revision,
        "serial": serial_of(disk),
        "removable": inquiry.removable,
        "size": capacity.size,
        "blocks": capacity.blocks,
        "block_size": block,
        "physical_block_size": capacity.physical_block_size,
        "thin": capacity.thin,
        "unmapped_reads_zeros": capacity.zeroes,
        "mapped": mapped_bytes(disk),
        "limits": {
            "max_transfer": limits.max_transfer * block,
            "optimal_transfer": limits.optimal_transfer * block,
            "max_unmap": limits.max_unmap * block,
            "unmap_granularity": limits.unmap_granularity * block,
            "max_write_same": limits.max_write_same * block,
            "max_compare_and_write": limits.max_compare_and_write * block,
        },
        "reservation": reservation(disk),
    }


def _url(disk: Disk) -> str:
    options = disk.client.options
    return f"iscsi://{disk.client.place.portal}/{options.target_name}/{disk.lun}"


def mapped_bytes(disk: Disk) -> int | None:
    """How much has a place on the medium; None where the target does not tell, or it is in too many pieces."""
    total = 0
    try:
        for number, extent in enumerate(disk.block_status()):
            if number == MAX_EXTENTS:
                return None
            total += extent.length if extent.status == Provisioning.MAPPED else 0
    except Unsupported:
        return None
    return total


def reservation(disk: Disk) -> dict[str, Any] | None:
    """Registered keys and the holder; None where the target knows no persistent reservations."""
    try:
        keys, held = disk.read_keys(), disk.read_reservation()
    except SenseError as error:
        if error.key != SenseKey.ILLEGAL_REQUEST:
            raise
        return None
    return {
        "keys": [f"{key:#x}" for key in keys.keys],
        "holder": None if held is None else f"{held.key:#x}",
        "type": None if held is None else held.type.name.lower().replace("_", "-"),
    }


def unit_list(url: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Number, vendor, product, serial number and size of all units of a target; size None of what is no disk."""
    with connect(url, **options) as client:
        ask = Unit(0, client.options.timeout)
        numbers = parse_luns(client.run(ask.report_luns()).result.data)
        found = []
        for lun in numbers:
            inquiry = parse_inquiry(client.run(Unit(lun, client.options.timeout).inquiry()).result.data)
            disk = None
            if inquiry.device_type == DIRECT_ACCESS:
                try:
                    disk = Disk(client, lun)
                except SenseError:  # no medium, not ready: it is there all the same
                    disk = None
            found.append(
                {
                    "lun": lun,
                    "vendor": inquiry.vendor,
                    "product": inquiry.product,
                    "serial": "" if disk is None else serial_of(disk),
                    "size": None if disk is None else disk.size,
                }
            )
        return found


def fact_lines(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of ``disk_facts`` for people: name and value of each line."""
    size, mapped = facts["size"], facts["mapped"]
    lines = {name: facts[name] for name in ("url", "vendor", "product", "revision", "serial")}
    lines["size"] = f"{screen.size_text(size)} ({size} bytes)"
    blocks = f"{facts['blocks']} of {facts['block_size']} bytes"
    physical = facts["physical_block_size"]
    lines["blocks"] = blocks if physical == facts["block_size"] else f"{blocks}, {physical} on the medium"
    thin = "thin" if facts["thin"] else "thick"
    lines["provisioning"] = f"{thin}, unmapped blocks read as zeros" if facts["unmapped_reads_zeros"] else thin
    if mapped is not None:
        lines["mapped"] = f"{screen.size_text(mapped)} ({mapped / size:.1%})" if size else "nothing"
    lines.update({name: screen.size_text(value) for name, value in facts["limits"].items() if value})
    held = facts["reservation"]
    if held is not None:
        lines["registered keys"] = ", ".join(held["keys"]) or "none"
        lines["reservation"] = f"{held['type']} by {held['holder']}" if held["holder"] else "none"
    return lines
