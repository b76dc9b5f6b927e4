"""iscsi-initiator(8): the disks of a target as files under a mount point, through FUSE.

Options are those of the man page, as getopt(3) takes them (``46a:bcd:Dfh:p:t:u:v:V``), and long ones of ours. What
follows the mount point goes to FUSE, as it did. docs/netbsd.md tells what is better than it was.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from iscsid.compat import background
from iscsid.compat.initiator_settings import (
    CHAP,
    DEFAULTS,
    DIGESTS,
    NONE,
    Settings,
    SettingsError,
    debug,
    find_targets,
    log_in,
    read,
)
from iscsid.compat.initiator_storage import Storage
from iscsid.compat.initiator_tree import MountedTarget, Operations, Unit, build
from iscsid.compat.variables import Variables
from iscsid.errors import InitiatorError
from iscsid.initiator import Client, Disk, TargetRecord, commands
from iscsid.initiator.unit import Unit as UnitCommands

NAME: Final = "iscsi-initiator"
VERSION: Final = '"netbsd-iscsi" 20111006\nPlease send all bug reports to Alistair Crooks <agc@NetBSD.org>'
FAILED: Final = 1
MAX_UNITS: Final = 256  # of one target: each is asked five questions before the mount stands
DISK_TYPES: Final = frozenset({0x00, 0x05, 0x07, 0x0E})  # SPC-4 table 142: direct access, CD/DVD, optical, simplified
SERIAL_NUMBER: Final = 0x80
IDLE_THREADS: Final = 10  # as libfuse 3.14 has it, which says that its own value for that is invalid
VERBOSE: Final = ("net", "iscsi", "scsi", "osd", "all")
FUSE_FLAGS: Final = {"-f": "foreground", "-d": "debug", "-s": "nothreads"}
_ENDED_BY_SIGNAL: Final = 8  # what libfuse 3 returns then; libfuse 2 returns 0
_WITH_ARGUMENT: Final = "adhptu"


# -- the command line --------------------------------------------------------------------------------------------------


def spread(arguments: Sequence[str]) -> list[str]:
    """Take clusters of options apart, so that ``-v`` may stand with a word of its own, and without.

    The man page has it alone, getopt's string has it with an argument: it is one if it is a word that means something.
    """
    found: list[str] = []
    words = list(arguments)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            return [*found, word, *words]
        if word.startswith("--"):
            found.append(word)
            if "=" not in word and word not in ("--help",) and words:
                found.append(words.pop(0))
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            found.append(f"-{letter}")
            if letter == "v":
                if letters in VERBOSE:
                    found.append(letters)
                    letters = ""
                else:
                    found.append(words.pop(0) if not letters and words and words[0] in VERBOSE else "all")
            elif letter in _WITH_ARGUMENT:
                if letters:
                    found.append(letters)
                elif words:
                    found.append(words.pop(0))
                letters = ""
    return [*found, *words]


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def _print_version(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
    if given:
        click.echo(VERSION)
        ctx.exit()


_SETTINGS: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command(NAME, cls=_Command, context_settings=_SETTINGS)
@click.option("-4", "family", flag_value="4", help="Use IPv4.")
@click.option("-6", "family", flag_value="6", help="Use IPv6. Without -4 and -6: what the host has.")
@click.option("-a", "auth_type", metavar="TYPE", help="Authentication: chap or none (default); -u implies chap.")
@click.option("-b", "kind", flag_value="b", help="Show storage as a block device.")
@click.option("-c", "kind", flag_value="c", help="Show storage as a character device.")
@click.option("-f", "kind", flag_value="f", default="f", help="Show storage as a regular file (default).")
@click.option("-d", "digest", metavar="TYPE", help=f"Digests to insist on: {', '.join(DIGESTS)}; none.")
@click.option("-D", "discover_only", is_flag=True, help="List the targets and exit.")
@click.option("-h", "host", metavar="HOST", help=f"The target's host; {DEFAULTS['target hostname']}.")
@click.option("-p", "port", metavar="PORT", help=f"Its TCP port; {DEFAULTS['target port']}.")
@click.option("-t", "instance", metavar="NUMBER", help="Only that target of the list, counted from 0.")
@click.option("-u", "user", metavar="NAME", help="The CHAP user; its secret is in the auths file.")
@click.option("-v", "verbose", metavar="[WHAT]", help="Tell more: net, iscsi, scsi or all; with nothing, all.")
@click.option("-V", "version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Print the version of NetBSD's suite that this stands for, and exit.")  # fmt: skip
@click.option("--auths", metavar="FILE", help="The auths file; /etc/iscsi/auths.")
@click.option("--target-user", metavar="NAME", help="Have the target prove that it knows this user's secret.")
@click.option("--initiator-name", metavar="NAME", help="Our iSCSI name; made from the host's.")
@click.option("--timeout", metavar="SECONDS", help="Of a command, and for a lost target to come back; 30. Then EIO.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="MOUNT_POINT [FUSE_ARGUMENT]...")
@click.pass_context
def main(
    ctx: click.Context, /, kind: str, discover_only: bool, arguments: tuple[str, ...], **given: str | None
) -> None:
    """Show the disks of an iSCSI target as files under MOUNT_POINT.

    FUSE arguments are -f (stay in the foreground), -d (debug), -s (one thread) and -o OPTION,...
    It is unmounted by umount(8), fusermount3 -u, SIGTERM or SIGINT.

    \b
    Exit codes: 0 unmounted or listed (or, of the shell's process, mounted),
    1 it did not work, 2 bad command line.
    """
    arguments = _tell_unknown(arguments)
    try:
        settings = read(_variables(**given))
    except SettingsError as error:
        click.echo(f"{NAME}: {error}", err=True)
        ctx.exit(FAILED)
    if discover_only:
        ctx.exit(_list_targets(settings))
    if not arguments:
        raise click.UsageError("where is the mount point?", ctx)
    fuse = fuse_options(arguments[1:])
    ctx.exit(_mount(settings, os.path.abspath(arguments[0]), kind, fuse))


def _variables(**given: str | None) -> Variables:
    """The variables that the options stand for."""
    names = {
        "family": "address family",
        "auth_type": "auth type",
        "digest": "digest type",
        "host": "target hostname",
        "port": "target port",
        "instance": "target instance",
        "user": "user",
        "verbose": "debug",
        "auths": "auths file",
        "target_user": "target user",
        "initiator_name": "initiator name",
        "timeout": "timeout",
    }
    variables = Variables()
    variables.reset({**DEFAULTS, **{names[option]: value for option, value in given.items() if value is not None}})
    if variables.getvar("user") is not None and variables.getvar("auth type") == NONE:
        variables.setvar("auth type", CHAP)
    if variables.getvar("target user") is not None:
        variables.setvar("mutual auth", CHAP)
    debug(variables.getvar("debug") or "")
    return variables


def _tell_unknown(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """As the original: an unknown option is told, and no more. What is left begins with the mount point."""
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        click.echo(f"{NAME}: unknown option `{rest.pop(0).lstrip('-')}'", err=True)
    return tuple(rest)


def fuse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """What follows the mount point, as keyword arguments of ``mfusepy.FUSE``. Raises click.UsageError."""
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word in FUSE_FLAGS:
            options[FUSE_FLAGS[word]] = True
        elif word.startswith("-o"):
            text = word[2:] or (words.pop(0) if words else "")
            if not text:
                raise click.UsageError("-o of FUSE needs an argument")
            for option in filter(None, text.split(",")):
                name, equals, value = option.partition("=")
                options[name] = value if equals else True
        else:
            raise click.UsageError(f"{word} is no argument for FUSE: there are {', '.join(FUSE_FLAGS)} and -o OPTION")
    return options


# -- discovery ---------------------------------------------------------------------------------------------------------


def _list_targets(settings: Settings) -> int:
    try:
        records = _chosen(settings, find_targets(settings))
    except InitiatorError as error:
        click.echo("initiator_discover() in discover failed")
        click.echo(f"{NAME}: {error}", err=True)
        return FAILED
    click.echo(f"Targets available from host {settings.hostname}:")
    for record in records:
        for portal in record.portals:
            click.echo(f"{record.name} at {portal}")
    return 0


def _chosen(settings: Settings, records: list[TargetRecord]) -> list[TargetRecord]:
    if settings.instance is None:
        return records
    if settings.instance >= len(records):
        raise InitiatorError(f"there is no target {settings.instance}: the host has {len(records)}, counted from 0")
    return [records[settings.instance]]


# -- mounting ----------------------------------------------------------------------------------------------------------


def _mount(settings: Settings, mount_point: str, kind: str, fuse: dict[str, Any]) -> int:
    """Mount, and return the exit code when it is unmounted."""
    if not os.path.isdir(mount_point):
        click.echo(f"{NAME}: {mount_point}: not a directory", err=True)
        return FAILED
    run = _fuse()
    if run is None:
        return FAILED
    mounted: Callable[[], None] = _nothing
    if not (fuse.get("foreground") or fuse.get("debug")):
        mounted = background.begin().ready
    try:
        with _targets(settings) as targets:
            if not targets:
                click.echo(f"{NAME}: there is no disk to be mounted", err=True)
                return FAILED
            return _serve(run, _Mounted(build(targets), kind, mounted), mount_point, settings, fuse)
    except InitiatorError as error:
        click.echo("initiator_discover() in discover failed")
        click.echo(f"{NAME}: {error}", err=True)
        return FAILED


def _nothing() -> None:
    """In the foreground nobody waits."""


def _fuse() -> Callable[..., object] | None:
    """``mfusepy.FUSE``; None, and said why, where FUSE itself is missing."""
    try:
        from mfusepy import FUSE
    except (ImportError, OSError, AttributeError) as error:
        click.echo(f"{NAME}: FUSE is not there ({error}): install libfuse 3 (Debian: apt install fuse3)", err=True)
        return None
    run: Callable[..., object] = FUSE
    return run


class _Mounted(Operations):
    """The tree, and word to who waits for the mount."""

    def __init__(self, root: Any, kind: str, mounted: Callable[[], None]) -> None:
        super().__init__(root, kind)
        self._mounted = mounted
        self.ended = False

    def init(self, path: str) -> None:
        self._mounted()

    def destroy(self, path: str) -> None:
        super().destroy(path)
        self.ended = True


def _serve(
    run: Callable[..., object], operations: _Mounted, mount_point: str, settings: Settings, fuse: dict[str, Any]
) -> int:
    """Be the file system until it is unmounted, or a signal has it unmounted."""
    source = f"iscsi://{settings.hostname}:{settings.port}".replace(",", "_")
    options = {"fsname": source, "subtype": NAME, **_threads(), **fuse, "foreground": True}
    try:
        run(operations, mount_point, **options)
    except RuntimeError as error:
        if error.args == (_ENDED_BY_SIGNAL,) and operations.ended:
            return 0
        click.echo(f"{NAME}: {mount_point}: FUSE ended with {error}", err=True)
        return FAILED
    return 0


def _threads() -> dict[str, Any]:
    """An option that libfuse 3 has, and 2 has not."""
    from mfusepy import fuse_version_major

    return {"max_idle_threads": IDLE_THREADS} if fuse_version_major >= 3 else {}


@contextlib.contextmanager
def _targets(settings: Settings) -> Iterator[list[MountedTarget]]:
    """Log in to the targets; logged out of when it is over. One that cannot be used is told and left out."""
    with contextlib.ExitStack() as sessions:
        found = []
        for record in _chosen(settings, find_targets(settings)):
            try:
                client, portal = log_in(settings, record.name, record.portals)
                sessions.callback(client.close)
                units = tuple(_units(client, record.name))
            except InitiatorError as error:
                click.echo(f"{NAME}: {record.name}: {error}", err=True)
                continue
            if units:
                found.append(MountedTarget(record.name, settings.hostname, portal.host, units))
        yield found


def _units(client: Client, name: str) -> Iterator[Unit]:
    """The disks of a target; a unit that cannot be used is told and left out."""
    luns = commands.parse_luns(client.run(UnitCommands(0, client.options.timeout).report_luns()).result.data)
    if len(luns) > MAX_UNITS:
        click.echo(f"{NAME}: {name} has {len(luns)} units; the first {MAX_UNITS} are shown", err=True)
    for lun in sorted(luns)[:MAX_UNITS]:
        try:
            unit = _unit(client, lun)
        except InitiatorError as error:
            click.echo(f"{NAME}: {name}: LUN {lun}: {error}", err=True)
        else:
            if unit is not None:
                yield unit


def _unit(client: Client, lun: int) -> Unit | None:
    """One disk; None for what is no disk, as the controllers that some targets have at LUN 0."""
    ask = UnitCommands(lun, client.options.timeout)
    facts = commands.parse_inquiry(client.run(ask.inquiry()).result.data)
    if not facts.present or facts.device_type not in DISK_TYPES:
        return None
    vendor, product, version = (
        facts.data[start:end].decode("ascii", "replace").replace("\0", " ")
        for start, end in ((8, 16), (16, 32), (32, 36))
    )
    disk = Disk(client, lun)
    return Unit(lun, Storage(disk), vendor, product, version, _serial(disk))


def _serial(disk: Disk) -> str:
    """The unit serial number, "" where there is none (SPC-4 7.8.14)."""
    try:
        page = disk.vpd(SERIAL_NUMBER)
    except InitiatorError:
        return ""
    text = bytes(page[4:]).partition(b"\0")[0].decode("ascii", "replace")
    return "" if text.startswith(" ") else text


if __name__ == "__main__":
    sys.exit(main())
