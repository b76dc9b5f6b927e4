"""libiscsi(3)'s initiator against real targets, ours and tgt: each function, each variable, each return value."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e_server import Server, wait_until

from iscsid.compat import libiscsi
from iscsid.compat.libiscsi import (
    ISCSI_NOP_OUT,
    get_target_info,
    ii_initiator_init,
    initiator_cmd_t,
    initiator_command,
    initiator_enqueue,
    initiator_set_target_name,
    initiator_target_t,
    iscsi_initiator_discover,
    iscsi_initiator_discovery,
    iscsi_initiator_get_max_targets,
    iscsi_initiator_get_targets,
    iscsi_initiator_getvar,
    iscsi_initiator_info,
    iscsi_initiator_set_defaults,
    iscsi_initiator_setvar,
    iscsi_initiator_shutdown,
    iscsi_initiator_start,
    iscsi_initiator_t,
    iscsi_scsi_cmd_args_t,
    strv_t,
)
from iscsid.testing import TestTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import peers
from ports import free_port

MIB = 1 << 20
TARGETS = [pytest.param("iscsid-ram", id="iscsid"), pytest.param("tgt", marks=pytest.mark.judge("tgtd"))]
NAME = peers.TARGET_NAME


@pytest.fixture(params=TARGETS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Port and LUN of a disk of 1 MiB."""
    image, own = tmp_path / "image", tmp_path / "server"
    image.write_bytes(bytes(MIB))
    own.mkdir()
    try:
        with peers.SERVERS[request.param](own, image) as peer:
            portal, _, lun = peer.url.removeprefix("iscsi://").split("/")
            yield int(portal.rpartition(":")[2]), int(lun)
    except peers.Unavailable as exc:
        pytest.skip(str(exc))


@contextmanager
def started(port: int, **variables: object) -> Iterator[iscsi_initiator_t]:
    """An initiator between start and shutdown."""
    ini = iscsi_initiator_t()
    assert iscsi_initiator_set_defaults(ini) == 1
    values = {"target hostname": "127.0.0.1", "target port": port, "timeout": 10}
    for name, value in {**values, **{name.replace("_", " "): value for name, value in variables.items()}}.items():
        assert iscsi_initiator_setvar(ini, name, str(value)) == 1
    assert iscsi_initiator_start(ini) == 0
    try:
        yield ini
    finally:
        assert iscsi_initiator_shutdown() == 0


def scsi(slot: int, lun: int, cdb: bytes, *, data_in: int = 0, data_out: bytes = b"") -> iscsi_scsi_cmd_args_t:
    """One command, which must be answered."""
    args = iscsi_scsi_cmd_args_t(
        cdb=cdb,
        lun=lun,
        input=bool(data_in),
        output=bool(data_out),
        trans_len=data_in or len(data_out),
        send_data=data_out,
    )
    assert initiator_command(initiator_cmd_t(ptr=args, isid=slot)) == 0
    return args


def info_of(slot: int) -> initiator_target_t:
    info = initiator_target_t()
    get_target_info(slot, info)
    return info


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, blocks, 0)


def test_program_of_the_man_page_ends_logged_in_with_the_list_of_targets(place: tuple[int, int]) -> None:
    port, lun = place
    with started(port) as ini:
        assert iscsi_initiator_getvar(ini, "target port") == str(port)
        assert iscsi_initiator_discover("ignored", 0, lun) == 0
        targets = strv_t()
        assert iscsi_initiator_get_targets(0, targets) == 1
        assert targets.v == [NAME, f"127.0.0.1:{port},1"]
        info = info_of(0)
        assert (info.TargetName, info.ip, info.port, info.has_session) == (NAME, "127.0.0.1", port, 1)
        buffer = bytearray(4096)
        length = iscsi_initiator_info(buffer, len(buffer), 0)
        assert f"{NAME:>30} {f'127.0.0.1:{port}':>25} (Normal session)" in buffer[:length].decode()
        assert iscsi_initiator_discovery(ini, "ignored", 0, lun) == 0  # the man page's form, of a slot that is in
        assert iscsi_initiator_get_targets(1, targets) == -1


