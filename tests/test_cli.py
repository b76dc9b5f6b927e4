"""The commands: what they print, where, and the exit code that a script can believe."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from iscsid import __version__, cli, config, values
from iscsid.cli import EXITS, Exit
from iscsid.daemon import supervisor
from iscsid.daemon.control import SOCKET_NAME, ControlError, RequestRefused
from iscsid.daemon.errors import AlreadyRunning, StartError
from iscsid.daemon.health import Book
from iscsid.daemon.supervisor import Started
from iscsid.errors import BlockError, ConfigError, Fault, PluginError
from iscsid.scsi.removable import Medium
from iscsid.specs import PortalSpec, ServerSpec

GOOD = """
[server]
workers = 1
[[target]]
name = "iqn.2026-11.org.iscsid:disk0"
[[target.lun]]
lun = 0
backend = "ram"
size = "64 MiB"
[[target.lun]]
lun = 1
backend = "ram"
size = "1536 KiB"
readonly = true
block_size = 4096
[[target]]
name = "iqn.2026-11.org.iscsid:empty"
"""

STATUS: dict[str, Any] = {
    "version": __version__,
    "pid": 4711,
    "phase": "serving",
    "uptime": 3725.5,
    "portals": ["127.0.0.1:3260", "[::1]:3260"],
    "targets": [
        {
            "name": "iqn.2026-11.org.iscsid:disk0",
            "luns": [{"lun": 0, "backend": "file", "readonly": False, "health": Book().tell(("", 0), Medium(), 0.0)}],
        },
        {"name": "iqn.2026-11.org.iscsid:empty", "luns": []},
    ],
    "sessions": {"login": 0, "open": 2, "closing": 1},
    "callers": 3,
    "refused": {"not iSCSI": 5},
    "workers": [
        {
            "index": 0, "replaced": 2, "sessions": 3, "state": "ready", "pid": 4712, "connections": 3,
            "commands": 1234567, "read_bytes": 5 << 30, "written_bytes": 0, "busy": 0.25, "cpu_percent": 97.6,
            "rss": 31 << 20, "threads": 4,
        },
        {"index": 1, "replaced": 0, "sessions": 0, "state": "dead", "pid": None},
    ],
}  # fmt: skip

SESSION: dict[str, Any] = {
    "state": "open", "worker": 1, "seconds": 90.0, "initiator": "iqn.1993-08.org.debian:01:abc", "isid": "00023d000000",
    "target": "iqn.2026-11.org.iscsid:disk0", "peer": "192.0.2.7:50000", "portal": "192.0.2.1:3260",
    "initiator_alias": "", "tsih": 12, "commands": 42, "read_bytes": 4096, "written_bytes": 1 << 20,
}  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A configuration file that is fine."""
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture(autouse=True)
def user_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has a runtime folder of its own, its name as short as that of a socket has to be, and no systemd."""
    with tempfile.TemporaryDirectory(prefix="iscsid-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        yield Path(folder)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the supervisor; what it was called with, and what it does: ``portals`` (None: never ready), ``code``."""
    call: dict[str, Any] = {"portals": None, "code": 0}

    def serve(
        spec: ServerSpec,
        plugins: Any,
        *,
        notify: Callable[[str], None],
        started: Callable[[Any], None],
        reread: Callable[[], Any] | None,
    ) -> int:
        call.update(spec=spec, plugins=plugins, reread=reread)
        if call["portals"] is not None:
            notify("READY=1")
            started(Started(call["portals"], (1, 2)))
        if isinstance(call["code"], Exception):
            raise call["code"]
        return int(call["code"])

    monkeypatch.setattr(supervisor, "serve", serve)
    return call


# -- the command as such -----------------------------------------------------------------------------------------------


