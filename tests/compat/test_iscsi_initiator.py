"""The command line of iscsi-initiator(8), with a host and a FUSE that are not there."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click import UsageError
from click.testing import CliRunner, Result

from iscsid.compat import iscsi_initiator
from iscsid.compat.initiator_settings import Settings
from iscsid.compat.initiator_storage import Storage
from iscsid.compat.initiator_tree import MountedTarget, Unit
from iscsid.compat.iscsi_initiator import fuse_options, main, spread
from iscsid.errors import ConnectionFailed, InitiatorError
from iscsid.initiator import TargetPortal, TargetRecord

ONE, TWO = "iqn.2026-11.org.example:one", "iqn.2026-11.org.example:two"
RECORDS = [
    TargetRecord(ONE, (TargetPortal("192.0.2.1", 3260, 1),)),
    TargetRecord(TWO, (TargetPortal("192.0.2.1", 3260, 1), TargetPortal("2001:db8::1", 3261, 2))),
]


class World:
    """What the command sees: the settings it asked with, what it mounted, and how."""

    def __init__(self) -> None:
        self.records: list[TargetRecord] | InitiatorError = RECORDS
        self.settings: list[Settings] = []
        self.debug: list[str] = []
        self.mounts: list[dict[str, Any]] = []
        self.ready = 0
        self.fuse_ends: Exception | None = None
        self.empty = False

    def find_targets(self, settings: Settings) -> list[TargetRecord]:
        self.settings.append(settings)
        if isinstance(self.records, InitiatorError):
            raise self.records
        return self.records

    @contextmanager
    def targets(self, settings: Settings) -> Iterator[list[MountedTarget]]:
        self.settings.append(settings)
        storage = cast(Storage, SimpleNamespace(size=512, block_size=512, flush=lambda always: None))
        unit = Unit(0, storage, "V", "P", "1", "")
        yield [] if self.empty else [MountedTarget(ONE, settings.hostname, "192.0.2.1", (unit,))]

    def fuse(self, operations: Any, mount_point: str, **options: Any) -> None:
        self.mounts.append({"at": mount_point, "mode": operations.getattr("/one/storage")["st_mode"], **options})
        operations.init("/")
        operations.destroy("/")
        if self.fuse_ends is not None:
            raise self.fuse_ends

    def begin(self) -> Any:
        return SimpleNamespace(ready=self._ready)

    def _ready(self) -> None:
        self.ready += 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name, replacement in {
        "find_targets": world.find_targets,
        "_targets": world.targets,
        "_fuse": lambda: world.fuse,
        "_threads": dict,
        "debug": world.debug.append,
    }.items():
        monkeypatch.setattr(iscsi_initiator, name, replacement)
    monkeypatch.setattr(iscsi_initiator.background, "begin", world.begin)
    return world


Run = Callable[..., Result]


@pytest.fixture
def run(world: World) -> Run:
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words], prog_name="iscsi-initiator")


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("-4Dh host", "-4 -D -h host"),
        ("-Dhhost -p3260", "-D -h host -p 3260"),
        ("-v net /mnt -f", "-v net /mnt -f"),
        ("-v /mnt", "-v all /mnt"),
        ("-vnet /mnt", "-v net /mnt"),
        ("-vD /mnt", "-v all -D /mnt"),
        ("-Dv", "-D -v all"),
        ("-Dv scsi", "-D -v scsi"),
        ("--auths x -v", "--auths x -v all"),
        ("--auths=x /mnt -v", "--auths=x /mnt -v"),
        ("-4 -- -v", "-4 -- -v"),
        ("-u", "-u"),
    ],
)
def test_options_are_taken_apart_as_getopt_does(words: str, taken: str) -> None:
    assert spread(words.split()) == taken.split()


def test_version_is_the_original_s(run: Run) -> None:
    result = run("-V")
    assert result.exit_code == 0
    assert result.output == '"netbsd-iscsi" 20111006\nPlease send all bug reports to Alistair Crooks <agc@NetBSD.org>\n'


def test_discovery_lists_targets_as_the_original_did(run: Run) -> None:
    result = run("-D", "-h", "store.example")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "Targets available from host store.example:",
        f"{ONE} at 192.0.2.1:3260,1",
        f"{TWO} at 192.0.2.1:3260,1",
        f"{TWO} at [2001:db8::1]:3261,2",
    ]


def test_discovery_of_one_target_or_of_none(run: Run, world: World) -> None:
    assert run("-D", "-t", "0").output.splitlines()[1:] == [f"{ONE} at 192.0.2.1:3260,1"]
    result = run("-D", "-t", "2")
    assert result.exit_code == 1
    assert "there is no target 2" in result.output
    world.records = []
    result = run("-D")
    assert (result.exit_code, result.output) == (0, "Targets available from host localhost:\n")


def test_discovery_that_fails_says_so_and_ends_with_1(run: Run, world: World) -> None:
    world.records = ConnectionFailed("store.example:3260: Connection refused")
    result = run("-D", "-h", "store.example")
    assert result.exit_code == 1
    assert "initiator_discover() in discover failed\n" in result.output
    assert "iscsi-initiator: store.example:3260: Connection refused\n" in result.output


def test_every_option_has_its_effect(run: Run, world: World, tmp_path: Path) -> None:
    auths = tmp_path / "auths"
    auths.write_text("joe:chap:secretsecret1\ndisk:chap:othersecret22\n")
    assert run("-D").exit_code == 0
    default = world.settings[-1]
    assert (default.hostname, default.port, default.family) == ("localhost", 3260, socket.AF_UNSPEC)
    words = "-6 -a chap -d header -h host -p 3261 -t 1 -v net --timeout 7 --initiator-name iqn.2026-11.org.example:me"
    assert run("-D", *words.split(), "-u", "joe", "--auths", auths, "--target-user", "disk").exit_code == 0
    settings = world.settings[-1]
    assert (settings.hostname, settings.port, settings.family) == ("host", 3261, socket.AF_INET6)
    assert settings.instance == 1
    assert settings.options["header_digest"] is True
    assert "data_digest" not in settings.options
    assert settings.options["timeout"] == 7
    assert settings.options["initiator_name"] == "iqn.2026-11.org.example:me"
    credentials = settings.options["credentials"]
    assert (credentials.user, credentials.target_user) == ("joe", "disk")
    assert world.debug[-1] == "net"
    assert run("-4", "-D").exit_code == 0
    assert world.settings[-1].family == socket.AF_INET


def test_a_user_alone_implies_chap(run: Run, world: World, tmp_path: Path) -> None:
    auths = tmp_path / "auths"
    auths.write_text("joe:chap:secretsecret1\n")
    assert run("-D", "-u", "joe", "--auths", auths).exit_code == 0
    assert world.settings[-1].options["credentials"].secret == b"secretsecret1"
    result = run("-D", "-u", "ann", "--auths", auths)
    assert result.exit_code == 1
    assert "`ann'" in result.output


@pytest.mark.parametrize("kind", ["chap", "kerberos", "srp"])
def test_authentication_without_a_user_is_refused(run: Run, kind: str) -> None:
    result = run("-D", "-a", kind)
    assert result.exit_code == 1
    assert "user must be specified with -u if using CHAP authentication" in result.output


def test_unknown_option_is_told_and_passed_over(run: Run, world: World) -> None:
    result = run("-D", "-x")
    assert result.exit_code == 0
    assert "iscsi-initiator: unknown option `x'" in result.output
    assert "Targets available" in result.output


@pytest.mark.parametrize(("option", "kind"), [("-b", 0o060644), ("-c", 0o020644), ("-f", 0o100644)])
def test_storage_is_mounted_as_the_last_of_b_c_f_says(
    run: Run, world: World, tmp_path: Path, option: str, kind: int
) -> None:
    assert run("-b", "-c", option, tmp_path).exit_code == 0
    assert world.mounts[-1]["mode"] == kind


def test_mount_is_of_all_targets_and_in_the_background(run: Run, world: World, tmp_path: Path) -> None:
    result = run("-h", "store.example", tmp_path)
    assert (result.exit_code, result.output) == (0, "")
    mount = world.mounts[-1]
    assert mount["at"] == str(tmp_path)
    assert mount["foreground"] is True  # libfuse need not become a daemon: we are one
    assert (mount["fsname"], mount["subtype"]) == ("iscsi://store.example:3260", "iscsi-initiator")
    assert world.ready == 1


def test_what_follows_the_mount_point_goes_to_fuse(run: Run, world: World, tmp_path: Path) -> None:
    assert run(tmp_path, "-f", "-s", "-o", "allow_other,uid=5", "-oro").exit_code == 0
    mount = world.mounts[-1]
    assert (mount["nothreads"], mount["allow_other"], mount["uid"], mount["ro"]) == (True, True, "5", True)
    assert world.ready == 0  # in the foreground
    assert run(tmp_path, "-x").exit_code == 2
    assert run(tmp_path, "-o").exit_code == 2
    assert len(world.mounts) == 1


def test_fuse_options_that_are_none_are_refused() -> None:
    assert fuse_options([]) == {}
    assert fuse_options(["-d"]) == {"debug": True}
    for words in (["-o"], ["-x"], ["word"]):
        with pytest.raises(UsageError):
            fuse_options(words)


def test_mount_that_cannot_be_ends_with_its_code(run: Run, world: World, tmp_path: Path) -> None:
    assert run().exit_code == 2
    result = run(tmp_path / "nothing")
    assert result.exit_code == 1
    assert "not a directory" in result.output
    world.empty = True
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "no disk" in result.output


def test_fuse_that_a_signal_ends_is_a_success_and_other_ends_are_not(run: Run, world: World, tmp_path: Path) -> None:
    world.fuse_ends = RuntimeError(8)
    assert run(tmp_path).exit_code == 0
    world.fuse_ends = RuntimeError(4)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "FUSE ended with 4" in result.output


def test_a_missing_libfuse_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mfusepy", None)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "apt install fuse3" in result.output