def test_commands_read_and_write_the_disk(place: tuple[int, int]) -> None:
    port, lun = place
    with started(port):
        assert iscsi_initiator_discover("", 2, lun) == 0
        scsi(2, lun, bytes(6))  # what a unit has to tell a new session is told to the first command
        capacity = scsi(2, lun, b"\x25".ljust(10, b"\0"), data_in=8)
        assert (capacity.status, capacity.bytes_recv) == (0, 8)
        assert capacity.recv_data is not None
        last, block_size = struct.unpack(">II", capacity.recv_data)
        assert ((last + 1) * block_size, block_size) == (MIB, 512)
        data = os.urandom(64 * 512)
        written = scsi(2, lun, write_10(7, 64), data_out=data)
        assert (written.status, written.bytes_sent) == (0, len(data))
        assert scsi(2, lun, read_10(7, 64), data_in=len(data)).recv_data == data
        beyond = scsi(2, lun, read_10(5000, 1), data_in=512)
        assert (beyond.status, beyond.bytes_recv) == (2, 0)
        assert beyond.sense_data[2] & 0x0F == 5
        assert initiator_command(initiator_cmd_t(type=ISCSI_NOP_OUT, isid=2)) == 0


def test_sixteen_slots_work_side_by_side(place: tuple[int, int]) -> None:
    port, lun = place
    count = iscsi_initiator_get_max_targets()
    assert count == 16
    with started(port):
        assert [iscsi_initiator_discover("", slot, lun) for slot in range(count)] == [0] * count
        assert iscsi_initiator_discover("", count, lun) == -1
        for slot in range(count):
            scsi(slot, lun, bytes(6))
        done = threading.Semaphore(0)
        commands = []
        for slot in range(count):
            args = iscsi_scsi_cmd_args_t(
                cdb=write_10(slot, 1), lun=lun, output=1, trans_len=512, send_data=bytes([slot]) * 512
            )
            commands.append(initiator_cmd_t(ptr=args, isid=slot, callback=lambda _: done.release(), status=9))
        assert [initiator_enqueue(cmd) for cmd in commands] == [0] * count
        assert all(done.acquire(timeout=20) for _ in range(count))
        assert [(cmd.status, cmd.ptr.status) for cmd in commands if isinstance(cmd.ptr, iscsi_scsi_cmd_args_t)] == [
            (0, 0)
        ] * count
        content = scsi(0, lun, read_10(0, count), data_in=count * 512).recv_data
        assert content == b"".join(bytes([slot]) * 512 for slot in range(count))


def test_a_named_target_is_the_one(place: tuple[int, int]) -> None:
    port, lun = place
    with started(port):
        assert initiator_set_target_name(3, NAME) == 0
        assert iscsi_initiator_discover("", 3, lun) == 0
        assert info_of(3).TargetName == NAME
        assert initiator_set_target_name(4, f"{NAME}.nothing") == 0
        assert iscsi_initiator_discover("", 4, lun) == -1
        assert info_of(4).has_session == 0


def test_variables_have_their_effect(place: tuple[int, int]) -> None:
    port, lun = place
    with started(port, address_family=4, target_hostname="localhost"):
        assert iscsi_initiator_discover("", 0, lun) == 0
        assert info_of(0).ip == "127.0.0.1"
    with started(port, address_family=6):
        assert iscsi_initiator_discover("", 0, lun) == -1  # it listens on IPv4 alone
    with started(port, target_instance=1):
        assert iscsi_initiator_discover("", 0, lun) == -1  # there is but one


