"""What a command wants done: the answer of ``LogicalUnit.plan``.

A plan says nothing of iSCSI and does nothing by itself. Whoever holds the session gathers the data-out, moves the
bytes, and turns what a device raises into sense data (``sense.reason_of``).
"""

from __future__ import annotations

from collections.abc import Callable

from iscsid.scsi.const import Status

_GOOD = int(Status.GOOD)


class Reply:
    """GOOD, with ``data`` as data-in, already cut to the allocation length; b"" for a command without data.

    A command without data may end in another ``status``, CONDITION MET.
    """

    __slots__ = ("data", "status")

    def __init__(self, data: bytes, status: int = _GOOD) -> None:
        self.data = data
        self.status = status


class Read:
    """Read ``length`` bytes at byte ``offset`` of the device; both multiples of the block size, length not 0."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length


class Write:
    """Gather ``length`` bytes of data-out and write them at byte ``offset``.

    ``fua``: GOOD only when they are on the medium. It is set only where the device has something volatile.
    """

    __slots__ = ("fua", "length", "offset")

    def __init__(self, offset: int, length: int, fua: bool) -> None:
        self.offset = offset
        self.length = length
        self.fua = fua


class Job:
    """Gather ``parameter_length`` bytes of data-out, then ``run`` them; what it returns is the data-in.

    Where the initiator announced less than that, ``run`` takes what there is and refuses it as the command demands.
    More is a residual, unless ``exact``: then any other length than ``parameter_length`` is INVALID FIELD IN CDB.
    ``run`` raises ScsiError, BlockError or OSError. It may run in the worker's loop where the device is inline and
    ``cost``, the bytes of medium it may touch, is small; elsewhere it belongs into the pool. It calls the device more
    than once: the lock of a serialised device is held around all of it. ``writes`` tells which side of the medium
    failed when it raises OSError. ``then`` is what the command goes on with when ``run``, which has no data-in then,
    has succeeded. ``exclusive``, offset and length, is the range that nobody else may hold meanwhile
    (``Guarded.exclusive``): whoever calls ``run`` holds it around the call. ``status`` is that of a success without
    data. ``locks``: False where ``run`` takes the locks of devices itself. ``cancel`` asks a ``run`` under way to end
    soon, for nobody waits for its result any more.
    """

    __slots__ = (
        "cancel",
        "cost",
        "exact",
        "exclusive",
        "locks",
        "parameter_length",
        "run",
        "status",
        "then",
        "writes",
    )

    def __init__(
        self,
        run: Callable[[memoryview], bytes | bytearray],
        parameter_length: int = 0,
        cost: int = 0,
        *,
        writes: bool = False,
        exact: bool = False,
        then: Read | Ask | None = None,
        exclusive: tuple[int, int] | None = None,
        status: int = _GOOD,
        locks: bool = True,
        cancel: Callable[[], None] | None = None,
    ) -> None:
        self.run = run
        self.parameter_length = parameter_length
        self.cost = cost
        self.writes = writes
        self.exact = exact
        self.then = then
        self.exclusive = exclusive
        self.status = status
        self.locks = locks
        self.cancel = cancel


class Ask:
    """Gather ``parameter_length`` bytes of data-out, then have the command executed where the unit's state is kept.

    Its answer is GOOD without data, or an error; every worker has applied by then what came of it (``scsi.state``).
    """

    __slots__ = ("parameter_length",)

    def __init__(self, parameter_length: int = 0) -> None:
        self.parameter_length = parameter_length


Plan = Reply | Read | Write | Job | Ask

DONE = Reply(b"")
"""GOOD without data; shared, for nobody changes a plan."""
