"""The initiator: discovery, and disks of other targets as objects, blocking, pipelined and for asyncio.

``open_disk`` and ``discover`` are the way in; ``connect`` opens a session whose units are ``Disk(client, lun)``.
``iscsid.initiator.aio`` has the same for asyncio. What fails raises something under ``iscsid.errors.InitiatorError``.

"""

from __future__ import annotations

from iscsid.initiator.client import Client, connect
from iscsid.initiator.commands import (
    BlockLimits,
    BlockStatus,
    Capacity,
    Inquiry,
    Provisioning,
    Registrations,
    Reservation,
)
from iscsid.initiator.discovery import TargetPortal, TargetRecord
from iscsid.initiator.disk import Disk, discover, open_disk
from iscsid.initiator.file import BufferedDiskFile, DiskFile, open_file
from iscsid.initiator.task import Result, Task
from iscsid.initiator.url import Credentials, Portal, parse_url
from iscsid.scsi.reservation import Type as ReservationType

__all__ = [
    "BlockLimits",
    "BlockStatus",
    "BufferedDiskFile",
    "Capacity",
    "Client",
    "Credentials",
    "Disk",
    "DiskFile",
    "Inquiry",
    "Portal",
    "Provisioning",
    "Registrations",
    "Reservation",
    "ReservationType",
    "Result",
    "TargetPortal",
    "TargetRecord",
    "Task",
    "connect",
    "discover",
    "open_disk",
    "open_file",
    "parse_url",
]
