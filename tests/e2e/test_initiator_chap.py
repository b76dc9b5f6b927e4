"""The initiator library proves itself to a real server, and has the server prove itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_peers import running
from e2e_server import TARGET, Server

from iscsid.errors import ConnectionFailed, LoginRefused
from iscsid.initiator import Credentials, discover, open_disk

ACCOUNTS = """
[target.auth]
chap = [{ user = "joe", secret = "secretsecret1" }]
mutual = { user = "disk", secret = "othersecret12" }

[discovery.auth]
chap = [{ user = "ann", secret = "secretsecret2" }]
"""


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[str]:
    server = Server(tmp_path, [{"backend": "ram", "size": "8 MiB"}])
    server.config.write_text(server.config.read_text() + ACCOUNTS)
    server.start()
    try:
        yield server.portal()
    finally:
        server.finish()


def test_who_proves_himself_is_let_in_and_nobody_else(portal: str) -> None:
    unit = f"{portal}/{TARGET}/0"
    mutual = "?target_user=disk&target_password="
    for url in (f"joe%secretsecret1@{unit}", f"joe%secretsecret1@{unit}{mutual}othersecret12"):
        with open_disk(f"iscsi://{url}") as disk:
            assert disk.read(0, 512) == bytes(512)
    with pytest.raises(LoginRefused):
        open_disk(f"iscsi://joe%wrongwrong123@{unit}")
    for url in (unit, f"joe%secretsecret1@{unit}{mutual}wrongwrong123"):
        with pytest.raises(ConnectionFailed):
            open_disk(f"iscsi://{url}")


CHAP, OWN = ("joe", b"secretsecret1"), ("disk", b"othersecret12")  # those of peers
JOE, DISK = Credentials(*CHAP), Credentials(*CHAP, *OWN)
WRONG = Credentials(CHAP[0], b"wrongwrong123")
IMPOSTOR = Credentials(*CHAP, OWN[0], b"wrongwrong123")


@pytest.mark.parametrize(
    ("name", "chap", "welcome", "refused"),
    [
        pytest.param("tgt", True, [JOE, DISK], [None, WRONG], marks=pytest.mark.judge("tgtd")),
        pytest.param("istgt", "CHAP", [JOE, DISK], [None, WRONG], marks=pytest.mark.judge("istgt")),
        pytest.param("istgt", "CHAP Mutual", [DISK], [None, WRONG, JOE], marks=pytest.mark.judge("istgt")),
    ],
)
def test_other_targets_are_proved_to_and_have_to_prove_themselves(
    tmp_path: Path, name: str, chap: bool | str, welcome: list[Credentials], refused: list[Credentials | None]
) -> None:
    with running(name, tmp_path, 8 << 20, chap=chap) as url:
        for credentials in welcome:
            with open_disk(url, credentials=credentials) as disk:
                disk.write(0, b"x" * 4096)
                assert disk.read(0, 4096) == b"x" * 4096
        for credentials in refused:
            with pytest.raises(ConnectionFailed):
                open_disk(url, credentials=credentials)
        with pytest.raises(ConnectionFailed, match="another secret"):
            open_disk(url, credentials=IMPOSTOR)


def test_discovery_has_an_account_of_its_own(portal: str) -> None:
    assert discover(portal, credentials=Credentials("ann", b"secretsecret2"))[0].name == TARGET
    assert discover(f"iscsi://ann%secretsecret2@{portal}")[0].name == TARGET
    with pytest.raises(ConnectionFailed):
        discover(portal)