def test_version_is_that_of_the_package() -> None:
    result = run("--version")
    assert (result.exit_code, result.output.strip()) == (Exit.OK, f"iscsid, version {__version__}")


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["serve", "-h"], ["status", "-h"]])
def test_help_is_given_by_either_option(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == Exit.OK
    assert "Usage:" in result.output


def test_every_exit_code_stands_in_the_help_and_in_the_manual() -> None:
    manual = (Path(__file__).resolve().parent.parent / "docs/configuration.md").read_text()
    text = " ".join(run("--help").output.split())
    for code in Exit:
        assert re.search(rf"\b{code.value} [a-z]", text), code
        assert f"| {code.value} |" in manual, code


@pytest.mark.parametrize("arguments", [["serv"], ["serve", "--port", "1"], ["check"], ["status", "x"]])
def test_bad_command_line_exits_with_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x.toml", []), Exit.CONFIG),
        (StartError("no"), Exit.START),
        (AlreadyRunning("/run/x", 1), Exit.START),
        (ControlError("no"), Exit.NO_SERVER),
        (RequestRefused("no"), Exit.FAILED),
        (PluginError("tape", "no"), Exit.FAILED),
        (BlockError(Fault.NO_MEDIUM), Exit.FAILED),
    ],
)
def test_every_error_of_ours_has_its_exit_code_and_no_traceback(
    error: Exception, code: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(cli.config, "load", fail)
    result = run("check", "x.toml")
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_exit_table_ends_with_the_root_of_the_tree() -> None:
    *kinds, root = EXITS
    assert all(issubclass(kind, root) and kind is not root for kind in kinds)


def test_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "iscsid", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    assert result.stdout.strip() == f"iscsid, version {__version__}"


def test_commands_that_only_ask_do_not_import_the_server() -> None:
    code = "import sys, iscsid.cli; print('iscsid.daemon.supervisor' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_of_a_good_file_tells_what_it_serves(good: str) -> None:
    result = run("check", good)
    assert result.exit_code == Exit.OK
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "iqn.2026-11.org.iscsid:disk0 0 ram 64 MiB" in lines
    assert "iqn.2026-11.org.iscsid:disk0 1 ram 1.5 MiB read-only, blocks of 4096" in lines
    assert "iqn.2026-11.org.iscsid:empty no logical unit" in lines
    assert "on 0.0.0.0:3260, [::]:3260" in lines
    assert lines[-1] == f"{good}: targets: 2, logical units: 2; nothing is wrong"


def test_check_of_a_bad_file_tells_everything_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[server]\nworker = 1\nlog_level = 'loud'\n")
    result = run("check", str(path))
    assert result.exit_code == Exit.CONFIG
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f'{path}: server.worker: unknown key (did you mean "workers"?)',
        f"{path}: server.log_level: must be one of debug, info, warning, error, not 'loud'",
        "2 problems",
    ]


def test_check_warns_of_a_plugin_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "tape.py").write_text("raise ValueError('no drive')")
    path = tmp_path / "x.toml"
    path.write_text(f'[server]\nplugin_dirs = ["{tmp_path}"]\n')
    result = run("check", str(path))
    assert result.exit_code == Exit.OK
    assert (
        f"iscsid: warning: plugin tape: {tmp_path / 'tape.py'}: ValueError: no drive (tape.py, line 1)" in result.stderr
    )


# -- serve -------------------------------------------------------------------------------------------------------------


def test_serve_without_a_file_serves_the_demo_disk_and_tells_how_to_use_it(
    served: dict[str, Any], user_folder: Path
) -> None:
    served["portals"] = (PortalSpec("127.0.0.1", 3260),)
    result = run("serve")
    assert result.exit_code == Exit.OK
    spec = served["spec"]
    assert spec.portals == (PortalSpec("127.0.0.1", 3260),)
    assert [(target.name, target.luns[0].backend) for target in spec.targets] == [(cli.DEMO_TARGET, "ram")]
    assert spec.targets[0].luns[0].options == {"size": 1 << 30}
    assert Path(spec.runtime_dir).parent == user_folder
    assert not served["plugins"].validate("ram", spec.targets[0].luns[0].options)
    for line in (
        f"iscsid {__version__} serves with 2 worker processes",
        "  iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260",
        f"  iscsiadm -m node -T {cli.DEMO_TARGET} -p 127.0.0.1:3260 --login",
        f"  Connect-IscsiTarget -NodeAddress {cli.DEMO_TARGET}",
        "  iscsi-ls -s iscsi://127.0.0.1:3260",
        f"  qemu-img info iscsi://127.0.0.1:3260/{cli.DEMO_TARGET}/0",
        f"  iscsictl add target {cli.DEMO_TARGET},127.0.0.1:3260",
    ):
        assert line in result.output.splitlines()


def test_demo_is_what_a_configuration_could_say() -> None:
    spec, plugins = cli.demo()
    (target,) = spec.targets
    (lun,) = target.luns
    assert values.iscsi_name(target.name) == target.name
    assert values.folder(spec.runtime_dir) == spec.runtime_dir
    for key in ("serial", "vendor", "product"):
        assert config.LUN[key](getattr(lun, key)) == getattr(lun, key)
    assert set(plugins.backends) == {"ram"}


