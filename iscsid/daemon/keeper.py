"""The files of what must survive the server: written so that a crash leaves the old or the new one, never half of one.

One small file a unit in ``state_dir/reservations``. A thread writes them, because a disk may take its time and the
supervisor's loop may not. The directory is made when there is something to write: a server whose initiators never ask
for persistence through power loss needs none.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from iscsid.daemon.errors import StartError
from iscsid.daemon.pool import Pool
from iscsid.shared import store

DIRECTORY: Final = "reservations"
CLOSE_SECONDS: Final = 5.0  # for what is being written when the server stops; nobody waits for it any more

log = logging.getLogger(__name__)


class Keeper:
    """The files, and the one thread that writes them: in order, so that the last state of a unit is what stays."""

    def __init__(self, state_dir: str) -> None:
        self.directory = os.path.join(state_dir, DIRECTORY)
        self._pool = Pool(max_threads=1)

    def fileno(self) -> int:
        """Readable when :meth:`collect` has something to do."""
        return self._pool.fileno()

    def load(self, units: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What is kept of each unit, for those of which there is something.

        Raises StartError for a file that cannot be read or understood: to serve the unit without the reservations that
        were promised to outlive the server would let two nodes of a cluster write at once.
        """
        kept: dict[str, dict[str, Any]] = {}
        for unit in units:
            path = self.path(unit)
            try:
                with open(path, encoding="ascii") as file:
                    kept[unit] = store.decode(file.read(store.MAX_TEXT + 1), unit)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                raise StartError(f"reservations of unit {unit}: {path}: {exc.strerror or exc}") from exc
            except ValueError as exc:
                raise StartError(
                    f"reservations of unit {unit}: {path}: {exc}; remove the file to start without them"
                ) from exc
        return kept

    def keep(self, unit: str, kept: Mapping[str, Any] | None, done: Callable[[bool], None]) -> None:
        """Put ``kept`` on disk in place of what is there, or remove that; ``done(ok)`` is called by ``collect``."""
        path = self.path(unit)
        run = partial(remove, path) if kept is None else partial(replace, path, store.encode(unit, kept))

        def finished(_result: Any, error: Exception | None) -> None:
            if error is not None:
                log.error("the reservations of unit %s cannot be kept: %s", unit, error)
            done(error is None)

        self._pool.submit(run, finished)

    def collect(self) -> None:
        """Report what is written."""
        self._pool.collect()

    def path(self, unit: str) -> str:
        """The file of ``unit``."""
        return os.path.join(self.directory, store.file_name(unit))

    def leave(self) -> None:
        """In a worker just forked: the thread is the supervisor's, and so is the descriptor."""
        os.close(self._pool.fileno())

    def close(self) -> None:
        """Let the thread end."""
        if not self._pool.close(CLOSE_SECONDS):
            log.error("%s: the disk hangs", self.directory)


def replace(path: str, text: str) -> None:
    """Make ``text`` the content of the file, on the medium when this returns. Raises OSError."""
    directory = os.path.dirname(path)
    _make(directory)
    new = path + ".new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    _sync(directory)


def remove(path: str) -> None:
    """See to it that there is no such file, on the medium as well. Raises OSError."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    _sync(os.path.dirname(path))


def _make(directory: str) -> None:
    """Make the directory and those above it; each is on the medium before there is anything in it."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    if parent != directory:
        _make(parent or ".")
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o755 if os.path.basename(directory) != DIRECTORY else 0o700)
    _sync(parent or ".")


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
