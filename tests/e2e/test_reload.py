"""A server that changes while it serves: reload, LUNs that come and go, media that grow, and sessions that go on."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import e2e_initiator
import pytest
from e2e_initiator import Closed, Initiator, Refused, steady
from e2e_server import TARGET, Server, toml_value, wait_until

StartServer = Callable[..., Server]

ONE, OTHER = (f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("one", "other"))
SECOND = "iqn.2026-11.org.iscsid.e2e:second"
READY, CAPACITY = bytes(6), bytes.fromhex("25" + "00" * 9)
REPORT_LUNS = bytes.fromhex("a0 00 00 000000 00000100 00 00")
LUNS_CHANGED, CAPACITY_CHANGED, NO_UNIT = (0x06, 0x3F, 0x0E), (0x06, 0x2A, 0x09), (0x05, 0x25, 0x00)
MIB = 1 << 20


def sense(host: Initiator, cdb: bytes = READY, lun: int = 0) -> tuple[int, int, int] | None:
    """Key and code that the command ends in; None where it is GOOD."""
    status, data = host.command(cdb, lun=lun)
    return None if status == 0 else (data[4] & 0x0F, data[14], data[15])


def settle(host: Initiator, lun: int = 0) -> None:
    while (found := sense(host, lun=lun)) and found[0] == 0x06:
        pass


def blocks(host: Initiator, lun: int = 0) -> int:
    status, data = host.command(CAPACITY, expect=8, lun=lun)
    assert status == 0, data
    return int(struct.unpack(">II", data)[0]) + 1


def luns(host: Initiator) -> list[int]:
    status, data = host.command(REPORT_LUNS, expect=256)
    assert status == 0
    return [field >> 48 for (field,) in struct.iter_unpack(">Q", data[8:])]


def lun_table(number: int, **keys: object) -> str:
    return "\n[[target.lun]]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in {"lun": number, **keys}.items())


class Loader(threading.Thread):
    """A host that writes, reads back and compares all the while, as hosts do: what unit attentions tell it notes."""

    def __init__(self, host: Initiator) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.attentions: list[tuple[int, int, int]] = []
        self.rounds = 0
        self.trouble: BaseException | None = None
        self._halt = threading.Event()

    def __enter__(self) -> Loader:
        self.start()
        wait_until(lambda: self.rounds or self.trouble, "there is load")
        return self

    def __exit__(self, *_: object) -> None:
        before = self.rounds
        wait_until(lambda: self.rounds > before + 2 or self.trouble, "the load goes on")
        self._halt.set()
        self.join(20)
        assert self.trouble is None, self.trouble

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                data = os.urandom(4096)
                self._do(bytes.fromhex("2a 00 00000100 00 0008 00"), data)
                assert self._do(bytes.fromhex("28 00 00000100 00 0008 00"), expect=4096) == data
                self.rounds += 1
        except BaseException as error:
            self.trouble = error

    def _do(self, cdb: bytes, data: bytes = b"", expect: int = 0) -> bytes:
        while True:
            status, answer = self.host.command(cdb, data, expect=expect)
            if status == 0:
                return answer
            self.attentions.append((answer[4] & 0x0F, answer[14], answer[15]))
            assert self.attentions[-1][0] == 0x06, answer.hex()


class Rig:
    """A server with a file and two sessions in two workers; ``first`` is its configuration."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.first = server.config.read_text()
        self.one = Initiator(server.address, ONE)
        self.other = Initiator(server.address, OTHER)
        assert server.worker_of(ONE) != server.worker_of(OTHER)
        self.hosts = (self.one, self.other)
        for host in self.hosts:
            settle(host)

    def configure(self, added: str, *, code: int = 0) -> str:
        """Write what is added to the first configuration, reload, and return what was said."""
        self.server.config.write_text(self.first + added)
        return self.reload(code=code)

    def reload(self, *, code: int = 0) -> str:
        # By the folder: the command need not understand the file.
        argv = [sys.executable, "-m", "iscsid", "reload", "-d", self.server.runtime_dir]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def rig(start: StartServer, tmp_path: Path) -> Iterator[Rig]:
    server = start([{"backend": "file", "path": tmp_path / "disk.img", "size": "16 MiB"}], workers=2)
    made = Rig(server)
    yield made
    for host in made.hosts:
        host.close()