def test_serve_with_a_file_serves_what_it_says(served: dict[str, Any], good: str) -> None:
    served["portals"] = (PortalSpec("::", 40000),)
    result = run("serve", "-c", good)
    assert result.exit_code == Exit.OK
    assert served["spec"] == config.load(good)[0]
    assert "on [::]:40000" in result.output
    assert "iscsiadm" not in result.output  # nobody reads it in a journal


def test_serve_listens_where_the_command_line_says(served: dict[str, Any], good: str) -> None:
    run("serve", "-c", good, "-p", "127.0.0.1:0", "--portal", "[::1]:3261")
    assert served["spec"].portals == (PortalSpec("127.0.0.1", 0), PortalSpec("::1", 3261))
    assert served["spec"].targets == config.load(good)[0].targets
    assert served["reread"]()[0] == served["spec"]  # a reload listens there too


def test_serve_at_a_bad_portal_exits_with_usage(served: dict[str, Any]) -> None:
    result = run("serve", "-p", "127.0.0.1:99999")
    assert result.exit_code == Exit.USAGE
    assert "must be a number from 0 to 65,535" in result.stderr
    assert "spec" not in served


def test_serve_of_a_bad_file_never_starts(served: dict[str, Any], tmp_path: Path) -> None:
    assert run("serve", "-c", str(tmp_path / "none.toml")).exit_code == Exit.CONFIG
    assert "spec" not in served


@pytest.mark.parametrize(
    ("ready", "code", "expected"),
    [(True, 0, Exit.OK), (False, 0, Exit.OK), (True, 1, Exit.FAILED), (False, 1, Exit.START)],
)
def test_serve_tells_a_failed_start_from_a_failed_stop(
    served: dict[str, Any], good: str, ready: bool, code: int, expected: Exit
) -> None:
    served.update(portals=(PortalSpec("::1"),) if ready else None, code=code)
    assert run("serve", "-c", good).exit_code == expected


def test_serve_that_may_not_start_says_why(served: dict[str, Any], good: str) -> None:
    served["code"] = AlreadyRunning("/run/x/server.pid", 7)
    result = run("serve", "-c", good)
    assert result.exit_code == Exit.START
    assert result.stderr == "iscsid: a server is already running (pid 7): /run/x/server.pid is locked\n"


def test_serve_tells_systemd_when_it_was_asked_to(
    served: dict[str, Any], good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"\0iscsid-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:])
        notifiers: list[Any] = []
        make = cli.sdnotify.SystemdNotifier
        monkeypatch.setattr(cli.sdnotify, "SystemdNotifier", lambda: notifiers.append(make()) or notifiers[-1])
        served["portals"] = (PortalSpec("::1"),)
        assert run("serve", "-c", good).exit_code == Exit.OK
        assert systemd.recv(100) == b"READY=1"
        notifiers[0].socket.close()


def test_runtime_folder_of_the_demo_is_private(user_folder: Path) -> None:
    cli.demo()
    folder = user_folder / "iscsid-server-demo"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    cli.demo()  # and is taken again


def test_runtime_folder_without_xdg_is_in_tmp_under_the_users_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cli.user_runtime_dir() == tmp_path / f"iscsid-server-demo-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent/run")
    assert cli.user_runtime_dir().parent == tmp_path


def _a_file(folder: Path) -> None:
    folder.write_text("")


def _a_link(folder: Path) -> None:
    folder.symlink_to(folder.parent)


def _writable_by_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize("plant", [_a_file, _a_link, _writable_by_all])
def test_runtime_folder_that_somebody_planted_is_not_used(plant: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    plant(folder)
    with pytest.raises(StartError, match="planted"):
        cli.make_private(folder)


def test_runtime_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.os, "getuid", lambda: 12345)
    with pytest.raises(StartError, match="only this user"):
        cli.make_private(tmp_path / "x")


