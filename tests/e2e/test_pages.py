"""The bytes of every page, judged by tables out of the standards, and by sg3-utils, through a raw initiator."""

from __future__ import annotations

import select as select_module
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import e2e_pages as pages
import pytest
from e2e_copy_pages import third_party_copy
from e2e_initiator import Initiator
from e2e_server import TARGET, Server

StartServer = Callable[..., Server]

BLOCKS = (64 << 20) // 512
SERIALS = ("RAM-0001", "FILE-0001")
VPD = bytes.fromhex("00 80 83 85 86 87 88 8f b0 b1 b2 b3")
NUMBER = {"ram": 0, "file": 1}


class Host:
    """A unit as its initiator sees it."""

    def __init__(self, initiator: Initiator, kind: str, volatile: int) -> None:
        self.initiator = initiator
        self.kind = kind
        self.lun = NUMBER[kind]
        self.volatile = volatile

    def ask(self, cdb: str, length: int = 0xFC) -> bytes:
        """Data-in of a command that succeeds; unit attentions in the way are taken first."""
        for _ in range(8):
            status, data = self.initiator.command(bytes.fromhex(cdb), expect=length, lun=self.lun)
            if status == 0:
                return data
            assert data[4] & 0x0F == 0x06, data.hex()
        raise AssertionError("no end of unit attentions")

    def vpd(self, page: int) -> bytes:
        return self.ask(f"12 01 {page:02x} 0400 00", 0x400)

    def log(self, page: int, subpage: int = 0) -> bytes:
        return self.ask(f"4d 00 {0x40 | page:02x} {subpage:02x} 00 0000 00fc 00")


@pytest.fixture(params=["ram", "file"])
def host(request: pytest.FixtureRequest, start: StartServer, tmp_path: Path) -> Iterator[Host]:
    """A RAM disk and a file, each of 64 MiB, that nobody has touched."""
    disk = tmp_path / "disk.img"
    luns: list[dict[str, Any]] = [
        {"backend": "ram", "size": "64 MiB", "serial": SERIALS[0]},
        {"backend": "file", "path": str(disk), "size": "64 MiB", "serial": SERIALS[1]},
    ]
    server = start(luns, workers=2)
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    volatile = int(request.param == "file" and kind.strip() != "tmpfs")
    with Initiator(server.address) as initiator:
        yield Host(initiator, request.param, volatile)


def test_inquiry_bytes(host: Host) -> None:
    pages.check(host.ask("12 00 00 00fc 00"), pages.standard_inquiry())
    serial = SERIALS[host.lun]
    tables = {
        0x00: pages.supported_vpd_pages(VPD),
        0x80: pages.serial_number(serial),
        0x83: pages.device_identification(serial, TARGET, host.lun),
        0x85: pages.vpd_header(0x85, 0),
        0x86: pages.extended_inquiry(host.volatile),
        0x87: pages.mode_page_policy(),
        0x88: pages.scsi_ports(TARGET),
        0x8F: third_party_copy(),
        0xB0: pages.block_limits(8, 0 if host.volatile else 65535, {"ram": 0, "file": 8}[host.kind]),
        0xB1: pages.characteristics(1),
        0xB2: pages.provisioning(),
        0xB3: pages.referrals(),
    }
    assert bytes(tables) == VPD, "every page that is listed has its table"
    for page, table in tables.items():
        pages.check(host.vpd(page), table)