@pytest.mark.parametrize("kind", ["none", "header", "data", "both", "all"])
def test_digests_are_insisted_on(place: tuple[int, int], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    port, lun = place
    with started(port, digest_type=kind):
        answer = iscsi_initiator_discover("", 0, lun)
        if lun == 1 and kind != "none":  # tgt has none unless its own tool has allowed them
            assert answer == -1
            assert "Digest=None is no answer to CRC32C" in capsys.readouterr().err
        else:
            assert answer == 0
            scsi(0, lun, bytes(6))
            assert scsi(0, lun, read_10(0, 8), data_in=4096).recv_data == bytes(4096)


def test_example_of_the_manual_runs_and_every_name_is_told(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs/netbsd.md").read_text()
    section = manual.partition("## libiscsi(3), the initiator\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {name for name in libiscsi.__all__ if "initiator" in name and hasattr(getattr(libiscsi, name), "__code__")}
    aliases = {"initiator_discover", "initiator_get_targets", "iscsi_initiator_discovery"}
    assert not {name for name in names - aliases if f"`{name}(" not in section}
    scope: dict[str, Any] = {}
    with TestTarget(tmp_path, size="1 MiB") as target:
        port = f'127.0.0.1"); iscsi_initiator_setvar(ini, "target port", "{target.port}'
        exec(compile(example.replace("store.example", port), "docs/netbsd.md", "exec"), scope)
    assert scope["targets"].c == 2
    assert len(scope["capacity"].recv_data) == 8


def test_older_entry_point_starts_as_well(place: tuple[int, int]) -> None:
    port, lun = place
    assert ii_initiator_init("127.0.0.1", port, socket.AF_INET, "", "0", 0, 0, 0) == 0
    try:
        assert iscsi_initiator_discover("", 0, lun) == 0
    finally:
        assert iscsi_initiator_shutdown() == 0


def test_what_hung_in_the_original_is_minus_1_soon(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with started(free_port()):
        assert iscsi_initiator_discover("", 0, 0) == -1
        assert initiator_command(initiator_cmd_t(ptr=iscsi_scsi_cmd_args_t(cdb=bytes(6)))) == -1
    with socket.create_server(("127.0.0.1", 0)) as silent, started(silent.getsockname()[1], timeout=1):
        assert iscsi_initiator_discover("", 0, 0) == -1
    assert time.monotonic() - began < 10
    reasons = capsys.readouterr().err
    assert "refused" in reasons.lower()
    assert "takes too long" in reasons


def test_users_of_the_auths_file_are_let_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auths = tmp_path / "auths"
    auths.write_text("joe:chap:secretsecret1\nann:chap:wrongwrong123\ndisk:chap:othersecret22\n")
    server = Server(tmp_path / "server", [{"backend": "ram", "size": "1 MiB"}])
    accounts = '[{user}.auth]\nchap = [{{ user = "joe", secret = "secretsecret1" }}]\n'
    mutual = 'mutual = { user = "disk", secret = "othersecret22" }\n'
    text = (
        server.config.read_text() + accounts.format(user="target") + mutual + accounts.format(user="discovery") + mutual
    )
    server.config.write_text(text)
    server.start()
    try:
        port = server.address[1]
        known = {"auths_file": auths, "auth_type": "chap"}
        with started(port, **known, user="JOE"):
            assert (
                iscsi_initiator_discover("", 0, 0) == -1
            )  # users are found without case, and sent as they are written
        with started(port, **known, user="joe"):
            assert iscsi_initiator_discover("", 0, 0) == 0
        with started(port, **known, user="joe", mutual_auth="chap", target_user="disk"):
            assert iscsi_initiator_discover("", 0, 0) == 0
        with started(port, **known, user="joe", mutual_auth="chap", target_user="ann"):
            assert iscsi_initiator_discover("", 0, 0) == -1  # the target does not know ann's secret
        with started(port, **known, user="ann"):
            assert iscsi_initiator_discover("", 0, 0) == -1
        with started(port, user="joe", auths_file=auths):
            assert iscsi_initiator_discover("", 0, 0) == -1  # auth type none: the user is dropped
    finally:
        server.finish()
    assert "secretsecret" not in capsys.readouterr().err


def test_a_slot_comes_back_with_its_server_and_shutdown_logs_out(tmp_path: Path) -> None:
    with TestTarget(tmp_path, size="1 MiB", backend="file") as target, started(target.port, timeout=2):
        assert iscsi_initiator_discover("", 0, 0) == 0
        wait_until(lambda: len(target.sessions()) == 1, "the session")
        target.kill()
        assert iscsi_initiator_discover("", 0, 0) == -1
        buffer = bytearray(4096)
        assert b"(connecting)" in buffer[: iscsi_initiator_info(buffer, 4096, 0)]
        target.start()
        assert iscsi_initiator_discover("", 0, 0) == 0
        assert iscsi_initiator_shutdown() == 0
        wait_until(lambda: target.sessions() == [], "the logout")
        ini = iscsi_initiator_t()
        iscsi_initiator_set_defaults(ini)
        assert iscsi_initiator_start(ini) == 0
