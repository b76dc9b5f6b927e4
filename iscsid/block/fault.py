"""From what a device raised to the closed list of faults: one table, used by the guard and by ``scsi``.

A back end may let an OSError through. What its errno means to an initiator is decided here and nowhere else; where the
kernel's block layer gives an errno a meaning of its own (``blk_errors[]`` of block/blk-core.c: ENODATA is a medium
error, EREMOTEIO a target error, ...), that meaning is taken.
"""

from __future__ import annotations

import errno

from iscsid.errors import BlockError, Fault

# errno -> (fault of a read, fault of a write). What is not here is Fault.INTERNAL.
FAULTS: dict[int, tuple[Fault, Fault]] = {
    # The medium.
    errno.EIO: (Fault.READ_ERROR, Fault.WRITE_ERROR),
    errno.ENODATA: (Fault.READ_ERROR, Fault.WRITE_ERROR),
    errno.EREMOTEIO: (Fault.READ_ERROR, Fault.WRITE_ERROR),
    errno.EILSEQ: (Fault.READ_ERROR, Fault.WRITE_ERROR),  # protection information does not match
    errno.EBADMSG: (Fault.READ_ERROR, Fault.WRITE_ERROR),  # a checksum of the file system does not match
    errno.EUCLEAN: (Fault.READ_ERROR, Fault.WRITE_ERROR),  # the file system is damaged
    errno.ENOSPC: (Fault.READ_ERROR, Fault.NO_SPACE),
    errno.EDQUOT: (Fault.READ_ERROR, Fault.NO_SPACE),
    errno.EFBIG: (Fault.READ_ERROR, Fault.NO_SPACE),
    # The right to it. A read that is not permitted has nothing to do with write protection.
    errno.EROFS: (Fault.NOT_READY, Fault.READ_ONLY),
    errno.EPERM: (Fault.NOT_READY, Fault.READ_ONLY),
    errno.EACCES: (Fault.NOT_READY, Fault.READ_ONLY),
    # The way to it.
    errno.ENODEV: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENXIO: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ESTALE: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENOLINK: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ESHUTDOWN: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENOTCONN: (Fault.NOT_READY, Fault.NOT_READY),
    errno.EPIPE: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ECONNREFUSED: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ECONNRESET: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ECONNABORTED: (Fault.NOT_READY, Fault.NOT_READY),
    errno.EHOSTDOWN: (Fault.NOT_READY, Fault.NOT_READY),
    errno.EHOSTUNREACH: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENETDOWN: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENETUNREACH: (Fault.NOT_READY, Fault.NOT_READY),
    errno.ENOMEDIUM: (Fault.NO_MEDIUM, Fault.NO_MEDIUM),
    # Later.
    errno.EAGAIN: (Fault.BUSY, Fault.BUSY),
    errno.EBUSY: (Fault.BUSY, Fault.BUSY),
    errno.EINTR: (Fault.BUSY, Fault.BUSY),
    errno.ETIMEDOUT: (Fault.BUSY, Fault.BUSY),
    errno.EBADE: (Fault.BUSY, Fault.BUSY),  # the disk below is reserved by another host
    errno.ENOMEM: (Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    errno.ENOBUFS: (Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    errno.EMFILE: (Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    errno.ENFILE: (Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    # Never.
    errno.EOPNOTSUPP: (Fault.UNSUPPORTED, Fault.UNSUPPORTED),
    errno.ENOTSUP: (Fault.UNSUPPORTED, Fault.UNSUPPORTED),
    errno.ENOSYS: (Fault.UNSUPPORTED, Fault.UNSUPPORTED),
    errno.ENOTTY: (Fault.UNSUPPORTED, Fault.UNSUPPORTED),
    errno.EINVAL: (Fault.INVALID, Fault.INVALID),
    errno.ECANCELED: (Fault.CANCELLED, Fault.CANCELLED),
}

_INTERNAL = (Fault.INTERNAL, Fault.INTERNAL)


def fault_of(error: BaseException, writing: bool) -> Fault:
    """What ``error``, raised by a device during a read or (``writing``) a write, flush or discard, means."""
    if isinstance(error, BlockError):
        return error.fault
    if isinstance(error, OSError):
        return FAULTS.get(error.errno or 0, _INTERNAL)[writing]
    if isinstance(error, MemoryError):
        return Fault.NO_RESOURCES
    return Fault.INTERNAL


def block_error(error: BaseException, writing: bool) -> BlockError:
    """``error`` as a BlockError: itself if it is one, else a new one that keeps its words."""
    if isinstance(error, BlockError):
        return error
    fault = fault_of(error, writing)
    words = str(error) or type(error).__name__
    return BlockError(fault, f"{fault.value}: {words}")
