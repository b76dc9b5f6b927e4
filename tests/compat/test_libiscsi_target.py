"""libiscsi(3), the target half: each function, each variable, each return value of the reference.

Whoever listens forks; so each server here lives in a process of its own, which tells what its calls returned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iscsid.compat.libiscsi_target import (
    DEFAULTS,
    State,
    iscsi_target_getvar,
    iscsi_target_listen,
    iscsi_target_reconfigure,
    iscsi_target_set_defaults,
    iscsi_target_setvar,
    iscsi_target_shutdown,
    iscsi_target_start,
    iscsi_target_t,
    iscsi_target_write_pidfile,
)

Make = Callable[..., iscsi_target_t]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A handle with a targets file in the test's own folder; keywords are variables, "_" for blanks."""

    def make_one(text: str = "extent0 @/disk 0 100MB\ntarget0 rw extent0 0.0.0.0/0\n", **values: str) -> iscsi_target_t:
        (tmp_path / "targets").write_text(text.replace("@", str(tmp_path)))
        tgt = iscsi_target_t()
        assert iscsi_target_set_defaults(tgt) == 1
        for name, value in {
            "configfile": str(tmp_path / "targets"),
            "auths_file": str(tmp_path / "auths"),
            "runtime_directory": str(tmp_path / "run"),
            "state_directory": str(tmp_path / "state"),
            **values,
        }.items():
            assert iscsi_target_setvar(tgt, name.replace("_", " "), value) == 1
        return tgt

    return make_one


# -- variables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("iqn", "iqn.1994-04.org.netbsd.iscsi-target"),
        ("target port", "3260"),
        ("address family", "unspec"),
        ("max sessions", "16"),
        ("configfile", "/etc/iscsi/targets"),
        ("blocklen", "512"),
        ("debug", None),
        ("target address", None),
    ],
)
def test_variable_has_its_default(name: str, default: str | None) -> None:
    tgt = iscsi_target_t()
    assert iscsi_target_set_defaults(tgt) == 1
    assert iscsi_target_getvar(tgt, name) == default
    assert len(DEFAULTS) == 6


def spec_of(tgt: iscsi_target_t) -> Any:
    assert iscsi_target_start(tgt) == 0
    assert tgt._loaded is not None
    return tgt._loaded.spec


@pytest.mark.parametrize(
    ("family", "hosts"), [("unspec", ["0.0.0.0", "::"]), ("4", ["0.0.0.0"]), ("6", ["::"]), ("whatever", ["::"])]
)
def test_address_family_chooses_the_sockets(make: Make, family: str, hosts: list[str]) -> None:
    spec = spec_of(make(address_family=family, target_port="13260"))
    assert [portal.host for portal in spec.portals] == hosts
    assert {portal.port for portal in spec.portals} == {13260}


def test_iqn_is_the_beginning_of_names_and_max_sessions_a_limit(make: Make) -> None:
    spec = spec_of(make(iqn="iqn.2026-11.org.example", max_sessions="7", workers="3"))
    assert spec.targets[0].name == "iqn.2026-11.org.example:target0"
    assert (spec.max_sessions, spec.workers) == (7, 3)
    assert spec.targets[0].luns[0].vendor == "NetBSD"
    assert spec.targets[0].luns[0].product == "NetBSD iSCSI"