# -- how to connect ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("portal", "url", "host"),
    [
        ("192.0.2.1:3261", "iscsi://192.0.2.1:3261/", "-TargetPortalAddress 192.0.2.1 "),
        ("[2001:db8::1]:3260", "iscsi://[2001:db8::1]:3260/", "-TargetPortalAddress 2001:db8::1 "),
        ("0.0.0.0:3260", "iscsi://here:3260/", "-TargetPortalAddress here "),
        ("[::]:3260", "iscsi://here:3260/", "-TargetPortalAddress here "),
    ],
)
def test_lines_to_paste_name_an_address_that_can_be_reached(
    portal: str, url: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.platform, "node", lambda: "here")
    text = "\n".join(line for _, lines in cli.connecting(portal, "iqn.2026-11.org.iscsid:x", 3) for line in lines)
    assert f"{url}iqn.2026-11.org.iscsid:x/3" in text
    assert host in text
    assert "0.0.0.0" not in text
    assert "[::]" not in text


@pytest.mark.parametrize(
    ("portals", "told"),
    [
        (["127.0.0.1:3260"], True),
        (["127.0.0.1:3260", "[::1]:3260"], True),
        (["127.0.0.1:3260", "192.0.2.1:3260"], False),
        (["[::]:3260"], False),
    ],
)
def test_server_that_only_this_host_can_reach_says_so(served: dict[str, Any], portals: list[str], told: bool) -> None:
    served["portals"] = tuple(map(values.portal, portals))
    assert ("Only this host can connect" in run("serve").output) is told


@pytest.mark.parametrize("system", ["Linux", "Windows", "QEMU", "macOS"])
def test_lines_to_paste_are_there_for_every_system(system: str) -> None:
    headings = [heading for heading, lines in cli.connecting("::1", "iqn.2026-11.org.iscsid:x", 0) if lines]
    assert sum(system in heading for heading in headings) == 1


# -- status and sessions -----------------------------------------------------------------------------------------------


class Server:
    """A control socket that gives each command its answer."""

    def __init__(self, folder: Path, answers: Mapping[str, Mapping[str, Any]]) -> None:
        self._answers = answers
        self.asked: list[dict[str, Any]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(folder / SOCKET_NAME))
        self._sock.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            client, _ = self._sock.accept()
            with client, client.makefile("rwb") as stream:
                line = stream.readline()
                if not line:
                    return  # that was close()
                self.asked.append(json.loads(line))
                stream.write(json.dumps({"ok": True, **self._answers[self.asked[-1]["command"]]}).encode() + b"\n")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(self._sock.getsockname())
        self._thread.join()
        self._sock.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server with a status and one session; the runtime folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    changed = {"rows": [["target a lun 1", "added"]], "problems": []}
    refused = {"rows": [], "problems": ["it is planted"]}
    server = Server(folder, {"status": STATUS, "sessions": {"sessions": [SESSION]}, "reload": changed, "lun": refused})
    yield str(folder)
    server.close()


def rows(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.output.splitlines()]


def test_status_shows_the_server_and_its_workers(server: str) -> None:
    result = run("status", "-d", server)
    assert result.exit_code == Exit.OK
    assert rows(result) == [
        f"iscsid {__version__}, pid 4711: serving for 1h 2m",
        "portals 127.0.0.1:3260, [::1]:3260",
        "target iqn.2026-11.org.iscsid:disk0 (LUN 0 file)",
        "target iqn.2026-11.org.iscsid:empty",
        "sessions 2 open, 1 closing; connections before their login: 3",
        "refused 5 not iSCSI",
        "LUNs well",
        "",
        "WORKER PID STATE SESSIONS COMMANDS READ WRITTEN CPU MEMORY REPLACED",
        "0 4712 ready 3 1,234,567 5 GiB 0 B 98% 31 MiB 2",
        "1 dead 0 0",
    ]


def test_sessions_shows_who_is_logged_in(server: str) -> None:
    result = run("sessions", "-d", server)
    assert result.exit_code == Exit.OK
    assert rows(result)[1] == (
        "12 iqn.1993-08.org.debian:01:abc 192.0.2.7:50000 iqn.2026-11.org.iscsid:disk0 open 1m 30s 1 42 4 KiB 1 MiB"
    )


def test_reload_shows_what_has_changed(server: str) -> None:
    result = run("reload", "-d", server)
    assert result.exit_code == Exit.OK
    assert rows(result) == ["WHAT", "target a lun 1 added"]


@pytest.mark.parametrize("words", [("eject", "a", "0", "--force"), ("load", "a", "0"), ("resize", "a", "0", "2 GiB")])
def test_change_that_is_refused_fails_with_its_reason(server: str, words: tuple[str, ...]) -> None:
    result = run("lun", *words, "-d", server)
    assert result.exit_code == Exit.FAILED
    assert "it is planted" in result.output and "nothing has changed" in result.output


