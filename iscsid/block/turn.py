"""Waiting on purpose without a thread to do it in: what a layer that slows things down is made of.

A layer that has to let time pass calls :func:`pause`. In a worker's pool that leaves the call by :class:`Later`, before
it has done anything, and the pool begins it again when the time is over; the thread serves others meanwhile. The wait
that is over is remembered in the :class:`Turn` of the call, and the same layer's next ``pause`` returns at once. A call
that goes through a layer several times waits like that only the first time. Where there is no turn (tools, tests), its
thread always sleeps.

What is begun again is done again from its beginning, and may never be: its time may be up by then. So a call that has
changed something that makes a difference to either says :func:`stay`, and sleeps in its thread from then on. The guard
says it after each change, for commands of several steps; a device says it where it keeps several media, or a medium
and what it knows of it, in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar


class Later(BaseException):
    """Leave, and begin this call again after ``seconds``. No error: nothing may take it for one, or keep it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Turn:
    """The waits of one call in the pool. ``over`` are those that it need not do again; it outlives a Later.

    ``stays`` tells that it may not be left any more.
    """

    __slots__ = ("_passed", "over", "stays")

    def __init__(self) -> None:
        self.over: set[int] = set()
        self.stays = False
        self._passed: set[int] = set()  # this time

    def begin(self, over: Iterable[int] = ()) -> None:
        """A call begins, for the first time or once more after the waits that are ``over``."""
        self.over.clear()
        self.over.update(over)
        self._passed.clear()
        self.stays = False

    def pause(self, who: int, reserve: Callable[[], float], sleep: Callable[[float], None]) -> bool:
        if who in self.over and who not in self._passed:
            self._passed.add(who)
            return False
        again = who in self._passed
        seconds = reserve()
        self.over.add(who)
        if seconds <= 0:
            self._passed.add(who)
        elif again or self.stays:
            self._passed.add(who)
            sleep(seconds)
        else:
            raise Later(seconds)
        return True


#: Set by each thread of a pool, once.
current: ContextVar[Turn | None] = ContextVar("turn", default=None)


def stay() -> None:
    """From here to its end the call is not left: who pauses does it in the thread."""
    turn = current.get()
    if turn is not None:
        turn.stays = True


def pause(who: object, reserve: Callable[[], float], sleep: Callable[[float], None]) -> bool:
    """Wait for as long as ``reserve()`` says, in seconds; it is asked once for each wait. False: it was over already.

    To be called by a layer, ``who``, at the beginning of a call that may wait (never of a ``nowait`` or ``view``),
    before anything is done. ``sleep`` is ``time.sleep``, for where a thread has to do it.
    """
    turn = current.get()
    if turn is not None:
        return turn.pause(id(who), reserve, sleep)
    if (seconds := reserve()) > 0:
        sleep(seconds)
    return True
