"""What libiscsi's tools say of a disk that we serve."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from e2e_server import TARGET, Server, run_judge

StartServer = Callable[..., Server]


@pytest.mark.judge("iscsi-ls")
def test_iscsi_ls_lists_target_and_disks(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start([*ram, {"backend": "null", "size": "1 GiB"}])
    output = run_judge("iscsi-ls", "-s", f"iscsi://{server.portal()}")
    assert f"Target:{TARGET} Portal:{server.portal()},1" in output
    assert re.search(r"Lun:0\s+Type:DIRECT_ACCESS \(Size:63M\)", output), output  # it shows the last LBA's offset
    assert re.search(r"Lun:1\s+Type:DIRECT_ACCESS \(Size:1023M\)", output), output


@pytest.mark.judge("iscsi-ls")
def test_iscsi_ls_over_ipv6_shows_the_address_it_came_to(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, portals=["127.0.0.1:0", "[::1]:0"])
    portal = server.portal(1)
    assert portal.startswith("[::1]:")
    output = run_judge("iscsi-ls", "-s", f"iscsi://{portal}")
    assert f"Portal:{portal},1" in output
    assert "Lun:0" in output


@pytest.mark.judge("iscsi-inq")
def test_iscsi_inq_shows_a_disk_and_its_pages(start: StartServer) -> None:
    lun = {"backend": "ram", "size": "64 MiB", "vendor": "ACME", "product": "ROADRUNNER", "serial": "BEEP42"}
    url = start([lun]).url()
    output = run_judge("iscsi-inq", url)
    assert "Peripheral Qualifier:CONNECTED" in output
    assert "Peripheral Device Type:DIRECT_ACCESS" in output
    assert re.search(r"Vendor:ACME", output) and re.search(r"Product:ROADRUNNER", output)
    assert "BEEP42" in run_judge("iscsi-inq", "-e", "1", "-c", "128", url)
    for page in (0x00, 0x83, 0xB0, 0xB1, 0xB2):
        run_judge("iscsi-inq", "-e", "1", "-c", str(page), url)


@pytest.mark.judge("iscsi-inq")
def test_iscsi_inq_of_a_target_that_is_not_there_says_so(start: StartServer, ram: list[dict[str, Any]]) -> None:
    url = start(ram).url().replace(TARGET, f"{TARGET}-no")
    output = run_judge("iscsi-inq", url, check=False)
    assert re.search("target not found", output, re.IGNORECASE), output


@pytest.mark.judge("iscsi-readcapacity16")
@pytest.mark.parametrize("block_size", [512, 4096])
def test_iscsi_readcapacity16_shows_the_size(start: StartServer, block_size: int) -> None:
    url = start([{"backend": "ram", "size": "64 MiB", "block_size": block_size}]).url()
    output = run_judge("iscsi-readcapacity16", url)
    assert f"RETURNED LOGICAL BLOCK ADDRESS:{(64 << 20) // block_size - 1}\n" in output
    assert f"LOGICAL BLOCK LENGTH IN BYTES:{block_size}\n" in output
    assert "Total size:67108864" in output


@pytest.mark.judge("qemu-img")
def test_qemu_img_info_shows_the_size(start: StartServer, ram: list[dict[str, Any]]) -> None:
    assert "64 MiB (67108864 bytes)" in run_judge("qemu-img", "info", "-f", "raw", start(ram).url())
