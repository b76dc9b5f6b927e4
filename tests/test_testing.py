"""The target for other people's tests: what its tables say, and its life with real processes."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli

from iscsid import testing
from iscsid.errors import InitiatorError
from iscsid.testing import TestServerError, TestTarget


def test_only_lun_is_a_ram_disk_by_default(tmp_path: Path) -> None:
    assert TestTarget(tmp_path).luns == [{"lun": 0, "backend": "ram", "size": "64 MiB"}]


def test_file_disks_get_files_in_the_folder(tmp_path: Path) -> None:
    target = TestTarget(tmp_path, luns=[{"backend": "file"}, {"backend": "file", "path": "x", "size": 512}, {}])
    assert [target.path(lun) for lun in (0, 1)] == [tmp_path / "lun0.img", tmp_path / "x"]
    with pytest.raises(LookupError):
        target.path(2)


def test_luns_and_keys_of_the_only_one_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either luns or readonly, size"):
        TestTarget(tmp_path, luns=[{}], size="1 MiB", readonly=True)


def test_url_has_user_and_secret(tmp_path: Path) -> None:
    assert TestTarget(tmp_path, chap=("iqn:me", "s" * 12)).url(3) == (
        f"iscsi://iqn%3Ame%{'s' * 12}@127.0.0.1:0/{testing.NAME}/3"
    )


@pytest.mark.parametrize(
    "document",
    [
        {"server": {"portals": ["a"], "n": 1, "f": 0.5, "yes": True}},
        {"target": [{"name": "x", "lun": [{"lun": 0, "layers": [{"layer": "é\n\"'"}]}]}]},
        {"empty": [], "table": {}},
    ],
)
def test_document_is_written_as_toml(document: dict[str, Any]) -> None:
    assert tomli.loads(testing._toml(document)) == document


def test_value_that_no_configuration_holds_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing that a configuration can hold"):
        testing._toml({"a": None})


@pytest.mark.process
def test_target_serves_until_it_is_closed(tmp_path: Path) -> None:
    with TestTarget(tmp_path / "t", backend="file", size="1 MiB", workers=2) as target:
        assert target.port
        with target.disk() as disk:
            disk.write(512, b"x" * 512)
            (session,) = target.sessions()
            assert session["target"] == target.name
        (server,) = (child for child in psutil.Process().children() if "iscsid" in child.cmdline())
        family = [server, *server.children(recursive=True)]
        assert len(family) >= 3
    assert not any(process.is_running() for process in family)
    assert target.path().read_bytes()[512:1024] == b"x" * 512


@pytest.mark.process
def test_target_has_its_port_and_its_data_again_after_a_kill(tmp_path: Path) -> None:
    with TestTarget(tmp_path, backend="file", size="1 MiB") as target:
        port = target.port
        with target.disk() as disk:
            disk.write(0, b"y" * 512)
            target.kill()
            target.start()
            assert target.port == port
            assert disk.read(0, 512) == b"y" * 512


@pytest.mark.process
def test_port_is_nobody_else_s_while_the_target_is_down(tmp_path: Path) -> None:
    with TestTarget(tmp_path, size="1 MiB") as target:
        target.kill()
        with contextlib.ExitStack() as stack:
            for _ in range(2000):
                taken = stack.enter_context(socket.socket())
                taken.bind(("127.0.0.1", 0))
                assert taken.getsockname()[1] != target.port
        target.start()
        assert target.sessions() == []


@pytest.mark.process
def test_target_needs_its_secret(tmp_path: Path) -> None:
    with TestTarget(tmp_path, chap=("me", "a secret of mine"), size="1 MiB") as target:
        with target.disk() as disk:
            assert disk.size == 1 << 20
        target._chap = ("me", "another secret..")
        with pytest.raises(InitiatorError):
            target.disk()


@pytest.mark.process
def test_target_that_cannot_start_says_why(tmp_path: Path) -> None:
    target = TestTarget(tmp_path, backend="flie")
    with pytest.raises(TestServerError, match='did you mean "file"'):
        target.start()
    target.close()


@pytest.mark.process
def test_server_that_ended_badly_is_told(tmp_path: Path) -> None:
    target = TestTarget(tmp_path, size="1 MiB").start()
    assert target._process is not None
    target._process.send_signal(signal.SIGKILL)
    target._process.wait()
    with pytest.raises(TestServerError, match="ended with -9"):
        target.close()
