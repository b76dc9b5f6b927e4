"""``iscsid disk``: what people do with disks of targets every day, without a kernel and without root."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from iscsid import screen
from iscsid.disk import bench as benches
from iscsid.disk import report
from iscsid.disk.copy import Copied, Differs, Interrupted, Report
from iscsid.disk.ends import URL_PREFIX, EndError, plain_url
from iscsid.disk.facts import disk_facts, fact_lines, unit_list
from iscsid.disk.job import DEPTH, Job
from iscsid.errors import InitiatorError, ReservationConflict
from iscsid.initiator import Credentials, Disk, ReservationType, open_disk, parse_url
from iscsid.initiator import discover as discover_targets
from iscsid.initiator.client import default_initiator_name

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
TYPES: Final = {kind.name.lower().replace("_", "-"): kind for kind in ReservationType}
UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20}
STABLE_ISID: Final = 0x80 << 40  # RFC 7143 section 11.12.5: the type "random"; what follows is made from the name

ENVIRONMENT = """\b
Credentials: in the URL, iscsi://user%secret@host/target/lun, or, where others
could read the command line, in the environment:
  LIBISCSI_CHAP_USERNAME, LIBISCSI_CHAP_PASSWORD
  LIBISCSI_CHAP_TARGET_USERNAME, LIBISCSI_CHAP_TARGET_PASSWORD"""


@click.group(context_settings=CONTEXT, epilog=ENVIRONMENT)
def disk() -> None:
    """Find, describe, copy, measure and reserve disks of any iSCSI target.

    URL is iscsi://[user[%secret]@]host[:port]/target-name/lun.
    """


# -- who we are --------------------------------------------------------------------------------------------------------


def _who(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that logs in."""

    @functools.wraps(command)
    def run(initiator_name: str, **arguments: Any) -> None:
        command(initiator_name=initiator_name, **arguments)

    return click.option("--initiator-name", metavar="IQN", default="", help="Who we are; else made from the host's.")(
        run
    )