@pytest.mark.parametrize("backend", ["ram", "file"])
def test_lun_comes_and_goes_in_every_worker(rig: Rig, tmp_path: Path, backend: str) -> None:
    keys: dict[str, Any] = {"backend": backend, "size": "8 MiB"}
    if backend == "file":
        keys["path"] = tmp_path / "added.img"
    with Loader(rig.one) as loader:
        said = rig.configure(lun_table(1, **keys))
    assert "lun 1" in said and "added" in said
    assert loader.attentions == [LUNS_CHANGED]
    assert sense(rig.other) == LUNS_CHANGED
    for host in rig.hosts:
        assert sense(host) is None
        assert luns(host) == [0, 1]
        settle(host, lun=1)
        assert blocks(host, lun=1) == 8 * MIB // 512
    assert rig.one.command(bytes.fromhex("2a 00 00000007 00 0001 00"), b"x" * 512, lun=1)[0] == 0
    read = bytes.fromhex("28 00 00000007 00 0001 00")
    assert rig.other.command(read, expect=512, lun=1) == (0, b"x" * 512)  # one medium
    with Loader(rig.one) as loader:
        assert "removed" in rig.configure("")
    assert loader.attentions == [LUNS_CHANGED]
    assert sense(rig.other) == LUNS_CHANGED
    for host in rig.hosts:
        assert luns(host) == [0]
        assert sense(host, lun=1) == NO_UNIT
    if backend == "file":
        held = [name for pid in rig.server.workers() for name in open_files(pid)]
        assert str(tmp_path / "added.img") not in held


def open_files(pid: int | None) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).is_symlink()]


def test_target_comes_and_goes_and_others_go_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    added = f'\n[[target]]\nname = "{SECOND}"\n' + lun_table(0, backend="ram", size="8 MiB")
    with steady(rig.server.address, lba=64):
        assert SECOND in rig.configure(added)
        monkeypatch.setattr(e2e_initiator, "TARGET", SECOND)  # where initiators log in to
        guest = Initiator(rig.server.address, "iqn.2026-11.org.iscsid.e2e:guest")
        settle(guest)
        assert blocks(guest) == 8 * MIB // 512
        rig.configure("")
        with pytest.raises((Closed, OSError)):
            while True:
                guest.receive()
        guest.close()
        with pytest.raises(Refused):
            Initiator(rig.server.address, "iqn.2026-11.org.iscsid.e2e:late")
    assert sense(rig.other) is None  # nothing has happened to the first target


def test_bad_file_changes_nothing_and_says_why(rig: Rig) -> None:
    said = rig.configure(lun_table(1, backend="ram", sise="8 MiB"), code=1)
    assert "target[0].lun[1]" in said and "sise" in said and "nothing has changed" in said
    said = rig.configure(lun_table(1, backend="file", path="/dev/null/x", size="8 MiB"), code=1)
    assert "nothing has changed" in said
    for host in rig.hosts:
        assert sense(host) is None
        assert luns(host) == [0]
    rig.server.config.write_text(rig.first)
    assert "nothing is different" in rig.reload()


def test_key_that_needs_a_restart_is_named_and_left(rig: Rig) -> None:
    rig.server.config.write_text(rig.first.replace("[server]\n", "[server]\nmax_sessions = 7\nnop_timeout = 9\n"))
    said = rig.reload()
    assert "max_sessions" in said and "needs a restart" in said
    assert "nop_timeout" in said


def test_sighup_reloads(rig: Rig) -> None:
    rig.server.config.write_text(rig.first + lun_table(1, backend="ram", size="8 MiB"))
    os.kill(rig.server.pid, signal.SIGHUP)
    wait_until(lambda: sense(rig.one) == LUNS_CHANGED, "the other configuration counts")
    assert luns(rig.one) == [0, 1]


def test_worker_that_is_born_later_has_what_was_reloaded(rig: Rig) -> None:
    rig.configure(lun_table(1, backend="ram", size="8 MiB"))
    settle(rig.one, lun=1)
    assert rig.one.command(bytes.fromhex("2a 00 00000007 00 0001 00"), b"y" * 512, lun=1)[0] == 0
    victim = rig.server.workers()[rig.server.worker_of(OTHER)]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in rig.server.workers() and None not in rig.server.workers(), "it is replaced")
    with Initiator(rig.server.address, OTHER) as again:
        settle(again, lun=1)
        read = bytes.fromhex("28 00 00000007 00 0001 00")
        assert again.command(read, expect=512, lun=1) == (0, b"y" * 512)


def test_worker_that_is_killed_during_reloads_holds_up_nobody(rig: Rig) -> None:
    home = rig.server.worker_of(ONE)
    for round_ in range(4):
        wait_until(lambda: None not in rig.server.workers(), "there are two workers")
        victim = rig.server.workers()[1 - home]
        assert victim is not None
        rig.server.config.write_text(rig.first + (lun_table(1, backend="ram", size="8 MiB") if round_ % 2 == 0 else ""))
        os.kill(rig.server.pid, signal.SIGHUP)
        os.kill(victim, signal.SIGKILL)
        expected = [0, 1] if round_ % 2 == 0 else [0]

        def seen(expected: list[int] = expected) -> bool:
            settle(rig.one)
            return luns(rig.one) == expected

        wait_until(seen, "the worker that lives has it")
        wait_until(lambda victim=victim: victim not in rig.server.workers(), "its death is noticed")
        with Initiator(rig.server.address, OTHER) as again:
            settle(again)
            assert luns(again) == expected
    assert rig.server.worker_of(ONE) == home  # its session has lived through all of it


