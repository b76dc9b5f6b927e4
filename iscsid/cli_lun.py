"""``iscsid lun``: one LUN of a running server ejected, loaded, resized, kept in snapshots.

The server does it; what is here asks it by a function that ``cli`` gives, which knows where servers are.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import click
from rich.text import Text

from iscsid import screen, values
from iscsid.plugin.manager import load as load_plugins


class Change(Protocol):
    """Ask the server that is meant for a change, wait for it, and show what became of it (``quiet``: what went wrong);
    the answer without problems, or the exit."""

    def __call__(
        self,
        command: str,
        file: str | None,
        runtime_dir: str | None,
        as_json: bool,
        quiet: bool = False,
        /,
        **arguments: Any,
    ) -> dict[str, Any]: ...


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that asks a running server."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the server's answer, for programs.")(command)
    command = click.option("-d", "--runtime-dir", metavar="DIR", help="The runtime_dir of the server to ask.")(command)
    return click.option("-c", "--config", "file", metavar="FILE", help="The configuration of the server to ask.")(
        command
    )


def _names_lun(command: Callable[..., None]) -> Callable[..., None]:
    return click.argument("target")(click.argument("number", metavar="LUN", type=int)(command))


@click.group()
def lun() -> None:
    """Eject, load, resize or clone one LUN of a running server, and keep its states in snapshots."""


@lun.command()
@_names_lun
@click.option("--force", is_flag=True, help="Even where an initiator prevents the removal.")
@asks
@click.pass_obj
def eject(
    change: Change, target: str, number: int, force: bool, file: str | None, runtime_dir: str | None, as_json: bool
) -> None:
    """Take the medium of a removable LUN out, when what was written is on it."""
    change("lun", file, runtime_dir, as_json, verb="eject", target=target, lun=number, force=force)


@lun.command()
@_names_lun
@asks
@click.pass_obj
def load(change: Change, target: str, number: int, file: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Put the medium of a removable LUN in: the file that has its name now, where it is one."""
    change("lun", file, runtime_dir, as_json, verb="load", target=target, lun=number)


def _read_size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else values.size(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@lun.command()
@_names_lun
@click.argument("size", required=False, callback=_read_size)
@click.option("--shrink", is_flag=True, help="Cut off, and lose, what is behind a smaller SIZE.")
@asks
@click.pass_obj
def resize(
    change: Change,
    target: str,
    number: int,
    size: int | None,
    shrink: bool,
    file: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    """Make a LUN SIZE large ("20 GiB"), or, without SIZE, as large as its medium has become by itself.

    Its sessions go on and are told. SIZE is that of the medium, below all layers. It is made smaller only with
    --shrink. Where the configuration says a size, change it too, or the next reload finds another one than it says.
    """
    if shrink and size is None:
        raise click.UsageError("--shrink: to which SIZE?")
    given = {} if size is None else {"size": size, "shrink": shrink}
    change("lun", file, runtime_dir, as_json, verb="resize", target=target, lun=number, **given)


@lun.command()
@click.argument("action", type=click.Choice(("create", "list", "apply", "delete")))
@_names_lun
@click.argument("name", required=False)
@asks
@click.pass_obj
def snapshot(
    change: Change,
    action: str,
    target: str,
    number: int,
    name: str | None,
    file: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    """Keep the state that a LUN has now as snapshot NAME, go back to one, delete or list them.

    Its sessions go on; commands wait for the moment that it takes. create keeps what was written to the LUN by then:
    whether a file system in it is clean is for its user to see to. apply makes the disk what it was, its size too,
    loses what it is now, and tells the initiators that the medium may have changed: unmount what is mounted before.
    """
    if (name is None) != (action == "list"):
        raise click.UsageError("list takes no NAME" if name else f"{action}: which NAME?")
    given = {} if name is None else {"name": name}
    answer = change(
        "lun", file, runtime_dir, as_json, verb="snapshot", action=action, target=target, lun=number, **given
    )
    if action == "list" and not as_json:
        print_snapshots(answer)


@lun.command()
@_names_lun
@click.argument("destination", metavar="FILE", type=click.Path(resolve_path=True))
@click.option("--snapshot", "name", metavar="NAME", help="Clone this state, and not what the LUN holds now.")
@click.option("--format", "kind", type=click.Choice(("qcow2", "raw")), default="qcow2", help="Of FILE, with snapshots.")
@asks
@click.pass_obj
def clone(
    change: Change,
    target: str,
    number: int,
    destination: str,
    name: str | None,
    kind: str,
    file: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    """Make the new disk FILE of what a LUN holds, while it is used. FILE is on the host of the server.

    Where the back end has snapshots, FILE is written from one, which is made for it unless --snapshot names one; that
    takes as long as the data is, and nothing waits for it. A file is cloned in a moment where its file system can
    share blocks. What layers keep for themselves (overlays, checksums) is not in FILE.
    """
    ask = partial(change, "lun", file, runtime_dir, as_json, True)
    where = {"target": target, "lun": number}
    if name is not None:
        ask(verb="snapshot", action="list", **where)  # or there would be a clone of what it holds now
    answer = ask(verb="clone", destination=destination, **where)
    if (medium := answer.get("medium")) is not None:
        answer = _clone_beside(ask, where, medium, name, destination, kind)
    click.echo(json.dumps(answer, indent=2) if as_json else f"{destination} is a clone")


def _clone_beside(
    ask: Callable[..., dict[str, Any]],
    where: Mapping[str, Any],
    medium: Mapping[str, Any],
    name: str | None,
    destination: str,
    kind: str,
) -> dict[str, Any]:
    """Write a snapshot into a file, in this process; one is kept for it where ``name`` names none."""
    kept = name or f"clone-{secrets.token_hex(8)}"
    if name is None:
        ask(verb="snapshot", action="create", name=kept, **where)
    arguments = {"name": kept, "to": destination, "format": kind}
    try:
        return dict(load_plugins().image(medium["backend"], medium["options"], "clone", arguments))
    finally:
        if name is None:
            ask(verb="snapshot", action="delete", name=kept, **where)


def print_snapshots(answer: Mapping[str, Any]) -> None:
    """Every snapshot of a LUN, oldest first."""
    table = screen.table("NAME", "SIZE", "CREATED")
    for each in answer.get("snapshots", ()):
        made = datetime.datetime.fromtimestamp(each["seconds"]).astimezone().isoformat(" ", "seconds")
        table.add_row(*map(Text, (each["name"], screen.size_text(each["size"]), made)))
    screen.console().print(table)
    if answer.get("left_out"):
        click.echo(f"and {answer['left_out']} more")
