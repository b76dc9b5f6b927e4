"""SANITIZE while hosts in several workers look on, over aborts, resets, a killed worker and a killed server.

The medium is a file whose long writes wait while a gate is shut, so that an operation lasts as long as a test wants.
"""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import TARGET, Server, run_judge, wait_until
from test_conformance import Report, parse_report

StartServer = Callable[..., Server]

GATED = """
import os, time
from iscsid.plugin import BackendInfo, Device, Option, Threading, hookimpl

OPTIONS = (Option("path", "path", required=True), Option("gate", "str", default=""), Option("delay", "int", default=0))

class Gated(Device):
    threading = Threading.PARALLEL

    def __init__(self, fd, gate, delay):
        self.fd, self.gate, self.delay = fd, gate, delay
        self.size = os.fstat(fd).st_size

    def read_into(self, buffer, offset):
        os.preadv(self.fd, (buffer,), offset)

    def write(self, data, offset):
        if len(data) >= 1 << 20:
            time.sleep(self.delay / 1000)
            while self.gate and os.path.exists(self.gate):
                time.sleep(0.01)
        os.pwrite(self.fd, data, offset)

    def flush(self):
        os.fdatasync(self.fd)

    def close(self):
        os.close(self.fd)

@hookimpl
def iscsid_backend_info():
    return BackendInfo("gated", "a file with a gate", OPTIONS)

@hookimpl
def iscsid_open(options, role):
    return Gated(os.open(options["path"], os.O_RDWR), options["gate"], options["delay"])
"""
MIB = 1 << 20
SIZE = 8 * MIB
GOOD, CHECK_CONDITION = 0x00, 0x02
NAMES = [f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("eraser", "onlooker")]
OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x1F
IMMED, AUSE = 0x80, 0x20
PATTERN = struct.pack(">BxH", 1, 4) + b"\xa5\x5a\x01\x02"
IN_PROGRESS, FAILED = (0x02, 0x04, 0x1B), (0x03, 0x31, 0x03)
ABORT_TASK, LOGICAL_UNIT_RESET, COMPLETE = 1, 5, 0
TASK_MANAGEMENT, SCSI_RESPONSE, TASK_MANAGEMENT_RESPONSE = 0x02, 0x21, 0x22


def sanitize_cdb(action: int, length: int = len(PATTERN), flags: int = 0) -> bytes:
    return struct.pack(">BB5xHB", 0x48, flags | action, length, 0)


def told(host: Initiator, cdb: bytes = bytes(6), data: bytes = b"", expect: int = 0) -> tuple[int, int, int] | int:
    """The status of a command, or key and codes of its sense data; unit attentions are taken before."""
    for _ in range(8):
        status, answer = host.command(cdb, data, expect)
        if status != CHECK_CONDITION:
            return status
        sense = answer[2:]
        if sense[2] & 0x0F != 0x06:
            return sense[2] & 0x0F, sense[12], sense[13]
    raise AssertionError("no end of unit attentions")


def request_sense(host: Initiator) -> bytes:
    status, sense = host.command(bytes.fromhex("03 00 0000 ff 00"), expect=255)
    assert status == GOOD
    return sense


