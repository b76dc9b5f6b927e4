"""CHAP as libiscsi's tools and QEMU speak it, and who is kept out without it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from e2e_server import TARGET, Server

pytestmark = [pytest.mark.process, pytest.mark.judge("iscsi-inq"), pytest.mark.judge("qemu-img")]

HIDDEN = "iqn.2026-11.org.iscsid.e2e:hidden"
ACCOUNTS = """
[target.auth]
chap = [{ user = "joe", secret = "secretsecret1" }]
mutual = { user = "disk", secret = "othersecret12" }

[discovery.auth]
chap = [{ user = "ann", secret = "secretsecret2" }]
"""
KEPT_BACK = f"""
[[target]]
name = "{HIDDEN}"
initiators = ["iqn.nobody*"]
"""
RIGHT = "joe%secretsecret1@"


@pytest.fixture
def portal(tmp_path: Path) -> object:
    server = Server(tmp_path, [{"backend": "ram", "size": "8 MiB"}])
    text = server.config.read_text()
    server.config.write_text(text + ACCOUNTS + KEPT_BACK)
    server.start()
    try:
        yield server.portal(), server.log
    finally:
        server.finish()


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_chap_lets_in_who_proves_himself_and_nobody_else(portal: tuple[str, Path]) -> None:
    address, log = portal
    unit = f"{address}/{TARGET}/0"
    mutual = "?target_user=disk&target_password="
    for url in (RIGHT + unit, f"{RIGHT}{unit}{mutual}othersecret12"):
        assert run("iscsi-inq", f"iscsi://{url}").returncode == 0
    assert run("qemu-img", "info", f"iscsi://{RIGHT}{unit}").returncode == 0
    for url in (unit, f"joe%wrongwrong123@{unit}", f"{RIGHT}{unit}{mutual}wrongwrong123"):
        assert run("iscsi-inq", f"iscsi://{url}").returncode != 0
    words = log.read_text()
    assert "user 'joe': wrong secret" in words
    assert "secretsecret" not in words and "othersecret" not in words


def test_discovery_asks_for_its_own_account_and_hides_what_is_not_for_the_initiator(portal: tuple[str, Path]) -> None:
    address, _ = portal
    told = run("iscsi-ls", f"iscsi://ann%secretsecret2@{address}/")
    assert TARGET in told.stdout and HIDDEN not in told.stdout
    assert TARGET not in run("iscsi-ls", f"iscsi://{RIGHT}{address}/").stdout
    assert run("iscsi-inq", f"iscsi://{address}/{HIDDEN}/0").returncode != 0
