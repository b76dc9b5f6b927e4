"""What an errno of a device means: the table, and what is not in it."""

from __future__ import annotations

import errno

import pytest

from iscsid.block.fault import FAULTS, block_error, fault_of
from iscsid.errors import BlockError, Fault, IscsidError

CASES = [
    # errno, of a read, of a write
    (errno.EIO, Fault.READ_ERROR, Fault.WRITE_ERROR),
    (errno.ENODATA, Fault.READ_ERROR, Fault.WRITE_ERROR),  # BLK_STS_MEDIUM
    (errno.EREMOTEIO, Fault.READ_ERROR, Fault.WRITE_ERROR),  # BLK_STS_TARGET
    (errno.EILSEQ, Fault.READ_ERROR, Fault.WRITE_ERROR),  # BLK_STS_PROTECTION
    (errno.ENOLINK, Fault.NOT_READY, Fault.NOT_READY),  # BLK_STS_TRANSPORT
    (errno.ENOSPC, Fault.READ_ERROR, Fault.NO_SPACE),
    (errno.EDQUOT, Fault.READ_ERROR, Fault.NO_SPACE),
    (errno.EROFS, Fault.NOT_READY, Fault.READ_ONLY),
    (errno.EPERM, Fault.NOT_READY, Fault.READ_ONLY),
    (errno.ENODEV, Fault.NOT_READY, Fault.NOT_READY),
    (errno.ESTALE, Fault.NOT_READY, Fault.NOT_READY),
    (errno.ENOMEDIUM, Fault.NO_MEDIUM, Fault.NO_MEDIUM),
    (errno.EAGAIN, Fault.BUSY, Fault.BUSY),
    (errno.ETIMEDOUT, Fault.BUSY, Fault.BUSY),
    (errno.ENOMEM, Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    (errno.EMFILE, Fault.NO_RESOURCES, Fault.NO_RESOURCES),
    (errno.EOPNOTSUPP, Fault.UNSUPPORTED, Fault.UNSUPPORTED),
    (errno.EINVAL, Fault.INVALID, Fault.INVALID),
    (errno.ECANCELED, Fault.CANCELLED, Fault.CANCELLED),
    (errno.EXDEV, Fault.INTERNAL, Fault.INTERNAL),  # not in the table
]


@pytest.mark.parametrize(("code", "of_read", "of_write"), CASES)
def test_errno_has_its_fault(code: int, of_read: Fault, of_write: Fault) -> None:
    error = OSError(code, "words")
    assert fault_of(error, writing=False) is of_read
    assert fault_of(error, writing=True) is of_write


def test_no_read_fails_as_a_write() -> None:
    only_writes = {Fault.WRITE_ERROR, Fault.NO_SPACE, Fault.READ_ONLY}
    assert not only_writes & {of_read for of_read, _ in FAULTS.values()}
    assert Fault.READ_ERROR not in {of_write for _, of_write in FAULTS.values()}


def test_subclass_of_oserror_is_known_by_its_errno() -> None:
    assert fault_of(PermissionError(errno.EACCES, "no"), writing=True) is Fault.READ_ONLY
    assert fault_of(BlockingIOError(errno.EAGAIN, "later"), writing=False) is Fault.BUSY


def test_oserror_without_errno_is_internal() -> None:
    assert fault_of(OSError("just words"), writing=False) is Fault.INTERNAL


def test_block_error_keeps_its_fault() -> None:
    assert fault_of(BlockError(Fault.MISCOMPARE), writing=True) is Fault.MISCOMPARE


def test_memory_error_is_a_lack_of_resources() -> None:
    assert fault_of(MemoryError(), writing=False) is Fault.NO_RESOURCES


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), IscsidError("x"), NotImplementedError()])
def test_anything_else_is_internal(error: Exception) -> None:
    assert fault_of(error, writing=True) is Fault.INTERNAL


def test_block_error_of_an_oserror_keeps_its_words() -> None:
    error = block_error(OSError(errno.EIO, "Input/output error"), writing=True)
    assert error.fault is Fault.WRITE_ERROR
    assert "Input/output error" in str(error)


def test_block_error_of_a_wordless_error_names_its_type() -> None:
    assert "KeyError" in str(block_error(KeyError(), writing=False))


def test_block_error_of_a_block_error_is_itself() -> None:
    error = BlockError(Fault.BUSY)
    assert block_error(error, writing=False) is error