def test_size_that_is_none_is_a_bad_command_line(server: str) -> None:
    assert run("lun", "resize", "a", "0", "large", "-d", server).exit_code == Exit.USAGE


@pytest.mark.parametrize(("command", "answer"), [("status", STATUS), ("sessions", {"sessions": [SESSION]})])
def test_json_is_the_answer_as_it_came(server: str, command: str, answer: Mapping[str, Any]) -> None:
    result = run(command, "-d", server, "--json")
    assert result.exit_code == Exit.OK
    assert json.loads(result.output) == answer


def test_server_is_found_by_its_configuration(server: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f'[server]\nruntime_dir = "{server}"\n')
    assert run("status", "-c", str(path)).exit_code == Exit.OK


def test_server_of_this_user_is_found_when_the_host_has_none(
    server: str, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_folder / "iscsid-server-demo").symlink_to(server)
    monkeypatch.setattr(cli, "ServerSpec", lambda: ServerSpec(runtime_dir=str(user_folder / "none")))
    assert run("status").exit_code == Exit.OK


def test_server_that_refuses_is_the_one_that_was_meant(
    server: str, user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_folder / "iscsid-server-demo").symlink_to(server)
    folder = tmp_path / "host"
    folder.mkdir()
    host = Server(folder, {"reload": {"ok": False, "error": "a reload is under way"}})
    monkeypatch.setattr(cli, "ServerSpec", lambda: ServerSpec(runtime_dir=str(folder)))
    try:
        result = run("reload")
    finally:
        host.close()
    assert (result.exit_code, result.stderr) == (Exit.FAILED, "iscsid: a reload is under way\n")


