"""A file that shares its blocks with another until either is written: a copy that takes no time and no space."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any, Final

from iscsid.plugin import BlockError, Fault, Option, Verb

FICLONE: Final = 0x40049409  # of linux/fs.h; fcntl has it from Python 3.12 on
_CANNOT: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)

VERBS: Final = (
    Verb("clone", "make a file that shares the blocks of this one", (Option("to", "path", required=True, doc="it"),)),
)


def clone(path: str, to: str) -> dict[str, Any]:
    """Make the new file ``to``, which holds what ``path`` holds now. Raises BlockError(UNSUPPORTED) where the file
    system cannot, and OSError; with nothing left of it."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(to, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _share(source, target, path, to)
            os.fsync(target)
        except BaseException:
            os.unlink(to)
            raise
        finally:
            os.close(target)
        return {"path": to, "size": os.fstat(source).st_size}
    finally:
        os.close(source)


def _share(source: int, target: int, path: str, to: str) -> None:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        words = f"cannot share the blocks of {path}; copy the disk with `iscsid disk copy`"
        raise BlockError(Fault.UNSUPPORTED, f"the file system of {to} {words}") from error
