"""A new image from a snapshot of one that may be in use: nothing is asked of who has it, and nothing is held.

What a snapshot refers to has a reference count above one as long as the disk shares it, so whoever has the image writes
elsewhere; a snapshot that goes is taken out of the table first and gives up its clusters then. Therefore what was read
is right if the very same snapshot is in the table afterwards.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from iscsid.plugin import BlockError, Fault

from . import qcow2_manage as manage
from .qcow2_chain import Rules, identity, open_backing, open_image, read_header
from .qcow2_format import Snapshot, l1_entries
from .qcow2_image import Image
from .qcow2_read import Kind, read, runs
from .qcow2_snapshots import find
from .qcow2_storage import Storage, open_storage
from .qcow2_write import write

PIECE: Final = 1 << 20
LOOKS: Final = 5  # at a table that may move between two reads

Put = Callable[[memoryview, int], None]


def clone(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    """Write the disk as snapshot ``name`` has it into the new file ``to``, as a raw or a qcow2 image without a backing
    file. Raises BlockError and OSError, with nothing left of it."""
    name, to = given["name"], given["to"]
    loose = Rules(rules.limits, rules.backing_dir, lock=False)
    storage = open_storage(path, writing=False, lock=False)
    try:
        snapshot = _look(storage, name)
        target = _raw if given["format"] == "raw" else _qcow2
        with _removed_on_failure(to), target(to, snapshot.disk_size, rules) as put:
            try:
                copied = _copy(path, storage, snapshot, loose, put)
            finally:
                _must_be_there(storage, snapshot)  # which explains whatever else went wrong
    finally:
        storage.close()
    return {"path": to, "format": given["format"], "size": snapshot.disk_size, "snapshot": name, "written": copied}


def _copy(path: str, storage: Storage, snapshot: Snapshot, rules: Rules, put: Put) -> int:
    """Put what is not zeros; how many bytes that were."""
    header = read_header(storage)
    backing = open_backing(path, header, rules, [identity(storage)]) if header.backing else None
    try:
        shown = replace(header, size=snapshot.disk_size, l1_offset=snapshot.l1_offset, l1_size=snapshot.l1_size)
        image = Image(replace(shown, nb_snapshots=0), storage, None, backing, limits=rules.limits)
        missing = l1_entries(shown, snapshot.disk_size) - len(image.mapping.l1)
        image.mapping.l1.extend(array("Q", bytes(8 * max(missing, 0))))
        buffer, copied = memoryview(bytearray(PIECE)), 0
        for start in range(0, image.size, PIECE):
            for piece in runs(image, start, min(PIECE, image.size - start)):
                if piece.kind is Kind.ZERO or (piece.kind is Kind.BACKING and backing is None):
                    continue
                data = buffer[: piece.length]
                read(image, data, piece.offset)
                if any(data):
                    put(data, piece.offset)
                    copied += piece.length
        return copied
    finally:
        if backing is not None:
            backing.close()


def _look(storage: Storage, name: str) -> Snapshot:
    """The snapshot with this name. Raises BlockError."""
    for left in reversed(range(LOOKS)):
        try:
            return find(Image(read_header(storage), storage), name)
        except BlockError:
            if not left:
                raise
    raise AssertionError


def _must_be_there(storage: Storage, snapshot: Snapshot) -> None:
    """Raises BlockError where it is another one by now, or gone."""
    try:
        there = _look(storage, snapshot.name)
    except BlockError as error:
        raise BlockError(Fault.INVALID, f"{storage.name}: snapshot {snapshot.name!r} went meanwhile") from error
    if there != snapshot:
        raise BlockError(Fault.INVALID, f"{storage.name}: snapshot {snapshot.name!r} is another one by now")


@contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    """Make the file ``path``, which must not be there, and remove it where the block fails."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        yield
    except BaseException:
        os.unlink(path)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _raw(path: str, size: int, rules: Rules) -> Iterator[Put]:
    with open(path, "r+b", buffering=0) as file:
        file.truncate(size)
        fd = file.fileno()

        def put(data: memoryview, offset: int) -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], offset + done)

        yield put
        os.fsync(fd)


@contextmanager
def _qcow2(path: str, size: int, rules: Rules) -> Iterator[Put]:
    manage.fill(path, size)
    image = open_image(path, Rules(rules.limits), writing=True)
    try:

        def put(data: memoryview, offset: int) -> None:
            write(image, data, offset)
            if image.pressed:
                image.relieve()

        yield put
        image.checkpoint()
    finally:
        image.close()
