"""TCP ports for programs that cannot be asked which one they took, each for one test process alone.

A port that is found free by binding port 0 may be taken before the program binds it, by the next test process that asks
the same, or by any connection: the kernel takes source ports out of the same range. These come from below that range,
and each is held by a lock that all test processes of the host see, until this process ends.
"""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # the ephemeral ports of Linux begin at 32768
_held: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 where nobody listens; no other test process will be given it."""
    for port in random.sample(PORTS, len(PORTS)):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0iscsid-tests-port-{port}")  # an abstract name: it goes with the process, however that ends
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
        else:
            _held.append(lock)
            return port
    raise RuntimeError(f"every port of {PORTS} is taken")