def designators(page: bytes) -> list[tuple[int, int, bytes]]:
    """Association, type and value of each designator of page 83h."""
    found, at = [], 4
    while at < len(page):
        length = page[at + 3]
        found.append((page[at + 1] >> 4 & 0x3, page[at + 1] & 0x0F, page[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def test_names_of_units_are_unique_and_outlive_the_server(start: StartServer, tmp_path: Path) -> None:
    """Those that nobody has configured: an initiator that comes back finds the disk that it knows."""
    luns: list[dict[str, Any]] = [
        {"backend": "ram", "size": "1 MiB"},
        {"backend": "ram", "size": "1 MiB"},
        {"backend": "file", "path": str(tmp_path / "disk.img"), "size": "1 MiB"},
    ]
    server = start(luns, workers=2)

    def names() -> list[tuple[bytes, list[tuple[int, int, bytes]]]]:
        found = []
        with Initiator(server.address, luns=()) as initiator:
            for lun in range(len(luns)):
                host = Host(initiator, "ram", 0)
                host.lun = lun
                found.append((host.vpd(0x80)[4:], designators(host.vpd(0x83))))
        return found

    before = names()
    serials = [serial for serial, _ in before]
    of_units = [value for _, page in before for association, _, value in page if association == 0]
    assert len(set(serials)) == len(luns)
    assert len(of_units) == len(set(of_units)) == 3 * len(luns), "NAA, T10 vendor ID and SCSI name of each"
    server.stop(signal.SIGKILL)
    server.start()
    assert names() == before


def test_mode_bytes(host: Host) -> None:
    tables = pages.mode_pages(host.volatile)
    short, long = host.ask("1a 00 3f ff fc 00"), host.ask("5a 00 3f ff 000000 00fc 00")
    pages.check(short, pages.mode_sense(tables, BLOCKS, long=False))
    pages.check(long, pages.mode_sense(tables, BLOCKS, long=True))
    for control in ("bf", "ff"):  # default and saved values: as long as nobody has changed anything, the same
        assert host.ask(f"1a 00 {control} ff fc 00") == short
    without_subpages = [tables[number] for number in (0, 1, 2, 3, 5)]
    pages.check(host.ask("1a 00 3f 00 fc 00"), pages.mode_sense(without_subpages, BLOCKS, long=False))


def test_log_bytes(host: Host) -> None:
    for subpage, table in zip((0x00, 0xFF), pages.log_lists(), strict=True):
        pages.check(host.log(0x00, subpage), table)
    for page in (0x02, 0x03):
        pages.check(host.log(page), pages.error_counters(page, 0))
    pages.check(host.log(0x0C), pages.resource_counts(0))
    pages.check(host.log(0x19), pages.statistics(0, 0, 0, 0))


def test_capacity_and_port_bytes(host: Host) -> None:
    pages.check(host.ask("25 00 00000000 0000 00 00", 8), pages.capacity_10(BLOCKS))
    pages.check(
        host.ask("9e 10 0000000000000000 00000020 00 00", 32),
        pages.capacity_16(BLOCKS, 0),
    )
    pages.check(host.ask("a3 0a 00000000 000000fc 00 00"), pages.port_groups(pages.ALUA_STATES))
    pages.check(host.ask("a0 00 00 000000 000000fc 00 00"), pages.luns([0, 1]))


def told(host: Host) -> bytes:
    """The general statistics, when they tell of what was done: figures are up to a second old."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        data = host.log(0x19)
        if int.from_bytes(data[16:24], "big"):
            return data
        select_module.select([], [], [], 0.05)
    raise AssertionError("the figures do not come")


def test_figures_count_what_is_done(host: Host) -> None:
    host.ask("00 00 00 00 00 00", 0)
    host.initiator.command(bytes.fromhex("2a 00 00000000 00 0010 00"), bytes(16 * 512), lun=host.lun)
    host.ask("28 00 00000000 00 0008 00", 8 * 512)
    host.ask("28 00 00000008 00 0004 00", 4 * 512)
    pages.check(told(host), pages.statistics(2, 1, 16, 12))
    pages.check(host.log(0x02), pages.error_counters(0x02, 16 * 512))
    pages.check(host.log(0x03), pages.error_counters(0x03, 12 * 512))


@pytest.mark.judge
def test_sg3_utils_read_the_same(host: Host, tmp_path: Path) -> None:
    """A decoder that others wrote finds in the pages what they are meant to say."""

    def decoded(data: bytes, *command: str) -> str:
        path = tmp_path / "response.hex"
        path.write_text(data.hex(" "))
        ended = subprocess.run([*command, f"--inhex={path}"], capture_output=True, text=True, timeout=20, check=True)
        return ended.stdout

    limits = decoded(host.vpd(0xB0), "sg_vpd", "--page=bl")
    assert "Maximum transfer length: 65536 blocks" in limits
    assert "Maximum unmap block descriptor count: 256" in limits
    thin = decoded(host.vpd(0xB2), "sg_vpd", "--page=lbpv")
    assert "Threshold exponent: 11" in thin and "Provisioning type: 2 (thin provisioned)" in thin
    assert SERIALS[host.lun] in decoded(host.vpd(0x83), "sg_vpd", "--page=di")
    resources = decoded(host.log(0x0C), "sg_logs")
    assert "Available LBA mapping threshold resource count: " in resources and "Scope: not dedicated to lu" in resources
    assert "Used LBA mapping threshold resource count: 0" in resources and "Scope: dedicated to lu" in resources
    assert "number of read commands = 0" in decoded(host.log(0x19), "sg_logs")


# -- what MODE SELECT sets ---------------------------------------------------------------------------------------------


def select(host: Initiator, pages_: str, *, save: bool = False) -> None:
    """MODE SELECT(6) on LUN 0; unit attentions in the way are taken first."""
    data = bytes(4) + bytes.fromhex(pages_)
    for _ in range(8):
        status, answer = host.command(bytes((0x15, 0x11 if save else 0x10, 0, 0, len(data), 0)), data)
        if status == 0:
            return
        assert answer[4] & 0x0F == 0x06, answer.hex()
    raise AssertionError("no end of unit attentions")


@pytest.mark.parametrize("save", [True, False])
def test_mode_page_that_is_saved_outlives_a_kill_of_the_server(
    start: StartServer, ram: list[dict[str, Any]], save: bool
) -> None:
    server = start(ram, workers=2)
    with Initiator(server.address) as initiator:
        select(initiator, "0a 0a 20 10 08" + "00" * 7, save=save)  # SWP
    server.stop(signal.SIGKILL)
    server.start()
    with Initiator(server.address) as initiator:
        host = Host(initiator, "ram", 0)
        current, saved = host.ask("1a 08 0a 00 fc 00"), host.ask("1a 08 ca 00 fc 00")
        assert current[8] == saved[8] == (0x08 if save else 0x00)
        assert host.ask("1a 08 8a 00 fc 00")[8] == 0x00  # the default stays


def test_threshold_that_is_reached_is_told_in_every_worker(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)
    names = [f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("first", "second")]
    with Initiator(server.address, names[0]) as first, Initiator(server.address, names[1]) as second:
        assert server.worker_of(names[0]) != server.worker_of(names[1])
        Host(second, "ram", 0).ask("00 00 00 00 00 00", 0)
        threshold = "5c 02 0014" + "00" * 12 + "80 01 0000 ffffffff"  # whatever there is, is less
        select(first, threshold + "01 0a 00 00 00 00 00 80 00 00 00 00")  # LBPERE
        for host in (first, second):
            deadline, heard = time.monotonic() + 10, []
            while (0x38, 0x07) not in heard and time.monotonic() < deadline:
                status, answer = host.command(bytes(6))
                if status:
                    heard.append((answer[14], answer[15]))
                else:
                    select_module.select([], [], [], 0.05)
            assert (0x38, 0x07) in heard, heard
