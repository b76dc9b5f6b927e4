"""A revision comes over as it was, however long it is, with its descriptors."""

from __future__ import annotations

import os

import pytest

from iscsid.daemon.revision import Revision, read, write
from iscsid.plugin import Descriptor
from iscsid.specs import LunSpec, ServerSpec, TargetSpec


def revision(**options: object) -> Revision:
    targets = tuple(TargetSpec(f"iqn.{number}", (LunSpec(0, "ram"),)) for number in range(5000))
    return Revision(3, ServerSpec(targets=targets), {("iqn.0", 0): options}, {}, frozenset(), {"iqn.1": 1})


def test_revision_is_read_as_it_was_written() -> None:
    written = revision(size=5, memfd=Descriptor(77))
    fd, descriptors = write(written)
    assert descriptors == [77]
    assert os.fstat(fd).st_size > 1 << 17  # more than a message holds
    back = read(fd, [78])
    assert back.prepared == {("iqn.0", 0): {"size": 5, "memfd": 78}}
    assert (back.spec, back.owners, back.number) == (written.spec, written.owners, 3)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_value_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(ValueError, match="cannot be sent to the workers"):
        write(revision(call=lambda: None))
