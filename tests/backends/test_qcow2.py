"""The back end as the server uses it: hooks, device, images that lie, and a long random life."""

from __future__ import annotations

import os
import random
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from iscsid_backends.qcow2 import OPTIONS, VERBS
from qcow2_kit import Workload, assert_same, assert_sound, make, opened, put

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin.manager import Plugins

STEPS = int(os.environ.get("ISCSID_QCOW2_STEPS", "60"))  # of the state machine; 10000 before a release
EXAMPLES = max(1, int(os.environ.get("ISCSID_QCOW2_EXAMPLES", "6")))


def image(plugins: Plugins, path: Path, verb: str, **arguments: Any) -> Any:
    return plugins.image("qcow2", {"path": str(path)}, verb, arguments)


def device(plugins: Plugins, path: Path, role: str = "owner") -> Guarded:
    return Guarded(plugins.open("qcow2", plugins.prepare("qcow2", {"path": str(path)}), role))


# Hooks.


def test_every_option_and_verb_is_described(plugins: Plugins) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "backends.md").read_text()
    assert all(f"`{option.name}`" in manual for option in OPTIONS)
    assert all(f"| `{verb.name}` |" in manual for verb in VERBS)
    assert all(option.doc for verb in VERBS for option in verb.options)


def test_validation_tells_what_is_wrong(plugins: Plugins, tmp_path: Path) -> None:
    good = make(tmp_path / "good.qcow2")
    (tmp_path / "bad.qcow2").write_bytes(b"QFI\xfb" + bytes(200))
    (tmp_path / "text").write_text("text")
    for name, words in (
        ("missing", "iscsid image create"),
        ("bad.qcow2", "cluster_bits 0"),
        ("text", "not a qcow2 image"),
        (".", "neither a regular file"),
    ):
        (problem,) = plugins.validate("qcow2", {"path": str(tmp_path / name)})
        assert words in problem
    opened_elsewhere = opened(good)
    assert plugins.validate("qcow2", {"path": str(good)}) == []
    opened_elsewhere.close()