def credentials_for(url: str) -> Credentials | None:
    """The credentials of the environment, for a URL that has none of its own. Raises InitiatorError."""
    if url.startswith(URL_PREFIX) and parse_url(url).credentials is not None:
        return None
    environment = os.environ
    user, secret = (environment.get(f"LIBISCSI_CHAP_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if not user and not secret:
        return None
    if not user or not secret:
        raise InitiatorError("LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD belong together")
    target_user, target_secret = (
        environment.get(f"LIBISCSI_CHAP_TARGET_{name}", "") for name in ("USERNAME", "PASSWORD")
    )
    return Credentials(user, os.fsencode(secret), target_user, os.fsencode(target_secret))


def login(url: str, initiator_name: str) -> dict[str, Any]:
    """The options of ``open_disk`` and its kin for one URL."""
    return {"initiator_name": initiator_name, "credentials": credentials_for(url)}


def stable_isid(initiator_name: str) -> int:
    """The same for all commands of one initiator: reservations belong to its name and this (SPC-4 5.13.1)."""
    return STABLE_ISID | int.from_bytes(hashlib.sha256(initiator_name.encode()).digest()[:5], "big")


# -- discover and info -------------------------------------------------------------------------------------------------


@disk.command(context_settings=CONTEXT)
@click.argument("portal")
@_who
@click.option("--json", "as_json", is_flag=True, help="Print the answer for programs.")
def discover(portal: str, initiator_name: str, as_json: bool) -> None:
    """List the targets that PORTAL, host[:port], tells of."""
    found = discover_targets(portal, **login(portal, initiator_name))
    if as_json:
        click.echo(json.dumps([{"name": one.name, "portals": list(map(str, one.portals))} for one in found], indent=2))
        return
    if not found:
        click.echo("The portal tells of no target.")
        return
    table = screen.table("TARGET", "PORTALS")
    for target in found:
        table.add_row(Text(target.name), Text(" ".join(map(str, target.portals))))
    screen.console().print(table)


@disk.command(context_settings=CONTEXT)
@click.argument("url")
@_who
@click.option("--json", "as_json", is_flag=True, help="Print the answer for programs.")
def info(url: str, initiator_name: str, as_json: bool) -> None:
    """Describe the disk at URL, or all disks of the target where URL names no LUN."""
    options = login(url, initiator_name)
    if parse_url(url).lun is None:
        units = unit_list(url, options)
        if as_json:
            click.echo(json.dumps(units, indent=2))
            return
        table = screen.table("LUN", "VENDOR", "PRODUCT", "SERIAL", "SIZE", right=("LUN", "SIZE"))
        for unit in units:
            size = "" if unit["size"] is None else screen.size_text(unit["size"])
            table.add_row(*map(Text, (str(unit["lun"]), unit["vendor"], unit["product"], unit["serial"], size)))
        screen.console().print(table)
        return
    with open_disk(url, **options) as opened:
        facts = disk_facts(opened)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        screen.console().print(report.fact_table(fact_lines(facts)))


# -- copy --------------------------------------------------------------------------------------------------------------


@disk.command(context_settings=CONTEXT)
@click.argument("source")
@click.argument("destination")
@_who
@click.option("--resume", is_flag=True, help="Go on with a copy that was interrupted or killed.")
@click.option("--verify", is_flag=True, help="Compare both ends afterwards.")
@click.option("--force", is_flag=True, help="Overwrite a file or block device that exists, or an unfinished copy.")
@click.option("--no-sparse", is_flag=True, help="Read and write zeros as any data.")
@click.option("--depth", type=click.IntRange(1, 128), default=DEPTH, show_default=True, help="Transfers in flight.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress, and say nothing at the end.")
def copy(
    source: str,
    destination: str,
    initiator_name: str,
    resume: bool,
    verify: bool,
    force: bool,
    no_sparse: bool,
    depth: int,
    quiet: bool,
) -> None:
    """Copy SOURCE to DESTINATION: each a URL, an image file (raw) or a block device.

    What is on a DESTINATION that is a URL is overwritten. Holes and zeros take no place where the destination can do
    without. A copy that was interrupted, or killed, is finished by the same command with --resume.
    """
    job = Job(source, destination, force, resume, verify, not no_sparse, depth)
    options = {"initiator_name": initiator_name, "credentials": _credentials_of_both(source, destination)}
    begin = time.monotonic()
    try:
        with _progress(quiet) as passes, _interruptible() as stop:
            copied = job.run(passes, stop, **options)
    except (Interrupted, KeyboardInterrupt):
        raise EndError(f"interrupted; to go on: {_again(job)}") from None
    except Differs:
        raise
    except (EndError, InitiatorError) as error:
        if job.state_path.exists() and not resume:
            raise EndError(f"{error}\nto go on: {_again(job)}") from error
        raise
    if not quiet:
        _tell_copied(copied, time.monotonic() - begin, verify)


def _credentials_of_both(source: str, destination: str) -> Credentials | None:
    """Those of the environment, where a URL among the two has none of its own."""
    urls = [name for name in (source, destination) if name.startswith(URL_PREFIX)]
    own = [url for url in urls if parse_url(url).credentials is not None]
    found = credentials_for("") if urls and not own else None
    if own and len(own) < len(urls) and credentials_for("") is not None:
        raise InitiatorError("one URL has credentials: the other needs its own, those of the environment are not used")
    return found


def _again(job: Job) -> str:
    """The command that goes on with a copy, without secrets."""
    names = [plain_url(name) if name.startswith(URL_PREFIX) else name for name in (job.source, job.destination)]
    flags = ["--resume", *(["--verify"] if job.verify else []), *([] if job.sparse else ["--no-sparse"])]
    return shlex.join(["iscsid", "disk", "copy", *names, *flags])


def _tell_copied(copied: Copied, seconds: float, verified: bool) -> None:
    moved = copied.size - copied.begin
    rate = screen.size_text(moved / seconds) if seconds else "0 B"
    parts = [
        f"{screen.size_text(copied.size)} copied",
        *([f"the first {screen.size_text(copied.begin)} of them before"] if copied.begin else []),
        f"{screen.size_text(copied.written)} written, {screen.size_text(copied.zeros)} zeros",
        f"{seconds:.1f} s, {rate}/s",
        *(["both ends compare equal"] if verified else []),
    ]
    click.echo("; ".join(parts))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], Report]]:
    """A bar for each pass, on stderr where that is a terminal."""
    console = screen.console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:

        def begin(title: str, position: int, size: int) -> Report:
            task = progress.add_task(title, total=size, completed=position)
            return lambda done: progress.update(task, completed=done)

        yield begin


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, so that the copy stops where it can be resumed; the second Ctrl-C is at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- bench -------------------------------------------------------------------------------------------------------------


