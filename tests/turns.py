"""A call as a worker's pool does it: left when it pauses, begun again, or given up.

assert leaves(lambda: device.write(data, 0)) == 1  # it was left once before it was done
"""

from __future__ import annotations

from collections.abc import Callable

from iscsid.block.turn import Later, Turn, current


def leaves(call: Callable[[], object], most: int = 10) -> int:
    """Do it; how often it was left. After ``most`` times it is given up, and never done."""
    turn = Turn()
    token = current.set(turn)
    try:
        for count in range(most):
            turn.begin(frozenset(turn.over))
            try:
                call()
            except Later:
                continue
            return count
    finally:
        current.reset(token)
    return most