def test_probe_knows_its_own(plugins: Plugins, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    assert (100, "qcow2") in plugins.probe(str(path))
    (tmp_path / "text").write_text("text")
    for name in ("text", "missing", "."):
        assert "qcow2" not in [name for _, name in plugins.probe(str(tmp_path / name))]


def test_only_one_process_may_have_it(plugins: Plugins, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    one = device(plugins, path)
    with pytest.raises(PluginError, match="in use"):
        device(plugins, path)
    one.close()
    device(plugins, path).close()


def test_readonly_device_of_a_corrupt_image_is_read(plugins: Plugins, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    with open(path, "r+b") as file:
        file.seek(79)
        file.write(b"\2")
    with pytest.raises(PluginError, match="marked as corrupt"):
        device(plugins, path)
    guard = device(plugins, path, "readonly")
    assert guard.readonly
    guard.flush()
    guard.close()


def test_flush_of_an_image_that_was_found_damaged_fails(plugins: Plugins, tmp_path: Path) -> None:
    guard = device(plugins, make(tmp_path / "disk.qcow2"))
    guard.write(memoryview(b"x" * 8192), 0)
    found: Any = guard._device
    with pytest.raises(BlockError, match="corrupt"):
        found.image.damaged("planted")
    with pytest.raises(BlockError, match="what was not flushed is lost"):
        guard.flush()
    guard.close()


@pytest.mark.judge("qemu-img")
def test_verbs_do_what_they_say(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    assert image(plugins, path, "create", size="8 MiB", cluster_size="128K")["cluster_size"] == 131072
    guard = device(plugins, path)
    guard.write(memoryview(b"x" * 8192), 0)
    with pytest.raises(PluginError, match="in use"):
        image(plugins, path, "resize", size=1 << 20)
    guard.close()
    assert [one["name"] for one in image(plugins, path, "snapshot", action="create", name="s")["snapshots"]] == ["s"]
    assert [one["name"] for one in image(plugins, path, "snapshot")["snapshots"]] == ["s"]
    with pytest.raises(PluginError, match="say shrink"):
        image(plugins, path, "resize", size=4096)
    assert image(plugins, path, "resize", size=4096, shrink=True) == {"old_size": 8 << 20, "size": 4096}
    assert image(plugins, path, "snapshot", action="apply", name="s")
    assert image(plugins, path, "info")["size"] == 8 << 20
    assert image(plugins, path, "snapshot", action="delete", name="s") == {"snapshots": []}
    checked = image(plugins, path, "check", repair=True)
    assert (checked["sound"], checked["leaks"], checked["repaired"]) == (True, 0, True)
    with pytest.raises(PluginError, match="no backing file"):
        image(plugins, path, "commit")
    with pytest.raises(PluginError, match="name: missing"):
        image(plugins, path, "snapshot", action="create")
    with pytest.raises(PluginError, match="cannot frobnicate"):
        image(plugins, path, "frobnicate")
    with pytest.raises(PluginError, match="sise: unknown option"):
        image(plugins, path, "resize", sise=5)
    assert_sound(path)


def test_prefetch_of_any_range_is_harmless(plugins: Plugins, tmp_path: Path) -> None:
    guard = device(plugins, make(tmp_path / "disk.qcow2"))
    guard.write(memoryview(b"x" * 8192), 65536)
    guard.prefetch(0, 4096)
    guard.prefetch(4096, guard.size - 4096)
    guard.close()


# Images that lie.


def used_image(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """An image with data, a compressed-free life, a snapshot; and where its tables lie."""
    path = make(tmp_path / "disk.qcow2", size=2 << 20, cluster_size=4096)
    life = opened(path)
    work = Workload(life, 11)
    for _ in range(25):
        work.step()
    from iscsid_backends.qcow2_snapshots import create

    create(life, "s")
    put(life, b"z" * 8192, 4096)
    life.checkpoint()
    header = life.header
    places = {
        "l1": header.l1_offset,
        "l2": life.mapping.l2_offset(0),
        "refcount table": header.reftable_offset,
        "refcount block": life.refs.table[0],
        "snapshot table": header.snapshots_offset,
        "snapshot l1": life.snapshots[0].l1_offset,
    }
    life.close()
    return path, places


def use(plugins: Plugins, path: Path) -> None:
    """Read, write, discard and snapshot all over it. Only errors that tell the reason may come out."""
    try:
        guard = device(plugins, path)
    except PluginError as error:
        assert str(path) in str(error) or "Errno" in str(error), error
        guard = None
    if guard is not None:
        buffer = memoryview(bytearray(65536))
        for offset in range(0, guard.size - 65536, 65536):
            for call in (guard.read_into, guard.write):
                contained(lambda: call(buffer, offset))  # noqa: B023
            contained(lambda: guard.discard(offset, 8192))  # noqa: B023
            contained(lambda: list(guard.block_status(offset, 65536)))  # noqa: B023
        contained(guard.flush)
        contained(guard.close)
    for verb, arguments in (
        ("info", {}),
        ("check", {}),
        ("snapshot", {"action": "create", "name": "t"}),
        ("snapshot", {"action": "delete", "name": "s"}),
    ):
        try:
            image(plugins, path, verb, **arguments)
        except PluginError as error:
            assert "Error: " not in str(error).replace("OSError: ", ""), error


def contained(call: Any) -> None:
    try:
        call()
    except BlockError as error:
        assert error.fault is not Fault.INTERNAL or "counted" in str(error), error
    except OSError as error:
        assert error.errno in (5, 22, 27, 28), error


VALUES = [0, 1, 0x200, 0x1000, 0x7FFFFFFF, 1 << 40, 1 << 55, (1 << 62) + 5, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("table", ["l1", "l2", "refcount table", "refcount block", "snapshot table", "snapshot l1"])
def test_table_that_lies_is_contained(table: str, plugins: Plugins, tmp_path: Path) -> None:
    path, places = used_image(tmp_path)
    sound = path.read_bytes()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, value in enumerate(VALUES):
        data = bytearray(sound)
        start = places[table] + (number % 3) * 8
        data[start : start + 8] = struct.pack(">Q", value)
        path.write_bytes(data)
        use(plugins, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10  # KiB


@pytest.mark.parametrize("seed", range(3))
def test_image_with_random_damage_is_contained(seed: int, plugins: Plugins, tmp_path: Path) -> None:
    path, places = used_image(tmp_path)
    sound, rng = path.read_bytes(), random.Random(seed)
    for _ in range(8):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 6)):
            start = rng.choice([0, *places.values()]) + rng.randrange(0, 512, 4)
            data[start : start + 4] = rng.choice([rng.randbytes(4), bytes(4), b"\xff" * 4])
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        use(plugins, path)


@pytest.mark.parametrize("field", range(4, 112, 4))
def test_header_that_lies_is_contained(field: int, plugins: Plugins, tmp_path: Path) -> None:
    path, _ = used_image(tmp_path)
    sound = path.read_bytes()
    for value in (0, 1, 0x80000000, 0xFFFFFFFF):
        data = bytearray(sound)
        data[field : field + 4] = value.to_bytes(4, "big")
        path.write_bytes(data)
        use(plugins, path)


# A long life.

KINDS: list[dict[str, Any]] = [
    {"cluster_size": 4096},
    {"extended_l2": True, "cluster_size": 16384},
    {"compat": "0.10"},
    {"lazy_refcounts": True, "refcount_bits": 8},
]


class Life(RuleBasedStateMachine):
    """Random operations on an image beside a bytearray; QEMU judges whenever it is closed."""

    folder: Path
    number = 0

    @initialize(options=st.sampled_from(KINDS))
    def begin(self, options: dict[str, Any]) -> None:
        Life.number += 1
        self.path = self.folder / f"{Life.number}.qcow2"
        make(self.path, size=1 << 20, **options)
        self.work = Workload(opened(self.path), 0)

    @rule(count=st.integers(1, 12), seed=st.integers(0, 1 << 32))
    def change(self, count: int, seed: int) -> None:
        self.work.rng.seed(seed)
        for _ in range(count):
            self.work.step()

    @rule(operation=st.sampled_from("SADR"), seed=st.integers(0, 1 << 32))
    def manage(self, operation: str, seed: int) -> None:
        self.work.rng.seed(seed)
        self.work.step(operation)

    @rule()
    def close_and_judge(self) -> None:
        self.work.image.close()
        assert_sound(self.path)
        assert_same(self.path, bytes(self.work.model), self.folder)
        self.work.image = opened(self.path)

    @invariant()
    def reads_what_was_written(self) -> None:
        from qcow2_kit import content

        assert content(self.work.image) == self.work.model

    def teardown(self) -> None:
        if not hasattr(self, "work"):
            return
        self.work.image.close()
        assert_sound(self.path)
        assert_same(self.path, bytes(self.work.model), self.folder)
        self.path.unlink()


@pytest.mark.judge("qemu-img")
@pytest.mark.timeout(0 if STEPS > 1000 else 120)
def test_long_life_agrees_with_a_model_and_is_sound_for_qemu(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Life.folder = tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