def size_of(text: str) -> int:
    """Bytes, or with K or M: "4K" is 4096."""
    number = text.upper().removesuffix("IB")
    unit = number[-1:] if number[-1:] in UNITS else ""
    digits = number.removesuffix(unit)
    if not digits.isascii() or not digits.isdigit():
        raise click.BadParameter(f"{text!r} is not a size such as 512, 4K or 1M")
    return int(digits) * UNITS[unit]


@disk.command(context_settings=CONTEXT)
@click.argument("url")
@_who
@click.option(
    "--size", type=size_of, metavar="SIZE", default="4K", show_default=True, help="Bytes of a command, or with K or M."
)
@click.option("--depth", type=click.IntRange(1, 256), default=32, show_default=True, help="Commands in flight.")
@click.option("--seconds", type=click.FloatRange(0.1, 86400), default=5.0, show_default=True, help="How long.")
@click.option("--mix", type=click.IntRange(0, 100), default=100, show_default=True, help="Percent that are reads.")
@click.option("--sequential", is_flag=True, help="One after the other, instead of all over the disk.")
@click.option(
    "--sessions",
    type=click.IntRange(1, benches.MAX_SESSIONS),
    default=1,
    show_default=True,
    help="Sessions, each in a process of its own.",
)
@click.option("--write-to-this-disk", is_flag=True, help="What is on the disk may be destroyed; for a --mix below 100.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures for programs.")
@click.option("--plot", "picture", metavar="FILE", help="Draw rates and latencies into an .svg or .png file.")
def bench(
    url: str,
    initiator_name: str,
    size: int,
    depth: int,
    seconds: float,
    mix: int,
    sequential: bool,
    sessions: int,
    write_to_this_disk: bool,
    as_json: bool,
    picture: str | None,
) -> None:
    """Measure the disk at URL: commands and bytes per second, and latencies."""
    if mix < 100 and not write_to_this_disk:
        raise click.UsageError("writing destroys what is on the disk: say --write-to-this-disk")
    if picture is not None:
        report.check_picture(picture)
    load = benches.Load(size, depth, seconds, mix, sequential, sessions)
    options = login(url, initiator_name)
    with open_disk(url, **options) as opened:
        load.check(opened)
    with _progress(as_json) as passes:
        figures = benches.run(url, load, _whole_seconds(passes("measuring", 0, round(seconds * 1000))), **options)
    answer = report.bench_answer(plain_url(url), load, figures)
    if picture is not None:
        report.plot(picture, answer)
    click.echo(json.dumps(answer, indent=2)) if as_json else screen.console().print(report.bench_table(answer))


def _whole_seconds(tell: Report) -> Callable[[float], None]:
    return lambda seconds: tell(round(seconds * 1000))


# -- reservations ------------------------------------------------------------------------------------------------------


def key_of(text: str) -> int:
    """A reservation key: decimal, or hexadecimal with 0x."""
    try:
        key = int(text, 0)
    except ValueError:
        key = -1
    if not 0 < key < 1 << 64:
        raise click.BadParameter(f"{text!r} is not a key: 1 .. 0xffffffffffffffff, decimal or with 0x")
    return key


def _reserving(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--key", type=key_of, metavar="KEY", required=True, help="Our reservation key, such as 0x1234."
    )(command)
    return click.argument("url")(_who(command))


_type = click.option(
    "--type",
    "kind",
    type=click.Choice(list(TYPES)),
    default="write-exclusive",
    show_default=True,
    help="What others may not do, and who else may.",
)


