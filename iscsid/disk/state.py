"""How far a copy has come, in a file: so that one that was killed can go on.

It is written after the destination was flushed, so everything before its position is on the medium; the rest of it says
which copy it belongs to. No secrets are in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import platformdirs

from iscsid.disk.ends import End, EndError

VERSION: Final = 1
SUFFIX: Final = ".iscsid-copy"
MAX_STATE: Final = 1 << 16  # bytes; ours have a few hundred


@dataclass(slots=True)
class CopyState:
    """Attributes:
    source, destination: what identifies them (``End.identity``).
    position: bytes that are copied and on the medium.
    """

    source: dict[str, Any]
    destination: dict[str, Any]
    position: int = 0

    @classmethod
    def of(cls, source: End, destination: End) -> Self:
        return cls(dict(source.identity), dict(destination.identity))

    def check(self, source: End, destination: End) -> None:
        """Raise EndError unless this is the state of the copy from ``source`` to ``destination``."""
        for kind, then, end in (("source", self.source, source), ("destination", self.destination, destination)):
            changed = sorted(key for key in then.keys() | end.identity if then.get(key) != end.identity.get(key))
            if changed:
                what = ", ".join(changed)
                raise EndError(
                    f"cannot resume: the {kind} {end.name} is not the one that the copy began with:"
                    f" another {what}; --force begins again"
                )


def state_path(destination: str, url: str | None) -> Path:
    """Where the state of a copy is kept: beside a file, in the user's folder for states for a disk.

    Args:
        destination: the path of a file; ignored where ``url`` is given.
        url: of a disk of a target, without credentials.
    """
    if url is None and not destination.startswith("/dev/"):
        return Path(destination + SUFFIX)
    name = hashlib.sha256((url or destination).encode()).hexdigest()[:32]
    return Path(platformdirs.user_state_dir("iscsid-copy", appauthor=False)) / f"{name}.json"


def load(path: Path) -> CopyState | None:
    """Return the state in ``path``, None where there is no file. Raises EndError for what cannot be read."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_STATE))
        if document.pop("version") != VERSION:
            raise ValueError("another version wrote it")
        state = CopyState(**document)
        if not (isinstance(state.source, dict) and isinstance(state.destination, dict)):
            raise ValueError("it is not the state of a copy")
        if not isinstance(state.position, int) or state.position < 0:
            raise ValueError("its position is none")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EndError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EndError(f"{path} is not the state of a copy: --force begins again ({error})") from error
    return state


def save(path: Path, state: CopyState) -> None:
    """Replace the state in ``path`` in one step; it survives a loss of power."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            json.dump({"version": VERSION, **asdict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise EndError(f"{path}: the state of the copy cannot be kept: {error.strerror}") from error


def forget(path: Path) -> None:
    """Remove the state of a copy that is over."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
