"""Opening what a worker serves, sending writes around a medium that stalls, and parting from it in bounded time."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
from worker_kit import TARGET, WAIT, CachedDevice, MemoryDevice, Planted, SlowDevice, boot_of, lun_of

from iscsid.block.guard import Guarded
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.nodes import RETRY_SECONDS, NodeError, Nodes
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin import Mode, Threading
from iscsid.plugin.manager import load
from iscsid.scsi.copy_move import designations
from iscsid.scsi.log import Figures
from iscsid.scsi.state import NexusId
from iscsid.shared.figures import FigureTable
from iscsid.specs import LayerSpec, LunSpec, ServerSpec, TargetSpec
from iscsid.text.keys import TARGET_OFFERS

DATA = memoryview(b"x" * 512)


class SerialDevice(SlowDevice):
    threading = Threading.SERIAL


class BrokenDevice(SlowDevice):
    """Fails to flush and to close."""

    def flush(self) -> None:
        self._note("flush")
        raise BlockError(Fault.WRITE_ERROR, "flush is broken")

    def close(self) -> None:
        raise OSError(5, "close is broken")


def guarded(nodes: Nodes, lun: int = 0) -> Guarded:
    """The device of a logical unit."""
    return list(nodes.by_name[TARGET].devices())[lun]


def raising(error: BaseException) -> Any:
    def make(_role: str) -> Any:
        raise error

    return make


# --- opening ----------------------------------------------------------------------------------------------------------


def test_units_of_every_target_are_found_by_their_designations() -> None:
    targets = [
        TargetSpec(name, (dataclasses.replace(lun_of(MemoryDevice(), 3), serial=name),)) for name in ("iqn.a", "iqn.b")
    ]
    nodes = Nodes(WorkerBoot(0, ServerSpec(targets=tuple(targets)), Planted(), copy_key=b"key"))  # type: ignore[arg-type]
    asking = NexusId("iqn.host", 7, "iqn.a", 1)
    for name in ("iqn.a", "iqn.b"):
        unit = nodes.by_name[name].units[3 << 48]
        for designation in designations(unit):
            found = nodes.find(designation, asking)
            assert found is not None and found.unit is unit
            assert found.nexus.id == NexusId("iqn.host", 7, name, 1)
    assert nodes.find((1, 3, b"unknown!"), asking) is None
    services = nodes.by_name["iqn.a"].seats("iqn.host", 7)[3 << 48][1].copies.services
    assert services.key == b"key" and services.find(designations(unit)[0], asking) is not None
    assert services.now() >= 0
    nodes.close()


def test_targets_are_opened_by_name_with_their_parameters() -> None:
    target = TargetSpec("iqn.a", (lun_of(MemoryDevice(), 3),), alias="one", parameters={"MaxBurstLength": "4096"})
    nodes = Nodes(WorkerBoot(0, ServerSpec(targets=(target, TargetSpec("iqn.b"))), Planted()))  # type: ignore[arg-type]
    assert list(nodes.by_name) == ["iqn.a", "iqn.b"]
    node = nodes.by_name["iqn.a"]
    assert node.luns == (3,)
    assert node.alias == "one"
    assert node.offers == {**TARGET_OFFERS, "MaxBurstLength": "4096"}
    nodes.close()


def test_target_of_another_owner_is_not_opened() -> None:
    spec = ServerSpec(targets=(TargetSpec("iqn.a", (lun_of(raising(AssertionError())),)), TargetSpec("iqn.b")))
    nodes = Nodes(WorkerBoot(0, spec, Planted(), owners={"iqn.a": 1}))  # type: ignore[arg-type]
    assert list(nodes.by_name) == ["iqn.b"]
    nodes.close()


@pytest.mark.parametrize(
    ("readonly", "owners", "role"),
    [(False, {}, "worker"), (False, {TARGET: 0}, "owner"), (True, {TARGET: 0}, "readonly")],
)
def test_device_is_told_its_role(readonly: bool, owners: dict[str, int], role: str) -> None:
    roles = []

    def make(role: str) -> MemoryDevice:
        roles.append(role)
        return MemoryDevice()

    spec = ServerSpec(targets=(TargetSpec(TARGET, (lun_of(make, readonly=readonly),)),))
    nodes = Nodes(WorkerBoot(0, spec, Planted(), owners=owners))  # type: ignore[arg-type]
    assert roles == [role]
    assert guarded(nodes).readonly is readonly
    nodes.close()


def test_patience_with_a_device_is_that_of_its_lun_or_of_the_server() -> None:
    luns = lun_of(MemoryDevice()), lun_of(MemoryDevice(), 1, io_timeout=7.0)
    nodes = Nodes(boot_of(*luns, io_timeout=11.0))
    assert [guarded(nodes, lun).io_timeout for lun in (0, 1)] == [11.0, 7.0]
    nodes.close()


def test_prepared_options_replace_those_of_the_configuration() -> None:
    device = MemoryDevice()
    spec = ServerSpec(targets=(TargetSpec(TARGET, (LunSpec(0, "planted", {"device": "a path"}),)),))
    nodes = Nodes(WorkerBoot(0, spec, Planted(), prepared={(TARGET, 0): {"device": device}}))  # type: ignore[arg-type]
    nodes.close()
    assert device.log == ["close"]


def test_layers_are_wrapped_in_their_order() -> None:
    wrapped = []

    def wrapping(name: str) -> LayerSpec:
        return LayerSpec(name, {"wrap": lambda device: wrapped.append(name) or device})

    nodes = Nodes(boot_of(lun_of(MemoryDevice(), layers=(wrapping("inner"), wrapping("outer")))))
    assert wrapped == ["inner", "outer"]
    nodes.close()


def test_real_back_ends_open_through_the_plugin_manager(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    luns = (LunSpec(0, "null", {"size": 1 << 20}), LunSpec(1, "file", {"path": str(image)}))
    spec = ServerSpec(targets=(TargetSpec(TARGET, luns),))
    nodes = Nodes(WorkerBoot(0, spec, load(["null", "file"])))
    assert [device.size for device in nodes.by_name[TARGET].devices()] == [1 << 20, 1 << 20]
    guarded(nodes, 1).write(DATA, 512)
    nodes.close()
    assert image.read_bytes()[512:1024] == bytes(DATA)


def test_device_of_several_handles_serves_as_many_calls_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "handled.py").write_text(HANDLED)
    target = TargetSpec(TARGET, (LunSpec(0, "handled", {}, layers=(LayerSpec("offset", {"offset": 512}),)),))
    nodes = Nodes(WorkerBoot(0, ServerSpec(targets=(target,)), load(["handled", "offset"], [folder])))
    guard, barrier = guarded(nodes), threading.Barrier(3)
    assert not guard.serialised
    device = guard._device
    assert device is not None
    device.below.below.barrier = barrier  # type: ignore[attr-defined]
    threads = [threading.Thread(target=guard.write, args=(DATA, 0), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not barrier.broken
    nodes.close()


HANDLED = """
from iscsid.plugin import BackendInfo, Device, Threading, hookimpl

