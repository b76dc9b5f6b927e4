"""Another configuration on its way to a worker that is running: what it is told, and in which form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iscsid.plugin.descriptors import pack, unpack
from iscsid.specs import ServerSpec

Key = tuple[str, int]  # target name and LUN


@dataclass(frozen=True, slots=True)
class Revision:
    """What a worker has to know.

    ``spec`` is the whole configuration, with the ports that are bound. ``prepared`` and ``layers`` are those of the
    LUNs to open, see ``boot.WorkerBoot``; of those in ``stays`` the unit is the same as before, of the others it is a
    new one; on those in ``other`` are other data than before. ``plugins`` are the arguments of ``plugin.manager.load``,
    None: the plugins are the same. ``columns`` are where units are in the table of figures.
    """

    number: int
    spec: ServerSpec
    prepared: Mapping[Key, Mapping[str, Any]]
    layers: Mapping[Key, Sequence[tuple[str, Mapping[str, Any]]]]
    stays: frozenset[Key]
    owners: Mapping[str, int]
    plugins: tuple[Any, Any, Any] | None = None
    columns: Mapping[str, int] = field(default_factory=dict)
    other: frozenset[Key] = frozenset()


def write(revision: Revision) -> tuple[int, list[int]]:
    """A descriptor of memory with the revision, the caller's to close, and the descriptors in it, which are not.

    Raises ValueError where an option of a plugin cannot be sent, and OSError.
    """
    try:
        data, descriptors = pack(revision)
    except Exception as error:  # a stranger's value may raise anything
        raise ValueError(f"what is prepared cannot be sent to the workers: {error}") from error
    fd = os.memfd_create("iscsid-revision", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd, descriptors


def read(fd: int, descriptors: Sequence[int]) -> Revision:
    """The revision in the memory behind ``fd``, with its descriptors as they are numbered here; closes ``fd``."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        revision = unpack(file.read(), descriptors)
    assert isinstance(revision, Revision)
    return revision