@pytest.mark.parametrize("by", ["configuration", "command"])
def test_file_that_grows_is_seen_by_both_sessions(rig: Rig, by: str) -> None:
    rig.one.write(0, b"a" * 512)
    if by == "configuration":
        rig.first = rig.first.replace("16 MiB", "32 MiB")
        assert "resized" in rig.configure("")
    else:
        done = rig.server.ask_command("lun", "resize", TARGET, "0", "32 MiB")
        assert done.returncode == 0, done.stderr
    for host in rig.hosts:
        assert sense(host) == CAPACITY_CHANGED
        assert blocks(host) == 32 * MIB // 512
        assert host.read(0, 1) == b"a" * 512
    rig.one.write(32 * MIB // 512 - 1, b"z" * 512)
    assert rig.other.read(32 * MIB // 512 - 1, 1) == b"z" * 512


def test_unit_is_made_smaller_only_where_that_is_said(rig: Rig) -> None:
    done = rig.server.ask_command("lun", "resize", TARGET, "0", "1 MiB")
    assert done.returncode == 1 and "would be lost" in done.stderr
    assert blocks(rig.one) == 16 * MIB // 512
    rig.one.write(100, b"a" * 512)
    with Loader(rig.other) as loader:
        done = rig.server.ask_command("lun", "resize", TARGET, "0", "1 MiB", "--shrink")
        assert done.returncode == 0, done.stderr
        assert sense(rig.one) == CAPACITY_CHANGED
    assert loader.attentions == [CAPACITY_CHANGED]
    for host in rig.hosts:
        assert blocks(host) == MIB // 512
        assert sense(host, bytes.fromhex("28 00 00000800 00 0001 00")) == (0x05, 0x21, 0x00)
        assert host.read(100, 1) == b"a" * 512


def test_ram_disk_grows_under_load(start: StartServer) -> None:
    server = start([{"backend": "ram", "size": "16 MiB"}], workers=2)
    with Initiator(server.address, ONE) as one, Initiator(server.address, OTHER) as other:
        settle(one)
        settle(other)
        other.write(9, b"b" * 512)
        with Loader(one) as loader:
            done = server.ask_command("lun", "resize", TARGET, "0", "24 MiB")
            assert done.returncode == 0, done.stderr
            assert sense(other) == CAPACITY_CHANGED
        assert loader.attentions == [CAPACITY_CHANGED] and loader.rounds
        assert blocks(other) == 24 * MIB // 512
        assert other.read(9, 1) == b"b" * 512


def test_administrator_ejects_and_loads_another_file(start: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(16 * MIB))
    server = start([{"backend": "file", "path": path, "removable": True}], workers=2)
    with Initiator(server.address, ONE) as one, Initiator(server.address, OTHER) as other:
        settle(one)
        settle(other)
        assert sense(one, bytes.fromhex("1e0000000100")) is None
        done = server.ask_command("lun", "eject", TARGET, "0")
        assert done.returncode == 1 and "prevents" in done.stderr
        assert server.ask_command("lun", "eject", TARGET, "0", "--force").returncode == 0
        for host in (one, other):
            assert sense(host) == (0x02, 0x3A, 0x00)
        new = tmp_path / "new.img"
        new.write_bytes(b"n" * (32 * MIB))
        os.replace(new, path)
        done = server.ask_command("lun", "load", TARGET, "0")
        assert done.returncode == 0, done.stderr
        for host in (one, other):
            assert [sense(host), sense(host), sense(host)] == [CAPACITY_CHANGED, (0x06, 0x28, 0x00), None]
            assert blocks(host) == 32 * MIB // 512
            assert host.read(3, 1) == b"n" * 512


def test_lun_that_is_not_removable_cannot_be_ejected(rig: Rig) -> None:
    done = rig.server.ask_command("lun", "eject", TARGET, "0")
    assert done.returncode == 1 and "not removable" in done.stderr
    assert rig.server.ask_command("lun", "eject", TARGET, "5").returncode == 1
    assert sense(rig.one) is None


def test_guest_who_is_no_more_on_the_list_is_sent_away(rig: Rig) -> None:
    listed = rig.first.replace(f'name = "{TARGET}"', f'name = "{TARGET}"\ninitiators = ["{ONE}"]')
    rig.server.config.write_text(listed)
    assert "changed" in rig.reload()
    assert sense(rig.one) is None
    with pytest.raises((Closed, OSError)):
        while True:
            rig.other.receive()
    with pytest.raises(Refused):
        Initiator(rig.server.address, OTHER)
