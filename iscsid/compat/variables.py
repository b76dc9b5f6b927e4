"""The table of names and values that a handle of libiscsi(3) has.

Any name is taken, also one that means nothing; values are text, and looked at only by what uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class Variables:
    """Base of ``iscsi_target_t`` and ``iscsi_initiator_t``. May be used by several threads, and by signal handlers."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changing = threading.RLock()

    def reset(self, defaults: Mapping[str, str]) -> None:
        """Forget everything but ``defaults``."""
        with self._changing:
            self._values = dict(defaults)

    def setvar(self, name: str, value: str) -> int:
        """Set, or set anew. Returns 1. Raises TypeError for what is no text: the original crashed for NULL."""
        for what in (name, value):
            if not isinstance(what, str):
                raise TypeError(f"names and values are str, not {type(what).__name__}")
        with self._changing:
            self._values[name] = value
        return 1

    def getvar(self, name: str) -> str | None:
        """Return the value; None, as NULL, when it was never set."""
        return self._values.get(name)