class Scene:
    """A server with two workers and a host in each, a gate, and the file behind it."""

    def __init__(self, start: StartServer, tmp_path: Path, stack: ExitStack) -> None:
        self.gate, self.disk, plugins = tmp_path / "gate", tmp_path / "disk", tmp_path / "plugins"
        plugins.mkdir()
        (plugins / "gated.py").write_text(GATED)
        self.disk.write_bytes(b"secret.." * (SIZE // 8))
        lun = {"backend": "gated", "path": str(self.disk), "gate": str(self.gate)}
        self._stack = stack
        self.server = start([lun], workers=2, plugin_dirs=[str(plugins)])
        self.eraser, self.onlooker = (self.host(name) for name in NAMES)
        assert len({self.server.worker_of(name) for name in NAMES}) == 2
        stack.callback(self.open)

    def host(self, name: str) -> Initiator:
        host = self._stack.enter_context(Initiator(self.server.address, name))
        told(host)
        return host

    def shut(self) -> None:
        self.gate.touch()

    def open(self) -> None:
        self.gate.unlink(missing_ok=True)

    def begin(self, flags: int = 0) -> None:
        """Have an operation begin behind the shut gate."""
        self.shut()
        self.eraser.send(self.eraser.command_pdu(sanitize_cdb(OVERWRITE, flags=flags), PATTERN))
        wait_until(lambda: told(self.onlooker) == IN_PROGRESS, "the other worker knows")

    def until(self, host: Initiator, state: Any) -> None:
        wait_until(lambda: told(host) == state, f"the unit says {state}")

    def assert_erased(self) -> None:
        assert self.disk.read_bytes() == PATTERN[4:] * (SIZE // 4)


@pytest.fixture
def scene(start: StartServer, tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(start, tmp_path, stack)


def test_host_in_another_worker_sees_it_in_progress_and_the_answer_comes_when_it_is_done(scene: Scene) -> None:
    scene.begin()
    read = struct.pack(">BBQIBB", 0x88, 0, 0, 1, 0, 0)
    assert told(scene.onlooker, read, expect=512) == IN_PROGRESS
    assert told(scene.onlooker, b"\x2a" + bytes(6) + b"\0\1\0", bytes(512)) == IN_PROGRESS
    assert told(scene.onlooker, sanitize_cdb(OVERWRITE), PATTERN) == IN_PROGRESS
    assert told(scene.onlooker, bytes.fromhex("16 00 00 00 00 00")) == IN_PROGRESS
    assert told(scene.onlooker, bytes.fromhex("12 00 00 00 24 00"), expect=36) == GOOD
    sense = request_sense(scene.onlooker)
    assert (sense[2], sense[12], sense[13]) == IN_PROGRESS
    assert sense[15] == 0x80  # SKSV: the progress is told
    scene.open()
    head, _ = scene.eraser.receive()
    assert (head[0] & 0x3F, head[3]) == (SCSI_RESPONSE, GOOD)
    assert told(scene.onlooker) == GOOD
    assert scene.onlooker.read(0, 8) == PATTERN[4:] * 1024
    scene.assert_erased()


def test_progress_grows_in_the_eyes_of_the_other_worker(scene: Scene) -> None:
    scene.shut()
    slow = struct.pack(">BxH", 31, 4) + PATTERN[4:]
    assert told(scene.eraser, sanitize_cdb(OVERWRITE, flags=IMMED), slow) == GOOD
    scene.open()
    seen = {0}
    while told(scene.onlooker) == IN_PROGRESS:
        sense = request_sense(scene.onlooker)
        if (sense[2], sense[12], sense[13]) == IN_PROGRESS:
            seen.add(int.from_bytes(sense[16:18], "big"))
    assert len(seen) > 1
    scene.assert_erased()


def test_with_immed_it_is_answered_at_once_and_outlives_its_session(scene: Scene) -> None:
    scene.shut()
    assert told(scene.eraser, sanitize_cdb(OVERWRITE, flags=IMMED), PATTERN) == GOOD
    assert told(scene.eraser) == IN_PROGRESS
    scene.eraser.close()
    assert told(scene.onlooker) == IN_PROGRESS
    scene.open()
    scene.until(scene.onlooker, GOOD)
    scene.assert_erased()


def test_no_change_of_the_server_ends_it(scene: Scene) -> None:
    scene.begin()
    text = scene.server.config.read_text()
    scene.server.config.write_text(re.sub(r"(?s)\[\[target.lun\]\].*", "", text))
    for words in (["reload"], ["lun", "resize", TARGET, "0"]):
        said = scene.server.ask_command(*words)
        assert said.returncode == 1 and "a SANITIZE is under way" in said.stderr, said
    assert told(scene.onlooker) == IN_PROGRESS
    scene.server.config.write_text(text)
    scene.open()
    scene.until(scene.onlooker, GOOD)
    scene.assert_erased()
    assert scene.server.ask_command("lun", "resize", TARGET, "0").returncode == 0


def test_neither_abort_nor_reset_ends_it(scene: Scene) -> None:
    scene.begin()
    eraser = scene.eraser
    tag = next(eraser.tags) - 1
    for function, referenced in ((ABORT_TASK, tag), (LOGICAL_UNIT_RESET, 0xFFFFFFFF)):
        fields = struct.pack(">IIIII", referenced, eraser.cmd_sn, eraser.exp_stat_sn, 0, 0)
        head = struct.pack(">BBxxIQI", TASK_MANAGEMENT | 0x40, 0x80 | function, 0, 0, next(eraser.tags)) + fields
        eraser.send(head.ljust(48, b"\0"))
        answer, _ = eraser.receive()
        assert (answer[0] & 0x3F, answer[2]) == (TASK_MANAGEMENT_RESPONSE, COMPLETE)
        eraser.exp_stat_sn = int.from_bytes(answer[24:28], "big") + 1
    assert told(eraser) == IN_PROGRESS
    assert told(scene.onlooker) == IN_PROGRESS
    scene.open()
    scene.until(scene.onlooker, GOOD)
    scene.assert_erased()


@pytest.mark.parametrize("ause", [0, AUSE])
def test_worker_that_dies_at_it_leaves_the_unit_failed(scene: Scene, ause: int) -> None:
    scene.begin(ause)
    pid = scene.server.workers()[scene.server.worker_of(NAMES[0])]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    scene.until(scene.onlooker, FAILED)
    scene.open()
    assert told(scene.onlooker) == FAILED
    sense = request_sense(scene.onlooker)
    assert (sense[2], sense[12], sense[13]) == FAILED
    left = told(scene.onlooker, sanitize_cdb(EXIT_FAILURE_MODE, 0))
    assert left == (GOOD if ause else (0x05, 0x24, 0x00))
    assert told(scene.onlooker) == (GOOD if ause else FAILED)
    assert told(scene.onlooker, sanitize_cdb(OVERWRITE, flags=ause), PATTERN) == GOOD
    assert told(scene.onlooker) == GOOD
    scene.assert_erased()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_unit_is_failed_when_the_server_comes_back(scene: Scene, number: int) -> None:
    scene.begin()
    scene.server.remember_children()
    assert scene.server.process is not None
    scene.server.process.send_signal(number)
    scene.open()
    scene.server.process.wait(30)
    scene.server.start()
    host = scene.host(NAMES[0])
    state = told(host)
    if number == signal.SIGTERM and state == GOOD:  # the gate was open before the worker was told to stop
        scene.assert_erased()
        return
    assert state == FAILED
    assert told(host, sanitize_cdb(OVERWRITE), PATTERN) == GOOD
    assert told(host) == GOOD
    scene.assert_erased()


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("backend", ["ram", "file", "block"])
def test_libiscsi_suite_passes(start: StartServer, tmp_path: Path, loop_device: Any, backend: str) -> None:
    """All but Reset, for which an operation has to last: see the next test."""
    lun: dict[str, Any] = {"backend": backend, "size": "64 MiB"}
    if backend != "ram":
        lun["path"] = tmp_path / "disk.img"
    if backend == "block":
        lun = {"backend": "block", "path": loop_device(64 * MIB, 512)[0]}
    names = re.findall(r"^ALL\.Sanitize\.(\w+)$", run_judge("iscsi-test-cu", "--list"), re.MULTILINE)
    assert len(names) == 11
    url = start([lun]).url()
    # There is no key to forget, and a block device does not tell what is allocated.
    skips = {"SANITIZE CRYPTO_ERASE"} | ({"SANITIZE BLOCK_ERASE"} if backend == "block" else set())
    for name in sorted(set(names) - {"Reset"}):
        report = judge(url, name)
        assert (name, report.failed, report.failures) == (name, 0, [])
        unforeseen = [s for s in report.skips if not s.startswith(tuple(f"{skip} is not impl" for skip in skips))]
        assert (name, report.ran, unforeseen) == (name, 1, [])


@pytest.mark.judge("iscsi-test-cu")
def test_libiscsi_reset_does_not_end_an_operation(start: StartServer, tmp_path: Path) -> None:
    """The judge looks after three seconds, resets and logs in again, and then only once a minute."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "gated.py").write_text(GATED)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * MIB))
    lun = {"backend": "gated", "path": str(disk), "delay": 200}
    report = judge(start([lun], plugin_dirs=[str(tmp_path / "plugins")]).url(), "Reset")
    assert (report.ran, report.failed, report.failures, report.skips) == (1, 0, [], [])


def judge(url: str, name: str) -> Report:
    words = ("--dataloss", "--allow-sanitize", "--verbose", f"--test=ALL.Sanitize.{name}", url)
    return parse_report(run_judge("iscsi-test-cu", *words, timeout=150, check=False))
