"""What a worker is born with, and what its exit codes mean. Shared by the supervisor's side and the worker's."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iscsid.specs import ServerSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins
    from iscsid.shared.figures import FigureTable


class ExitCode(enum.IntEnum):
    """Exit codes of a worker, which the supervisor believes."""

    OK = 0  # it was asked to stop, or its supervisor is gone
    CRASHED = 1  # an exception of ours reached the top
    BOOT_FAILED = 3  # it cannot serve what it was given; BootFailed says why


@dataclass(frozen=True, slots=True)
class WorkerBoot:
    """Everything that a worker knows of the server; handed over by the fork, never serialized.

    ``prepared`` holds, per target name and LUN, the options to open the back end with: those of the configuration,
    and what ``prepare`` added to them before the fork; ``layers`` the same for the layers over it. ``owners`` names,
    per target with a LUN that only one process may open, the index of the worker that opens it: no other worker opens
    that target's devices or serves it.
    ``copy_key`` authenticates the tokens of copies; it is the same in all workers of one server.
    """

    index: int
    spec: ServerSpec
    plugins: Plugins
    prepared: Mapping[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)
    owners: Mapping[str, int] = field(default_factory=dict)
    copy_key: bytes = field(default=b"", repr=False)
    layers: Mapping[tuple[str, int], Sequence[tuple[str, Mapping[str, Any]]]] = field(default_factory=dict)
    figures: FigureTable | None = None  # of all workers; None: there are no log pages

    def serves(self, target: str) -> bool:
        """Whether this worker opens the devices of ``target``."""
        return self.owners.get(target, self.index) == self.index
