"""A copy from start to finish: ends opened, state found, data copied and compared, state forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from iscsid.disk import state as states
from iscsid.disk.copy import Compare, Copied, Copy, Differs, Report
from iscsid.disk.ends import URL_PREFIX, End, EndError, open_destination, open_source, plain_url
from iscsid.disk.state import CopyState

DEPTH: Final = 16  # chunks of up to 1 MiB in flight


@dataclass(frozen=True, slots=True)
class Job:
    """What to copy, and how.

    Args:
        source, destination: each a URL or a path.
        force: overwrite a file or block device that is there.
        resume: go on with a copy that did not end; from the beginning where none is known.
        verify: compare both ends afterwards.
        sparse: leave out what is zeros.
        depth: chunks in flight.
    """

    source: str
    destination: str
    force: bool = False
    resume: bool = False
    verify: bool = False
    sparse: bool = True
    depth: int = DEPTH

    @property
    def state_path(self) -> Path:
        """Where its state is while it is not over."""
        is_url = self.destination.startswith(URL_PREFIX)
        return states.state_path(self.destination, plain_url(self.destination) if is_url else None)

    def run(
        self,
        begin: Callable[[str, int, int], Report] = lambda title, position, size: lambda position: None,
        stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> Copied:
        """Do it. Raises EndError, Interrupted and Differs among it, and InitiatorError.

        Args:
            begin: called with a title, position and size for each pass; returns what is told of its progress.
            stop: asked after each chunk whether to stop.
            options: of ``open_disk``, for both ends.
        """
        state = states.load(self.state_path) if self.resume else None
        if state is None and not self.force and self.state_path.exists():
            raise EndError(
                f"a copy to {_shown(self.destination)} did not end; --resume goes on with it, --force begins again"
            )
        with contextlib.ExitStack() as stack:
            source = open_source(self.source, depth=self.depth, **options)
            stack.callback(source.close)
            if state is None:  # before the destination is emptied: what a state says of it is no longer true then
                states.forget(self.state_path)
            destination = open_destination(
                self.destination, source, force=self.force, resume=state is not None, depth=self.depth, **options
            )
            stack.callback(destination.close)
            if state is not None:
                state.check(source, destination)
            return self._passes(source, destination, state, begin, stop)

    def _passes(
        self,
        source: End,
        destination: End,
        state: CopyState | None,
        begin: Callable[[str, int, int], Report],
        stop: Callable[[], bool],
    ) -> Copied:
        copy = Copy(
            source,
            destination,
            depth=self.depth,
            sparse=self.sparse,
            path=self.state_path,
            state=state,
            report=begin("copying", 0 if state is None else state.position, source.size),
            stop=stop,
        )
        copied = copy.run()
        if self.verify:
            report = begin("comparing", 0, source.size)
            compare = Compare(source, destination, depth=self.depth, sparse=self.sparse, report=report, stop=stop)
            try:
                compare.run()
            except Differs:  # resuming would find the same
                states.forget(self.state_path)
                raise
        states.forget(self.state_path)
        return copied


def _shown(name: str) -> str:
    return plain_url(name) if name.startswith(URL_PREFIX) else name