@contextmanager
def _holder(url: str, initiator_name: str) -> Iterator[Disk]:
    """The disk, opened as the nexus that holds the reservations of all commands of this initiator."""
    name = initiator_name or default_initiator_name()
    with open_disk(url, isid=stable_isid(name), **login(url, name)) as opened:
        yield opened


@disk.command(context_settings=CONTEXT)
@click.argument("url")
@_who
@click.option("--json", "as_json", is_flag=True, help="Print the answer for programs.")
def keys(url: str, initiator_name: str, as_json: bool) -> None:
    """Show who is registered with the disk at URL, and who has reserved it."""
    with open_disk(url, **login(url, initiator_name)) as opened:
        found, held = opened.read_keys(), opened.read_reservation()
    holder = None if held is None else {"key": f"{held.key:#x}", "type": held.type.name.lower().replace("_", "-")}
    if as_json:
        answer = {"generation": found.generation, "keys": [f"{key:#x}" for key in found.keys], "reservation": holder}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"registered: {', '.join(f'{key:#x}' for key in found.keys) or 'nobody'}")
    click.echo(f"reserved: {'no' if holder is None else '{type} by {key}'.format(**holder)}")


@disk.command(context_settings=CONTEXT)
@_reserving
@_type
def reserve(url: str, initiator_name: str, key: int, kind: str) -> None:
    """Register with the disk at URL and reserve it.

    The reservation lasts until `release`, by the same initiator name, or until others `preempt` or `clear` it.
    """
    with _holder(url, initiator_name) as opened:
        registered = _register(opened, key)
        try:
            opened.reserve(key, TYPES[kind])
        except ReservationConflict:
            if not registered:
                opened.register(0, old_key=key)
            raise EndError(f"{plain_url(url)} is reserved: {_held(opened)}") from None


@disk.command(context_settings=CONTEXT)
@_reserving
@click.option("--stay-registered", is_flag=True, help="Keep the registration of the key.")
def release(url: str, initiator_name: str, key: int, stay_registered: bool) -> None:
    """Give up a reservation of ours of the disk at URL, and the registration of the key."""
    with _holder(url, initiator_name) as opened:
        held = opened.read_reservation()
        try:
            if held is not None and held.key in (0, key):
                opened.release(key, held.type)
            if not stay_registered:
                opened.register(0, old_key=key)
        except ReservationConflict:
            raise EndError(f"{plain_url(url)}: this initiator is not registered with the key {key:#x}") from None


@disk.command(context_settings=CONTEXT)
@_reserving
@_type
@click.option(
    "--victim",
    type=key_of,
    metavar="KEY",
    required=True,
    help="The key of who is to lose registration and reservation.",
)
@click.option("--abort", is_flag=True, help="End the victim's commands too.")
def preempt(url: str, initiator_name: str, key: int, kind: str, victim: int, abort: bool) -> None:
    """Take the disk at URL away from who is registered with another key, and reserve it if he held it."""
    with _holder(url, initiator_name) as opened:
        registered = _register(opened, key)
        try:
            opened.preempt(key, victim, TYPES[kind], abort=abort)
        except ReservationConflict:
            if not registered:
                opened.register(0, old_key=key)
            raise EndError(f"{plain_url(url)}: nobody is registered with the key {victim:#x}") from None


@disk.command(context_settings=CONTEXT)
@_reserving
def clear(url: str, initiator_name: str, key: int) -> None:
    """End all reservations and registrations of the disk at URL, whosever they are."""
    with _holder(url, initiator_name) as opened:
        _register(opened, key)
        opened.clear(key)


def _register(opened: Disk, key: int) -> bool:
    """Register our key; return whether we were registered before (SPC-4 5.13.7: then 0 is not our key)."""
    try:
        opened.register(key)
    except ReservationConflict:
        opened.register(key, ignore_existing=True)
        return True
    return False


def _held(opened: Disk) -> str:
    held = opened.read_reservation()
    return "by nobody any more" if held is None else f"{held.type.name.lower().replace('_', '-')} by {held.key:#x}"