class Handled(Device):
    threading = Threading.PER_HANDLE
    size = 1 << 20
    barrier = None
    entered = False

    def read_into(self, buffer, offset):
        pass

    def write(self, data, offset):
        assert not self.entered, "entered twice"
        self.entered = True
        OPEN[0].barrier.wait(20)  # until three calls are in three handles
        self.entered = False

OPEN = []

@hookimpl
def iscsid_backend_info():
    return BackendInfo("handled", "one call at a time in each", (), handles=3)

@hookimpl
def iscsid_open(options, role):
    OPEN.append(Handled())
    return OPEN[-1]
"""


def test_only_serial_devices_get_a_lock() -> None:
    nodes = Nodes(boot_of(lun_of(SerialDevice(), 0), lun_of(SlowDevice(), 1)))
    serial, parallel = nodes.by_name[TARGET].devices()
    with serial.lock:
        assert serial.lock.locked()  # type: ignore[attr-defined]
    assert not isinstance(parallel.lock, type(threading.Lock()))
    nodes.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BlockError(Fault.NO_MEDIUM, "no disk in it"), "no disk in it"),
        (PluginError("ram", "went away"), "plugin ram: went away"),
        (FileNotFoundError(2, "No such file", "/x"), "No such file"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_device_that_does_not_open_is_named_and_the_others_are_closed(error: Exception, words: str) -> None:
    before, same_target = MemoryDevice(), MemoryDevice()
    targets = (
        TargetSpec("iqn.a", (lun_of(before),)),
        TargetSpec("iqn.b", (lun_of(same_target, 0), lun_of(raising(error), 7))),
    )
    with pytest.raises(NodeError, match=r"^iqn\.b LUN 7: ") as caught:
        Nodes(WorkerBoot(0, ServerSpec(targets=targets), Planted()))  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.__cause__ is error
    assert before.log == same_target.log == ["close"]


def test_device_whose_layer_fails_is_closed() -> None:
    device = MemoryDevice()

    def wrap(_device: Any) -> Any:
        raise PluginError("rate", "no such rate")

    with pytest.raises(NodeError, match="no such rate"):
        Nodes(boot_of(lun_of(device, layers=(LayerSpec("rate", {"wrap": wrap}),))))
    assert device.log == ["close"]


def test_device_whose_facts_do_not_fit_is_closed() -> None:
    device = MemoryDevice()
    device.size = 100
    with pytest.raises(NodeError, match="no block"):
        Nodes(boot_of(lun_of(device)))
    assert device.log == ["close"]


def test_device_that_no_initiator_can_address_is_refused() -> None:
    device = MemoryDevice()
    device.size = 1 << 65
    with pytest.raises(NodeError, match="larger than"):
        Nodes(boot_of(lun_of(device)))
    assert device.log == ["close"]


def test_device_that_cannot_even_close_hides_no_reason() -> None:
    device = BrokenDevice()
    device.size = 100
    with pytest.raises(NodeError, match="no block"):
        Nodes(boot_of(lun_of(device)))


# --- stalls -----------------------------------------------------------------------------------------------------------


def test_stall_sends_writes_to_the_pool_until_the_time_is_up() -> None:
    device = CachedDevice()
    nodes = Nodes(boot_of(lun_of(device)))
    guarded(nodes).write_now(DATA, 0)
    nodes.stalled(100.0)
    with pytest.raises(BlockingIOError):
        guarded(nodes).write_now(DATA, 0)
    nodes.tick(100.0 + RETRY_SECONDS - 0.1)
    with pytest.raises(BlockingIOError):
        guarded(nodes).write_now(DATA, 0)
    nodes.tick(100.0 + RETRY_SECONDS)
    guarded(nodes).write_now(DATA, 0)
    assert device.log == ["write_nowait", "write_nowait"]
    nodes.close()


def test_stall_after_a_stall_begins_the_time_again() -> None:
    nodes = Nodes(boot_of(lun_of(CachedDevice())))
    nodes.stalled(100.0)
    nodes.stalled(103.0)
    nodes.tick(100.0 + RETRY_SECONDS)
    with pytest.raises(BlockingIOError):
        guarded(nodes).write_now(DATA, 0)
    nodes.tick(103.0 + RETRY_SECONDS)
    guarded(nodes).write_now(DATA, 0)
    nodes.close()


def test_stall_leaves_alone_a_device_that_never_waits() -> None:
    device = MemoryDevice()
    assert device.mode is Mode.INLINE
    nodes = Nodes(boot_of(lun_of(device)))
    nodes.stalled(100.0)
    guarded(nodes).write_now(DATA, 0)
    nodes.close()


def test_device_closed_during_a_stall_stays_closed() -> None:
    nodes = Nodes(boot_of(lun_of(CachedDevice())))
    device = guarded(nodes)
    nodes.stalled(100.0)
    nodes.close()
    nodes.tick(1000.0)
    with pytest.raises(BlockError, match="closed"):
        device.write_now(DATA, 0)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_close_flushes_and_then_closes_every_device_once() -> None:
    devices = [SlowDevice(), SlowDevice()]
    nodes = Nodes(boot_of(*(lun_of(device, number) for number, device in enumerate(devices))))
    nodes.close()
    assert [device.log for device in devices] == [["flush", "close"]] * 2
    nodes.close()
    assert [device.log for device in devices] == [["flush", "close"]] * 2


def test_close_logs_what_fails_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = BrokenDevice(), SlowDevice()
    nodes = Nodes(boot_of(lun_of(broken, 0), lun_of(sound, 1)))
    nodes.close()
    assert broken.log == ["flush"]
    assert sound.log == ["flush", "close"]
    assert f"{TARGET}: flush or close failed" in caplog.text


def test_close_gives_up_a_device_that_hangs_and_finishes_the_others(caplog: pytest.LogCaptureFixture) -> None:
    hung, sound = SlowDevice(), SlowDevice()
    nodes = Nodes(boot_of(lun_of(hung, 0), lun_of(sound, 1)))
    hung.gate.clear()
    nodes.close(0.5)
    hung.gate.set()
    assert sound.log == ["flush", "close"]
    assert f"{TARGET}: not flushed and closed within 0.5 seconds" in caplog.text


def test_close_of_a_serial_device_waits_for_its_lock() -> None:
    device = SerialDevice()
    nodes = Nodes(boot_of(lun_of(device)))
    lock = guarded(nodes).lock
    with lock:
        nodes.close(0.01)
        assert device.log == [], "flushed while another call was inside"


def test_close_without_release_flushes_only() -> None:
    device = SlowDevice()
    nodes = Nodes(boot_of(lun_of(device)))
    nodes.close(release=False)
    assert device.log == ["flush"]


def test_close_without_flush_closes_only() -> None:
    device = SlowDevice()
    nodes = Nodes(boot_of(lun_of(device)))
    nodes.close(flush=False)
    assert device.log == ["close"]


# --- ranges held against other workers --------------------------------------------------------------------------------


def test_range_is_held_against_every_worker_and_only_on_its_unit(tmp_path: Path) -> None:
    luns = (lun_of(MemoryDevice(), 0, serial="A"), lun_of(MemoryDevice(), 1, serial="B"))
    one, two = (Nodes(boot_of(*luns, runtime_dir=str(tmp_path))) for _ in range(2))
    with guarded(one).exclusive(0, 512):
        with pytest.raises(BlockingIOError), guarded(two).exclusive(0, 512, False):
            pass
        with guarded(two).exclusive(512, 512, False), guarded(two, 1).exclusive(0, 512, False):
            pass
    with guarded(two).exclusive(0, 512, False):
        pass
    one.close()
    two.close()


def test_two_luns_of_one_serial_number_are_one_unit_also_for_ranges(tmp_path: Path) -> None:
    luns = (lun_of(MemoryDevice(), 0, serial="A"), lun_of(MemoryDevice(), 1, serial="A"))
    nodes = Nodes(boot_of(*luns, runtime_dir=str(tmp_path)))
    first, second = (guarded(nodes, number) for number in (0, 1))
    with first.exclusive(0, 512), pytest.raises(BlockingIOError), second.exclusive(0, 512, False):
        pass
    nodes.close()


@pytest.mark.parametrize("release", [True, False])
def test_close_gives_lock_files_back_with_the_devices(tmp_path: Path, release: bool) -> None:
    nodes = Nodes(boot_of(lun_of(MemoryDevice(), serial="A"), runtime_dir=str(tmp_path)))
    with guarded(nodes).exclusive(0, 512):
        pass
    (lock,) = nodes._locks.values()
    assert lock._fd >= 0
    nodes.close(release=release)
    assert (lock._fd < 0) is release
    lock.close()


def test_units_tell_what_all_workers_have_counted() -> None:
    target = TargetSpec(TARGET, (LunSpec(0, "null", {"size": 1 << 20}, serial="S0"),))
    size = FigureTable.size(2, ["S0"])
    table = FigureTable(memoryview(bytearray(size)), 2, ["S0"])
    table.store(1, "S0", Figures(read_bytes=1000))  # another worker's
    nodes = Nodes(WorkerBoot(0, ServerSpec(targets=(target,)), load(["null"]), figures=table))
    (unit,) = nodes.by_serial()["S0"]
    unit.tally.read_bytes = 24
    nodes.tick(0.0)
    assert unit.figures is not None
    assert unit.figures() == Figures(read_bytes=1024)
    assert "LOG_SENSE" in [command.name for command in unit.commands]
    nodes.close()


def test_units_of_a_worker_without_the_table_have_no_log_pages() -> None:
    target = TargetSpec(TARGET, (LunSpec(0, "null", {"size": 1 << 20}, serial="S0"),))
    nodes = Nodes(WorkerBoot(0, ServerSpec(targets=(target,)), load(["null"])))
    (unit,) = nodes.by_serial()["S0"]
    nodes.tick(0.0)
    assert unit.figures is None
    nodes.close()