@pytest.mark.parametrize("command", ["status", "sessions"])
def test_no_server_is_an_exit_code_of_its_own(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ServerSpec", lambda: ServerSpec(runtime_dir=str(tmp_path / "none")))
    for arguments in ([], ["-d", str(tmp_path)], ["--json"]):
        result = run(command, *arguments)
        assert result.exit_code == Exit.NO_SERVER
        assert result.stderr.startswith("iscsid: no server is running here")
        assert result.stdout == ""


def test_host_server_is_named_when_the_users_is_gone_too(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.demo()
    monkeypatch.setattr(cli, "ServerSpec", lambda: ServerSpec(runtime_dir="/nonexistent"))
    result = run("status")
    assert result.exit_code == Exit.NO_SERVER
    assert "/nonexistent/control.sock" in result.stderr


def test_names_of_initiators_cannot_steer_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    evil = {**SESSION, "initiator": "iqn.\x1b[2J[bold]x[/]", "target": ""}
    server = Server(folder, {"sessions": {"sessions": [evil]}})
    try:
        result = run("sessions", "-d", str(folder))
    finally:
        server.close()
    assert "\x1b" not in result.output
    assert "iqn.\\x1b[2J[bold]x[/]" in result.output
    assert "(discovery)" in result.output


def test_nobody_logged_in_is_said_so(tmp_path: Path) -> None:
    server = Server(tmp_path, {"sessions": {"sessions": []}})
    try:
        result = run("sessions", "-d", str(tmp_path))
    finally:
        server.close()
    assert result.output == "Nobody is logged in.\n"


# -- alua --------------------------------------------------------------------------------------------------------------

DISK = "iqn.2026-11.org.iscsid:disk0"
ACCESS = [
    {"tag": 1, "state": "active/optimized", "preferred": True, "set_by": "configuration"},
    {"tag": 2, "state": "standby", "preferred": False, "set_by": "administrator"},
]


@pytest.fixture
def alua(tmp_path: Path) -> Iterator[Callable[..., tuple[Result, list[dict[str, Any]]]]]:
    """``alua(*words, **answer)``: the result of `iscsid alua`, and what the server was asked."""
    servers: list[Server] = []

    def ask(*words: str, **answer: Any) -> tuple[Result, list[dict[str, Any]]]:
        folder = tmp_path / f"alua{len(servers)}"
        folder.mkdir()
        units = [{"target": DISK, "lun": lun, "groups": ACCESS} for lun in (0, 7)]
        servers.append(Server(folder, {"alua": answer or {"units": units}}))
        return run("alua", *words, "-d", str(folder)), servers[-1].asked

    yield ask
    for server in servers:
        server.close()


def test_alua_shows_every_unit_and_group(alua: Callable[..., Any]) -> None:
    result, asked = alua()
    assert result.exit_code == Exit.OK
    assert asked == [{"command": "alua"}]
    assert rows(result) == [
        "TARGET LUN TAG STATE SET BY",
        f"{DISK} 0 1 active/optimized preferred configuration",
        f"{DISK} 0 2 standby administrator",
        f"{DISK} 7 1 active/optimized preferred configuration",
        f"{DISK} 7 2 standby administrator",
    ]
    assert json.loads(alua("--json")[0].output)["units"][1]["groups"] == ACCESS


@pytest.mark.parametrize(
    ("words", "preferred"),
    [((), {}), (("--preferred",), {"preferred": True}), (("--not-preferred",), {"preferred": False})],
)
def test_alua_asks_for_what_was_said(
    alua: Callable[..., Any], words: tuple[str, ...], preferred: dict[str, bool]
) -> None:
    result, asked = alua(DISK, "2", "standby", *words)
    assert result.exit_code == Exit.OK
    assert asked == [{"command": "alua", "target": DISK, "tag": 2, "state": "standby", **preferred}]


@pytest.mark.parametrize(
    "words",
    [
        (DISK,),
        (DISK, "2"),
        (DISK, "two", "standby"),
        (DISK, "2", "asleep"),
        ("--preferred",),
        (DISK, "2", "standby", "x"),
    ],
)
def test_alua_that_says_too_little_or_nonsense_asks_nobody(alua: Callable[..., Any], words: tuple[str, ...]) -> None:
    result, asked = alua(*words)
    assert result.exit_code == Exit.USAGE
    assert asked == []


def test_alua_that_is_refused_fails_with_the_reason(alua: Callable[..., Any]) -> None:
    result, _ = alua(DISK, "9", "standby", ok=False, error="it has no portal group 9")
    assert result.exit_code == Exit.FAILED
    assert "it has no portal group 9" in result.stderr and "Traceback" not in result.output


# -- all of it ---------------------------------------------------------------------------------------------------------


class Served:
    """A real server; ``where`` is its first portal."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "iscsid", "serve", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = [""]
        while not self.said[-1].startswith("on "):
            self.said.append(self.process.stdout.readline())
            assert self.said[-1], self.process.communicate()
        self.where = self.said[-1].split()[1].rstrip(",")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, whatever it does; its exit code."""
        self.process.send_signal(number)
        try:
            self.process.communicate(timeout=30)
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode


@pytest.fixture
def real() -> Iterator[Served]:
    server = Served("-p", "127.0.0.1:0", "-p", "[::1]:0")
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_real_demo_is_seen_by_status_and_stops_well(real: Served, number: signal.Signals) -> None:
    answer = json.loads(run("status", "--json").output)
    assert answer["pid"] == real.process.pid
    assert answer["portals"][0] == real.where
    assert [target["name"] for target in answer["targets"]] == [cli.DEMO_TARGET]
    assert run("sessions").output == "Nobody is logged in.\n"
    assert real.stop(number) == Exit.OK
    assert run("status").exit_code == Exit.NO_SERVER


@pytest.mark.process
def test_real_second_demo_of_the_same_user_cannot_start(real: Served) -> None:
    command = [sys.executable, "-m", "iscsid", "serve", "-p", "127.0.0.1:0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == Exit.START
    assert f"already running (pid {real.process.pid})" in second.stderr
    assert json.loads(run("status", "--json").output)["pid"] == real.process.pid


@pytest.mark.process
@pytest.mark.judge("iscsi-ls")
def test_real_demo_is_listed_by_libiscsi(real: Served, judge: Callable[[str], str]) -> None:
    command = [judge("iscsi-ls"), "-s", f"iscsi://{real.where}"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"Target:{cli.DEMO_TARGET} Portal:{real.where},1" in listed
    # iscsi-ls takes the last block's number for the number of blocks.
    assert re.search(r"Lun:0 +Type:DIRECT_ACCESS \(Size:1023M\)", listed)


# -- numbers for people ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3725, "1h 2m"), (86400, "1d 0h"), (400 * 86400 + 3600, "400d 1h")],
)
def test_duration_is_told_in_two_units(seconds: float, text: str) -> None:
    assert cli.duration_text(seconds) == text


@given(st.text(max_size=20))
def test_printable_text_stays_and_no_other_gets_through(text: str) -> None:
    shown = cli.printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
