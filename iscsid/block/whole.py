"""Transfers that are whole: a device may say how many bytes it has moved, and then it has to be all of them.

A device returns nothing from a transfer. One that is written in the manner of ``readinto`` and ``pwrite`` returns a
count, and where that is short the rest was not read or written, whatever the buffer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from iscsid.block.device import Device
from iscsid.errors import BlockError, Fault

TRANSFERS: Final = {
    "read_into": Fault.READ_ERROR,
    "read_nowait": Fault.READ_ERROR,
    "write": Fault.WRITE_ERROR,
    "write_nowait": Fault.WRITE_ERROR,
    "write_fua": Fault.WRITE_ERROR,
}
#: Modules whose devices never say how much they have moved.
OURS: Final = ("iscsid", "iscsid_backends", "iscsid_plugins")


def check_whole(done: object, length: int, fault: Fault) -> None:
    """What a device says of the bytes that it has moved; one that says nothing has moved all."""
    if done != length:
        raise BlockError(fault, f"the device has moved {done!r} of {length} bytes")


def whole(device: Device) -> Device:
    """``device``, whose transfers raise where they are short: for those who call it without a guard, as layers do.

    The guard looks itself, so that a device that nothing is put over pays for one look only.
    """
    kind = type(device)
    if kind.__module__.partition(".")[0] not in OURS:
        for name, fault in TRANSFERS.items():
            if getattr(kind, name) is not getattr(Device, name):
                setattr(device, name, _whole(getattr(device, name), fault))
    return device


def _whole(transfer: Callable[[memoryview, int], Any], fault: Fault) -> Callable[[memoryview, int], None]:
    def checked(buffer: memoryview, offset: int) -> None:
        done = transfer(buffer, offset)
        if done is not None:
            check_whole(done, len(buffer), fault)

    return checked
