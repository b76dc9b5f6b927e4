"""The command ``iscsid``: serve, check, status, sessions.

What it prints is for people; ``--json`` is for programs. Lines that are there to be pasted are never wrapped, cut or
coloured. Exit codes stand in one table, ``Exit``, and mean the same for every command.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import sdnotify
from rich.console import Console
from rich.text import Text

from iscsid import __version__, config, screen, values
from iscsid.cli_disk import disk
from iscsid.cli_image import image
from iscsid.cli_import import import_targets
from iscsid.cli_layer import layer
from iscsid.cli_lun import asks
from iscsid.cli_lun import lun as lun_commands
from iscsid.cli_plugin import plugin
from iscsid.cli_status import duration_text, print_status, printable
from iscsid.daemon.control import ControlError, ask
from iscsid.daemon.errors import StartError
from iscsid.errors import ConfigError, IscsidError
from iscsid.plugin.manager import Plugins
from iscsid.plugin.manager import load as load_plugins
from iscsid.screen import size_text
from iscsid.specs import ACCESS_STATES, LunSpec, PortalSpec, ServerSpec, TargetSpec

DEMO_TARGET = "iqn.2026-11.org.iscsid:demo"
DEMO_PORTAL = PortalSpec("127.0.0.1")
DEMO_SIZE = 1 << 30
CHANGE_SECONDS = 180.0  # that a change of a running server may take: commands end, media are opened and closed


class Exit(enum.IntEnum):
    """The exit codes."""

    OK = 0
    FAILED = 1  # an error of ours, or the server ended badly
    USAGE = 2  # the command line (click's own code)
    CONFIG = 3  # the configuration is refused
    START = 4  # the server cannot start: address in use, medium not there, one is running already
    NO_SERVER = 5  # there is no server to ask, or it does not answer


EXITS: dict[type[IscsidError], Exit] = {
    ConfigError: Exit.CONFIG,
    StartError: Exit.START,
    ControlError: Exit.NO_SERVER,
    IscsidError: Exit.FAILED,
}


class Commands(click.Group):
    """A group whose commands may raise any error of ours: it is told on stderr, with the exit code of its kind."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IscsidError as error:
            if isinstance(error, ConfigError):
                many = len(error.problems)
                click.echo(f"{error}\n{many} {'problem' if many == 1 else 'problems'}", err=True)
            else:
                click.echo(f"iscsid: {error}", err=True)
            ctx.exit(next(code for kind, code in EXITS.items() if isinstance(error, kind)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="iscsid")
def main() -> None:
    """An iSCSI storage server of many processes, with storage back ends as plugins.

    \b
    Exit codes: 0 well, 1 failed, 2 bad command line, 3 bad configuration,
    4 the server cannot start, 5 there is no server to ask.
    """


main.add_command(disk)
main.add_command(image)
main.add_command(import_targets)
main.add_command(layer)
main.add_command(plugin)


# -- serve and check ---------------------------------------------------------------------------------------------------


def _read_portals(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> tuple[PortalSpec, ...]:
    try:
        return tuple(values.portal(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@main.command()
@click.option("-c", "--config", "file", metavar="FILE", help="What to serve; without it a demo disk is served.")
@click.option(
    "-p",
    "--portal",
    "portals",
    metavar="HOST:PORT",
    multiple=True,
    callback=_read_portals,
    help="Listen here instead; may be repeated.",
)
def serve(file: str | None, portals: tuple[PortalSpec, ...]) -> None:
    """Serve, in the foreground, until SIGTERM or Ctrl-C.

    Without a configuration file it serves a RAM disk of 1 GiB on 127.0.0.1:3260 and tells how to use it.
    """
    from iscsid.daemon import supervisor  # the whole server, which the other commands need not wait for

    def read() -> tuple[ServerSpec, Plugins]:
        spec, plugins = demo() if file is None else config.load(file)
        if portals:
            targets = tuple(dataclasses.replace(target, portal_groups=()) for target in spec.targets)
            spec = dataclasses.replace(spec, portals=portals, targets=targets)  # all of them are portal group 1
        _tell_failures(plugins)
        return spec, plugins

    spec, plugins = read()
    console = screen.console()

    ready = False

    def started(told: supervisor.Started) -> None:
        nonlocal ready
        ready = True
        portals = [str(portal) for portal in told.portals]
        print_started(console, spec, portals, len(told.pids), guide=file is None or console.is_terminal)

    reread = None if file is None else read
    code = supervisor.serve(spec, plugins, notify=_notifier(), started=started, reread=reread)
    click.get_current_context().exit(code if ready or code == Exit.OK else Exit.START)


@main.command()
@click.argument("file")
def check(file: str) -> None:
    """Tell what is wrong with a configuration FILE, or what it serves."""
    spec, plugins = config.load(file)
    _tell_failures(plugins)
    console = screen.console()
    print_served(console, spec, [str(portal) for portal in spec.portals])
    units = sum(len(target.luns) for target in spec.targets)
    console.print(f"{file}: targets: {len(spec.targets)}, logical units: {units}; nothing is wrong", soft_wrap=True)


def demo() -> tuple[ServerSpec, Plugins]:
    """What is served where no file says: a RAM disk, for this host only."""
    folder = user_runtime_dir()
    lun = LunSpec(0, "ram", {"size": DEMO_SIZE}, serial="ISCSIDDEMO000001", product="DEMO-DISK")
    target = TargetSpec(DEMO_TARGET, (lun,), alias="iscsid demo disk")
    spec = ServerSpec(
        portals=(DEMO_PORTAL,), targets=(target,), runtime_dir=str(folder), state_dir=str(folder / "state")
    )
    make_private(folder)
    return spec, load_plugins(["ram"])


def user_runtime_dir() -> Path:
    """Where a demo server of this user keeps its socket: what XDG gives the user, or a folder in /tmp."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and os.path.isdir(given):
        return Path(given) / "iscsid-server-demo"
    return Path(tempfile.gettempdir()) / f"iscsid-server-demo-{os.getuid()}"


def make_private(folder: Path) -> None:
    """Make ``folder``, or find it ours: in /tmp anybody may have made it first. Raises StartError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StartError(f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StartError(f"{folder}: is not a folder that only this user may write to")


def _notifier() -> Callable[[str], None]:
    """Tells systemd how the server is, where systemd asked to be told."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return lambda state: None
    return sdnotify.SystemdNotifier().notify  # type: ignore[no-any-return]


def _tell_failures(plugins: Plugins) -> None:
    for failure in plugins.failures:
        click.echo(f"iscsid: warning: {failure}", err=True)


# -- status and sessions -----------------------------------------------------------------------------------------------


@main.command()
@asks
def status(file: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Show a running server, its workers and their load."""
    answer = ask_server("status", file, runtime_dir)
    click.echo(json.dumps(answer, indent=2)) if as_json else print_status(screen.console(), answer)


@main.command()
@click.argument("target", required=False)
@click.argument("tag", required=False, type=int)
@click.argument("state", required=False, type=click.Choice(ACCESS_STATES))
@click.option("--preferred/--not-preferred", default=None, help="Whether initiators should prefer the group.")
@asks
def alua(
    target: str | None,
    tag: int | None,
    state: str | None,
    preferred: bool | None,
    file: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    """Show the access state of every portal group, or set one: of the portal group TAG of TARGET to STATE.

    STATE is active/optimized, active/non-optimized, standby, unavailable, offline or transitioning. It lasts until the
    server stops; what it starts with is in its configuration.
    """
    change: dict[str, Any] = {}
    if target is not None:
        if tag is None or state is None:
            raise click.UsageError("say TARGET, TAG and STATE, or none of them")
        change = {"target": target, "tag": tag, "state": state}
        change |= {} if preferred is None else {"preferred": preferred}
    elif preferred is not None:
        raise click.UsageError("say which TARGET, TAG and STATE")
    answer = ask_server("alua", file, runtime_dir, **change)
    click.echo(json.dumps(answer, indent=2)) if as_json else print_access(screen.console(), answer)


@main.command()
@asks
def reload(file: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Have a running server read its configuration again, and tell what has changed.

    Targets and LUNs come, go and change; sessions of the others go on. What needs a restart is named and left as it is.
    With a problem, exit code 1, nothing has changed at all.
    """
    _change("reload", file, runtime_dir, as_json)


def _change(
    command: str,
    file: str | None,
    runtime_dir: str | None,
    as_json: bool,
    quiet: bool = False,
    /,
    **arguments: Any,
) -> dict[str, Any]:
    """Ask for a change, wait for it, and tell what became of it; ``quiet``: what went wrong."""
    answer = ask_server(command, file, runtime_dir, timeout=CHANGE_SECONDS, **arguments)
    if answer["problems"] or not quiet:
        click.echo(json.dumps(answer, indent=2)) if as_json else print_changes(screen.console(), answer)
    if answer["problems"]:
        click.get_current_context().exit(Exit.FAILED)
    return answer


lun_commands.context_settings["obj"] = _change
main.add_command(lun_commands)


@main.command()
@asks
def sessions(file: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Show who is logged in to a running server."""
    answer = ask_server("sessions", file, runtime_dir)
    click.echo(json.dumps(answer, indent=2)) if as_json else print_sessions(screen.console(), answer)


def ask_server(command: str, file: str | None, runtime_dir: str | None, **arguments: Any) -> dict[str, Any]:
    """Ask the server that is meant: the one named, else the host's, else this user's demo."""
    if runtime_dir is not None:
        return ask(runtime_dir, command, **arguments)
    if file is not None:
        return ask(config.load(file)[0].runtime_dir, command, **arguments)
    try:
        return ask(ServerSpec().runtime_dir, command, **arguments)
    except ControlError as error:
        folder = user_runtime_dir()
        if not folder.exists():
            raise
        try:
            return ask(str(folder), command, **arguments)
        except ControlError:
            raise error from None


# -- the screen --------------------------------------------------------------------------------------------------------


def print_changes(console: Console, answer: Mapping[str, Any]) -> None:
    """What a change of a running server came to."""
    if answer["problems"]:
        for problem in answer["problems"]:
            click.echo(problem, err=True)
        click.echo("nothing has changed", err=True)
    elif answer["rows"]:
        table = screen.table("WHAT", "")
        for row in answer["rows"]:
            table.add_row(*map(Text, row))
        console.print(table)
    elif not answer.keys() & {"snapshots", "medium"}:
        console.print("nothing is different")


def print_served(console: Console, spec: ServerSpec, portals: Sequence[str]) -> None:
    """What is served, and where."""
    table = screen.table("TARGET", "LUN", "BACK END", "MEDIUM", "", right=("LUN",))
    for target in spec.targets:
        for lun in target.luns:
            table.add_row(*map(Text, (target.name, str(lun.lun), lun.backend, _medium(lun), _remarks(lun))))
        if not target.luns:
            table.add_row(Text(target.name), Text(""), Text(""), Text("no logical unit"))
    if spec.targets:
        console.print(table)
    console.print(Text(f"on {', '.join(portals)}"), soft_wrap=True)


def _medium(lun: LunSpec) -> str:
    """A back end's options in short; those that nobody gave are left out."""
    parts: list[str] = []
    for key, value in lun.options.items():
        if value is None or value is False:
            continue
        if key == "path":
            parts.insert(0, str(value))
        else:
            parts.append(size_text(value) if key == "size" else key if value is True else f"{key}={value}")
    return ", ".join(parts)


def _remarks(lun: LunSpec) -> str:
    remarks = ["read-only"] if lun.readonly else []
    remarks += [f"blocks of {lun.block_size}"] if lun.block_size else []
    remarks += [f"through {', '.join(layer.layer for layer in lun.layers)}"] if lun.layers else []
    return ", ".join(remarks)


def print_started(console: Console, spec: ServerSpec, portals: Sequence[str], workers: int, *, guide: bool) -> None:
    """What a server says when it is ready; ``guide`` adds how to connect."""
    processes = "1 worker process" if workers == 1 else f"{workers} worker processes"
    console.print(Text(f"iscsid {__version__} serves with {processes}", style="bold"))
    print_served(console, spec, portals)
    units = [(target.name, lun.lun) for target in spec.targets for lun in target.luns]
    if guide and units and portals:
        for heading, lines in connecting(portals[0], *units[0]):
            console.print()
            console.print(Text(heading, style="bold"), soft_wrap=True)
            for line in lines:
                console.print(Text(f"  {line}"), soft_wrap=True)
        console.print()
        if all(map(_is_loopback, portals)):
            console.print(
                "Only this host can connect; `iscsid serve -p 0.0.0.0` lets others in, all of them.", soft_wrap=True
            )
        console.print(
            "Ctrl-C stops the server; `iscsid status` and `iscsid sessions` show what it does.", soft_wrap=True
        )


def _is_loopback(portal: str) -> bool:
    return ipaddress.ip_address(values.portal(portal).host).is_loopback


def connecting(portal: str, target: str, lun: int) -> list[tuple[str, list[str]]]:
    """How to use a unit from elsewhere: headings, and the lines to paste under each."""
    spec = values.portal(portal)
    if spec.host in ("0.0.0.0", "::"):
        spec = PortalSpec(platform.node() or "localhost", spec.port)
    where = str(spec)
    return [
        (
            "Linux, as root, with open-iscsi",
            [
                f"iscsiadm -m discovery -t sendtargets -p {where}",
                f"iscsiadm -m node -T {target} -p {where} --login",
                "lsblk -S",
                f"iscsiadm -m node -T {target} -p {where} --logout",
            ],
        ),
        (
            "Windows, in a PowerShell of an administrator",
            [
                "Start-Service MSiSCSI",
                f"New-IscsiTargetPortal -TargetPortalAddress {spec.host} -TargetPortalPortNumber {spec.port}",
                f"Connect-IscsiTarget -NodeAddress {target}",
                "Get-Disk | Where-Object BusType -eq iSCSI",
                f"Disconnect-IscsiTarget -NodeAddress {target} -Confirm:$false",
            ],
        ),
        (
            "QEMU and libiscsi, on any system, without root",
            [
                f"iscsi-ls -s iscsi://{where}",
                f"qemu-img info iscsi://{where}/{target}/{lun}",
                f"qemu-system-x86_64 -m 2G -drive file=iscsi://{where}/{target}/{lun},format=raw,if=virtio",
            ],
        ),
        (
            "macOS, which has no initiator of its own: with iscsi-osx's iSCSIInitiator",
            [
                f"iscsictl add target {target},{where}",
                f"iscsictl login {target}",
                "iscsictl list luns",
                f"iscsictl logout {target}",
            ],
        ),
    ]


def print_sessions(console: Console, answer: Mapping[str, Any]) -> None:
    """The answer to ``sessions``: a line each, in the order in which they came."""
    if not answer["sessions"]:
        console.print("Nobody is logged in.")
        return
    right = ("TSIH", "WORKER", "COMMANDS", "READ", "WRITTEN")
    table = screen.table("TSIH", "INITIATOR", "FROM", "TARGET", "STATE", "SINCE", *right[1:], right=right)
    for session in answer["sessions"]:
        row = (
            str(session["tsih"]),
            printable(session["initiator"]),
            session["peer"],
            printable(session["target"]) or "(discovery)",
            session["state"],
            duration_text(session["seconds"]),
            str(session["worker"]),
            f"{session['commands']:,}",
            size_text(session["read_bytes"]),
            size_text(session["written_bytes"]),
        )
        table.add_row(*map(Text, row))
    console.print(table)


def print_access(console: Console, answer: Mapping[str, Any]) -> None:
    """The answer to ``alua``: a line for each unit and portal group."""
    table = screen.table("TARGET", "LUN", "TAG", "STATE", "", "SET BY", right=("LUN", "TAG"))
    for unit in answer["units"]:
        for group in unit["groups"]:
            preferred = "preferred" if group["preferred"] else ""
            words = (unit["target"], str(unit["lun"]), str(group["tag"]), group["state"], preferred, group["set_by"])
            table.add_row(*map(Text, words))
    console.print(table)
