"""File descriptors among the options of a prepared medium, and how they reach a worker that is running already.

A worker that is forked inherits them. One that runs gets the options as bytes and the descriptors beside them, by
SCM_RIGHTS, under numbers of its own; so they have to be found, wherever in the options they are.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from typing import Any


class Descriptor(int):
    """A file descriptor in what ``iscsid_prepare`` or ``iscsid_layer_prepare`` answers. It is an int as any other."""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: dict[int, None] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Descriptor:
            return None
        self.found[int(value)] = None
        return list(self.found).index(int(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, descriptors: Sequence[int]) -> None:
        super().__init__(file)
        self._descriptors = descriptors

    def persistent_load(self, number: int) -> Descriptor:
        return Descriptor(self._descriptors[number])


def pack(value: Any) -> tuple[bytes, list[int]]:
    """``value`` as bytes for a process that was forked from this one, and the descriptors that go with them.

    Pickled, for what plugins have in their options is theirs to choose, and both ends are the same program. Raises
    what pickle raises for a value that has no such form.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), list(pickler.found)


def unpack(data: bytes, descriptors: Sequence[int]) -> Any:
    """The inverse, with the descriptors under the numbers that they have here."""
    return _Unpickler(io.BytesIO(data), descriptors).load()


def found_in(values: Iterable[Any]) -> list[int]:
    """The descriptors in ``values``, each once; of what cannot be packed: none."""
    found: dict[int, None] = {}
    for value in values:
        try:
            found.update(dict.fromkeys(pack(value)[1]))
        except Exception:  # a stranger's value may raise anything
            continue
    return list(found)