@pytest.mark.parametrize("length", ["512", "1024", "2048", "4096", "8192"])
def test_blocklen_is_that_of_every_target(make: Make, length: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_of(make(blocklen=length)).targets[0].luns[0].block_size == int(length)
    assert f"({(100 << 20) // int(length)} blocks, {length} bytes/block)" in capsys.readouterr().out


@pytest.mark.parametrize("length", ["0", "513", "16384", "many"])
def test_other_blocklen_fails_the_start(make: Make, length: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert iscsi_target_start(make(blocklen=length)) == -1
    words = f"Invalid block len {length}. Choose one of 512, 1024, 2048, 4096, or 8192.\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("name", "value"), [("target_port", "x"), ("target_port", "70000"), ("max_sessions", "0"), ("max_sessions", "-1")]
)
def test_number_that_is_none_fails_the_start(
    make: Make, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iscsi_target_start(make(**{name: value})) == -1
    assert f"variable `{name.replace('_', ' ')}'" in capsys.readouterr().err


def test_auths_file_makes_chap_required_and_auth_type_none_lets_it_be(make: Make, tmp_path: Path) -> None:
    (tmp_path / "auths").write_text("nulltest:none:\nme:CHAP:secret\n")
    spec = spec_of(make())
    assert spec.targets[0].auth.source == "chap"
    assert spec.discovery_auth is None
    assert spec_of(make(auth_type="none")).targets[0].auth is None


def test_auth_type_chap_without_users_fails_the_start(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert iscsi_target_start(make(auth_type="chap")) == -1
    assert "Please add an entry" in capsys.readouterr().err


# -- start -------------------------------------------------------------------------------------------------------------


def test_start_prints_what_the_original_printed(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tgt = make()
    assert iscsi_target_start(tgt) == 0
    assert tgt.state is State.INITIALIZED
    assert capsys.readouterr().out == textwrap.dedent(f"""\
        Reading configuration from `{tmp_path}/targets'
        target0:rw:0.0.0.0/0
        \textent0:{tmp_path}/disk:0:104857600
        DISK: 1 logical unit (204800 blocks, 512 bytes/block), type iscsi fs
        DISK: LUN 0: 100 MB disk storage for "target0"
        TARGET: iSCSI Qualified Name (IQN) is iqn.1994-04.org.netbsd.iscsi-target
        """)
    assert (tmp_path / "disk").stat().st_size == 100 << 20


def test_start_tells_devices_and_read_only_ones(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").write_bytes(bytes(3 << 20))
    text = (
        "extent0 @/a 0 1MB\nextent1 @/b 0 1MB\nextent2 @/c 0 size\ndevice0 RAID1 extent0 extent1\n"
        "device1 RAID0 device0\ntarget0 rw device1 10.4/16\nlun7 ro extent2 any\n"
    )
    assert iscsi_target_start(make(text)) == 0
    out = capsys.readouterr().out
    assert f"target0:rw:10.4/16\n\tdevice1:RAID0\n\t\tdevice0:RAID1\n\t\t\textent0:{tmp_path}/a:0:1048576\n" in out
    assert f"lun7:ro:any\n\textent2:{tmp_path}/c:0:{3 << 20}\n" in out
    assert 'DISK: LUN 0: 3 MB readonly disk storage for "lun7"\n' in out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("extent0 @/a 0 many\ntarget0 rw extent0 any\n", "1: Error: extent `extent0' has length `many', which is no"),
        ("\ntarget0 rw extent0 any\n", "2: Error: no extent or device found for `target0'\n"),
        ("extent0 @/a 0 1MB\n\ntarget0=foo rw extent0 any\n", "3: Error: target `target0': "),
        ("extent0 @/a 0 1MB\ntarget0 ro extent0 any\n", "2: Error: target `target0': path: "),
        ("extent0 @/no/a 0 1MB\ntarget0 rw extent0 any\n", "2: Error: target `target0': path: there is no folder"),
        ("extent0 @/a 0 1MB\nextent0 @/b 0 1MB\n", "2: Error: attempt to re-define extent `extent0'\n"),
    ],
)
def test_bad_line_is_told_with_its_number(
    make: Make, tmp_path: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tgt = make(text)
    assert iscsi_target_start(tgt) == -1
    assert tgt.state is State.SHUT_DOWN
    assert f"{tmp_path}/targets:{line}" in capsys.readouterr().err


def test_bad_line_beside_a_good_target_stops_nothing(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert iscsi_target_start(make("extent0 @/a 0 1MB\ntarget0 rw extent0 any\ntarget1 rw nothing any\n")) == 0
    assert ":3: Error: no extent or device found for `target1'" in capsys.readouterr().err


def test_start_without_a_file_or_a_target_fails(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "no")
    assert iscsi_target_start(make(configfile=missing)) == -1
    err = capsys.readouterr().err
    assert f"can't open `{missing}' `r' (No such file or directory)\nError: can't open `{missing}'\n" in err
    assert iscsi_target_start(make("# nothing\n")) == -1
    assert capsys.readouterr().err == "No targets to initialise\n"


def test_second_start_fails_and_start_after_shutdown_does_not(make: Make) -> None:
    tgt = make()
    assert iscsi_target_start(tgt) == 0
    assert iscsi_target_start(tgt) == -1
    assert iscsi_target_shutdown(tgt) == 0
    assert iscsi_target_start(tgt) == 0


# -- the rest of life --------------------------------------------------------------------------------------------------


def test_what_comes_before_start_fails(make: Make) -> None:
    tgt = make()
    assert iscsi_target_listen(tgt) == -1
    assert iscsi_target_shutdown(tgt) == -1
    assert iscsi_target_reconfigure(tgt) == -1


def test_reconfigure_before_listen_counts_for_it(make: Make, tmp_path: Path) -> None:
    tgt = make()
    assert iscsi_target_start(tgt) == 0
    (tmp_path / "targets").write_text(f"extent1 {tmp_path}/b 0 1MB\ntarget1 rw extent1 any\n")
    assert iscsi_target_reconfigure(tgt) == 1
    assert tgt._loaded is not None
    assert [target.name.rpartition(":")[2] for target in tgt._loaded.spec.targets] == ["target1"]
    (tmp_path / "targets").write_text("nothing\n")
    assert iscsi_target_reconfigure(tgt) == -1
    (tmp_path / "targets").unlink()
    assert iscsi_target_reconfigure(tgt) == 0
    assert [target.name.rpartition(":")[2] for target in tgt._loaded.spec.targets] == ["target1"]


def test_pidfile_holds_the_number_of_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pid"
    path.write_text("something longer than a number\n")
    iscsi_target_write_pidfile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    missing = str(tmp_path / "no" / "pid")
    iscsi_target_write_pidfile(missing)
    assert capsys.readouterr().err == f'Couldn\'t create pid file "{missing}": No such file or directory\n'


def test_pidfile_of_none_is_the_default_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iscsid.compat import libiscsi_target

    assert libiscsi_target.PIDFILE == "/var/run/iscsi-target.pid"
    monkeypatch.setattr(libiscsi_target, "PIDFILE", str(tmp_path / "pid"))
    iscsi_target_write_pidfile(None)
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"


PROGRAM = """
import json, os, signal, sys, threading
from iscsid.compat.libiscsi import *

folder, how = sys.argv[1:]
tgt = iscsi_target_t()
told = {"set_defaults": iscsi_target_set_defaults(tgt)}
for name, value in {
    "configfile": f"{folder}/targets", "auths file": f"{folder}/auths", "runtime directory": f"{folder}/run",
    "state directory": f"{folder}/state", "target port": "0", "address family": "4", "workers": "1",
}.items():
    iscsi_target_setvar(tgt, name, value)
told["start"] = iscsi_target_start(tgt)

def ask():
    import subprocess
    address = iscsi_target_getvar(tgt, "target address")
    host = "127.0.0.1:" + address.partition(",")[0].rpartition(":")[2]
    told["discovery"] = subprocess.run(
        [sys.executable, "-c", DISCOVER, host], capture_output=True, text=True, timeout=20).stdout.strip()
    told["address"] = iscsi_target_getvar(tgt, "target address")

DISCOVER = '''
import sys
from iscsid.initiator import discover, open_disk
for target in discover(sys.argv[1]):
    with open_disk(f"iscsi://{sys.argv[1]}/{target.name}/0") as disk:
        disk.write(512, b"served" * 256)
        disk.flush()
        print(target.name, disk.size, disk.read(512, 512)[:6].decode())
'''

def stop():
    ask()
    told["shutdown"] = iscsi_target_shutdown(tgt)
    told["again"] = iscsi_target_shutdown(tgt)

def handler(*_):
    told["shutdown"] = iscsi_target_shutdown(tgt)

signal.signal(signal.SIGUSR1, handler)
if how == "main stops":
    def listen():
        told["listen"] = iscsi_target_listen(tgt)
    thread = threading.Thread(target=listen)
    thread.start()
    while not tgt.listener_listening and thread.is_alive():
        thread.join(0.02)
    stop()
    thread.join()
else:
    stopper = threading.Thread(target=stop)
    ready = {
        "thread stops": stopper.start,
        "handler stops": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    }[how]
    told["listen"] = iscsi_target_listen(tgt, started=ready)
    if how == "thread stops":
        stopper.join()
told["state"] = tgt.state
print(json.dumps(told))
"""


@pytest.mark.process
@pytest.mark.parametrize("how", ["main stops", "thread stops", "handler stops"])
def test_shutdown_ends_listen_from_threads_and_handlers(make: Make, tmp_path: Path, how: str) -> None:
    make()
    argv = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path), how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["set_defaults"], told["start"], told["shutdown"], told["listen"]) == (1, 0, 0, 0), done.stderr
    assert told["state"] == State.SHUT_DOWN
    if how != "handler stops":
        assert told["again"] == -1
        assert told["discovery"] == f"iqn.1994-04.org.netbsd.iscsi-target:target0 {100 << 20} served"
        assert (tmp_path / "disk").read_bytes()[512:2048] == b"served" * 256
        assert told["address"].startswith("127.0.0.1:")
        assert told["address"].endswith(",1")
        assert "> iSCSI Discovery login  successful from " in done.stdout
        assert "< iSCSI Discovery logout successful from " in done.stdout


@pytest.mark.process
def test_listen_on_a_port_that_is_taken_fails(make: Make, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        make()
        program = PROGRAM.replace('"target port": "0"', f'"target port": "{taken.getsockname()[1]}"')
        argv = [sys.executable, "-c", program, str(tmp_path), "handler stops"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout.splitlines()[-1])["listen"] == -1
    assert "Address already in use" in done.stderr
