"""A device that moves less than it was asked to has failed, whoever asks it."""

from __future__ import annotations

import pytest

from iscsid.block.device import Device
from iscsid.block.filter import Filter
from iscsid.block.whole import check_whole, whole
from iscsid.errors import BlockError, Fault


class Counting(Device):
    """Says how much it has moved, which is ``less`` than it should be."""

    size = 8192

    def __init__(self, less: int) -> None:
        self.less = less

    def read_into(self, buffer: memoryview, offset: int) -> int:  # type: ignore[override]
        return len(buffer) - self.less

    def write(self, data: memoryview, offset: int) -> int:  # type: ignore[override]
        return len(data) - self.less


class Layer(Filter):
    """Does not look at what the device below says."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.below.read_into(buffer, offset)

    def write(self, data: memoryview, offset: int) -> None:
        self.below.write(data, offset)


def test_short_transfer_fails_through_a_layer_that_does_not_look() -> None:
    layer = Layer(whole(Counting(512)))
    buffer = memoryview(bytearray(4096))
    for call, fault in ((layer.read_into, Fault.READ_ERROR), (layer.write, Fault.WRITE_ERROR)):
        with pytest.raises(BlockError, match="has moved 3584 of 4096 bytes") as caught:
            call(buffer, 0)
        assert caught.value.fault is fault


def test_device_that_moves_all_is_well_and_gets_no_calls_that_it_has_not() -> None:
    device = whole(Counting(0))
    device.read_into(memoryview(bytearray(512)), 0)
    device.write(memoryview(bytearray(512)), 0)
    assert not {"read_nowait", "write_nowait", "write_fua"} & vars(device).keys()
    assert device.capabilities() == Counting(0).capabilities()


def test_device_of_ours_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "__module__", "iscsid_backends.file")
    assert "read_into" not in vars(whole(Counting(0)))


@pytest.mark.parametrize("done", [0, 511, 513, -1, "512", True])
def test_only_the_very_length_is_whole(done: object) -> None:
    with pytest.raises(BlockError):
        check_whole(done, 512, Fault.READ_ERROR)
    check_whole(512, 512, Fault.READ_ERROR)
