"""targets(5) and auths as a configuration: the tables that ``config`` reads, and that ``iscsid import-targets`` writes.

An extent becomes the back end ``block`` or ``file``, by what is at its path, and is seen through the layer ``offset``
where it is a part of that. RAID0 becomes ``concat``, RAID1 ``mirror``. Files are made as large as all extents of
targets that may write to them ask for: two extents may share one file, and the second begin where the first ends.
What several targets have is one disk on several paths, with one serial number.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from iscsid.compat import netmask
from iscsid.compat.auths import CHAP, Auths
from iscsid.compat.targets import IQN, RAID1, Device, Extent, Storage, Target, TargetsFile

VENDOR: Final = "NetBSD"
PRODUCT: Final = "NetBSD iSCSI"
BLOCK_LENGTHS: Final = (512, 1024, 2048, 4096, 8192)
MIRRORS: Final = "mirrors"  # the folder in state_dir of what mirrors remember

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a targets file does not say. ``state_dir``: where mirrors remember what they must."""

    state_dir: str
    iqn: str = IQN
    block_length: int = BLOCK_LENGTHS[0]
    auth: Table | None = None


def target_tables(file: TargetsFile, settings: Settings) -> list[Table]:
    """Return one ``[[target]]`` for each target, in the order of the file."""
    converter = _Converter(file, settings)
    return [converter.target(target) for target in file.targets.values()]


def auth_table(auths: Auths) -> Table | None:
    """Return the ``[target.auth]`` that asks for the CHAP accounts of an auths file; None where it has none.

    Of several lines for one user the first counts.
    """
    accounts: dict[str, Table] = {}
    for entry in auths.entries:
        if entry.kind == CHAP:
            accounts.setdefault(entry.user.casefold(), {"user": entry.user, "secret": entry.secret})
    if not accounts:
        return None
    return {"chap": list(accounts.values()), "ignore_case": True, "allow_short_secrets": True}


def sized(storage: Storage) -> Storage:
    """``storage`` with every length told: "size" is what is there behind the offset, 0 where nothing is."""
    if isinstance(storage, Device):
        return replace(storage, members=tuple(map(sized, storage.members)))
    if storage.length is not None:
        return storage
    return replace(storage, length=max(0, (medium_size(storage.path) or 0) - storage.offset))


def medium_size(path: str) -> int | None:
    """Return the bytes of a file or block device; None for what is not there, or cannot be looked at."""
    try:
        facts = os.stat(path)
        if not stat.S_ISBLK(facts.st_mode):
            return facts.st_size
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None


def is_device(path: str) -> bool:
    """Whether a path is a block device, or the place for one that is not there now."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return os.path.abspath(path).startswith("/dev/")


def extents(storage: Storage) -> Iterator[Extent]:
    """All extents that a target's storage is made of."""
    if isinstance(storage, Extent):
        yield storage
        return
    for member in storage.members:
        yield from extents(member)


def networks(mask: netmask.Netmask) -> list[str] | None:
    """Return what the key ``networks`` has to say; None: nothing, for everybody may come.

    "none" is 0/32 in the original, and so it is here: an address that nobody has.
    """
    if any(network.prefixlen == 0 for network in mask.networks):
        return None
    return [str(network) for network in mask.networks] or ["0.0.0.0/32"]


class _Converter:
    """One file. ``_ends`` holds, by path, how long a file has to be for all who may write to it; ``_targets``, by what
    ``_disk`` says, how many have it."""

    def __init__(self, file: TargetsFile, settings: Settings) -> None:
        self._settings = settings
        self._ends: dict[str, int] = {}
        self._targets = Counter(_disk(target.storage) for target in file.targets.values())
        for target in file.targets.values():
            for extent in () if target.readonly else extents(target.storage):
                path = os.path.abspath(extent.path)
                self._ends[path] = max(self._ends.get(path, 0), extent.offset + (extent.length or 0))

    def target(self, target: Target) -> Table:
        lun = {
            "lun": 0,
            **self._storage(target.storage),
            "block_size": self._settings.block_length,
            "vendor": VENDOR,
            "product": PRODUCT,
        }
        if target.readonly:
            lun["readonly"] = True
        if self._targets[disk := _disk(target.storage)] > 1:
            lun["serial"] = hashlib.sha256(disk.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        table: Table = {"name": target.full_name(self._settings.iqn)}
        if (guests := networks(target.mask)) is not None:
            table["networks"] = guests
        if self._settings.auth is not None:
            table["auth"] = self._settings.auth
        table["lun"] = [lun]
        return table

    def _storage(self, storage: Storage) -> Table:
        """The back end with its options and layers: what a LUN and a member have in common."""
        if isinstance(storage, Extent):
            return self._extent(storage)
        members = [self._storage(member) for member in storage.members]
        if storage.level == RAID1:
            return {"backend": "mirror", "members": members, "state": self._state(storage)}
        return {"backend": "concat", "members": members}

    def _extent(self, extent: Extent) -> Table:
        path = os.path.abspath(extent.path)
        there = medium_size(path) or 0
        table: Table = {"backend": "block" if is_device(path) else "file", "path": path}
        if table["backend"] == "file" and self._ends.get(path, 0) >= max(there, 1):
            table["size"] = there = self._ends[path]
        part: Table = {"layer": "offset", "offset": extent.offset}
        if extent.length is not None:
            part["size"] = extent.length
        if extent.offset or extent.length not in (None, there):
            table["layers"] = [part]
        return table

    def _state(self, device: Device) -> str:
        """A name that stays the same as long as the legs do, whatever targets there are beside."""
        legs = "\0".join(f"{os.path.abspath(extent.path)}\0{extent.offset}" for extent in extents(device))
        word = "".join(char if char.isalnum() else "_" for char in device.name)[:64]
        name = f"{word}-{hashlib.sha256(legs.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
        return os.path.join(self._settings.state_dir, MIRRORS, name)


def _disk(storage: Storage) -> str:
    """Words that are the same for two storages exactly where they are one disk, whatever they are called."""
    if isinstance(storage, Extent):
        return f"{os.path.abspath(storage.path)}\0{storage.offset}\0{storage.length}"
    return f"({storage.level}\0{chr(0).join(map(_disk, storage.members))})"


def has_mirror(storages: Sequence[Storage]) -> bool:
    """Whether any of them has to remember something in the folder MIRRORS."""
    return any(
        isinstance(storage, Device) and (storage.level == RAID1 or has_mirror(storage.members)) for storage in storages
    )
