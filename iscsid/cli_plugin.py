"""``iscsid plugin``: which plugins there are, a new one to begin with, and whether one keeps the contract."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from iscsid import scaffold, screen
from iscsid.block.device import Support
from iscsid.cli_image import typed
from iscsid.contract import SMALLEST, Medium, load_file
from iscsid.contract.report import SECONDS, Finding, Outcome, abilities, examine, why_not
from iscsid.errors import BlockError, PluginError
from iscsid.plugin.info import API_VERSION, Option, near
from iscsid.plugin.manager import BUILTIN, ENTRY_POINTS, Plugins
from iscsid.plugin.manager import load as load_plugins

UNDER_SIZE = 2 * SMALLEST  # bytes of the media that a layer is checked over
_WORDS = {Support.NATIVE: "does itself", Support.EMULATE: "is emulated", Support.NONE: "is missing"}

_folders = click.option(
    "--plugin-dir", "folders", metavar="DIR", multiple=True, help="A folder of plugins, as in plugin_dirs."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def plugin() -> None:
    """List plugins, begin a new one, and check one."""


# -- list --------------------------------------------------------------------------------------------------------------


def catalogue(plugins: Plugins) -> list[dict[str, Any]]:
    """A mapping for each back end, layer and authentication source, fit for JSON."""
    ours = {path.rpartition(".")[2] for path in BUILTIN}
    packages = {
        entry.name: f"{entry.dist.name} {entry.dist.version}"
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)
        if entry.dist is not None
    }
    return [
        {
            "name": info.name,
            "kind": kind,
            "doc": info.doc,
            "api": info.api,
            "plugin": owner,
            "from": "iscsid" if owner in ours else packages.get(owner, file),
            "options": None if info.options is None else [_described(option) for option in info.options],
        }
        for kind, info, owner, file in plugins.catalogue()
    ]


def _described(option: Option) -> dict[str, Any]:
    told = dataclasses.asdict(option)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}


@plugin.command("list")
@_folders
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, for programs.")
def list_plugins(folders: tuple[str, ...], as_json: bool) -> None:
    """Show the back ends, layers and authentication sources there are, and what could not be loaded.

    Options in capital letters have to be given.
    """
    plugins = load_plugins(plugin_dirs=folders)
    found = catalogue(plugins)
    failures = [{"plugin": failure.plugin, "reason": failure.reason} for failure in plugins.failures]
    if as_json:
        click.echo(json.dumps({"api": API_VERSION, "plugins": found, "failures": failures}, indent=2, default=str))
        return
    table = screen.table("NAME", "KIND", "API", "FROM", "WHAT", "OPTIONS")
    table.columns[3].no_wrap = True  # a path, to be copied
    for row in found:
        names = [option["name"].upper() if option["required"] else option["name"] for option in row["options"] or ()]
        options = "any" if row["options"] is None else ", ".join(names)
        table.add_row(*map(Text, (row["name"], row["kind"], str(row["api"]), row["from"], row["doc"], options)))
    screen.console().print(table)
    for failure in failures:
        click.echo(f"left out: {failure['plugin']}: {failure['reason']}")


# -- new ---------------------------------------------------------------------------------------------------------------


@plugin.command()
@click.argument("name")
@click.option("--layer", is_flag=True, help="A layer instead of a back end.")
@click.option(
    "--in", "folder", metavar="DIR", default=".", help="Where the folder iscsid-NAME is made; by default here."
)
def new(name: str, layer: bool, folder: str) -> None:
    """Write a package with a back end NAME that works, its tests and its packaging, to be changed into yours."""
    plugins = load_plugins()
    if name in (plugins.layers if layer else plugins.backends):
        raise PluginError(name, "there is one of this name already")
    try:
        written = scaffold.write_package(name, Path(folder), layer=layer)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise PluginError(name, str(error)) from error
    for path in written:
        click.echo(path)


# -- check -------------------------------------------------------------------------------------------------------------


def find(plugins: Plugins, named: str, file: str | None) -> tuple[str, str]:
    """Kind and name of the back end or layer that is meant. Raises PluginError unless it is exactly one."""
    known = [(kind, info.name, path) for kind, info, _, path in plugins.catalogue() if kind != "auth"]
    if file is None:
        found = [(kind, name) for kind, name, _ in known if name == named]
    else:
        found = [(kind, name) for kind, name, path in known if path and Path(path).resolve() == Path(file).resolve()]
    if not found and (failures := [error for error in plugins.failures if error.plugin == named]):
        raise failures[0]
    if len(found) != 1:
        reason = "has several back ends and layers; say which" if found else "there is no such back end or layer"
        raise PluginError(named, reason + ("" if found else near(named, [name for _, name, _ in known])))
    return found[0]


def options_of(schema: Sequence[Option] | None, words: Sequence[str]) -> dict[str, Any]:
    """Options from words KEY=VALUE."""
    known = {option.name: option for option in schema or ()}
    made: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"-o {word}: not KEY=VALUE")
        made[key] = typed(known[key], value) if key in known else value
    return made


@plugin.command()
@click.argument("name", metavar="NAME|FILE.py")
@click.option("-o", "words", metavar="KEY=VALUE", multiple=True, help="An option of the plugin; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Even where there is data: it is lost.")
@click.option("--forgets", is_flag=True, help="It is meant to forget what is written, as null is.")
@click.option("--seconds", default=SECONDS, show_default=True, help="How long one check may take.")
@click.option("-v", "--verbose", is_flag=True, help="Show what holds as well.")
@_folders
def check(
    name: str,
    words: tuple[str, ...],
    overwrite: bool,
    forgets: bool,
    seconds: float,
    verbose: bool,
    folders: tuple[str, ...],
) -> None:
    """Tell whether a back end or a layer keeps the contract of a device; exit code 1 if it does not.

    The medium that the options describe is OVERWRITTEN, so one with data on it is refused. A layer is checked over
    memory and over a file. What cannot be seen from here is what survives a loss of power.
    """
    file = name if name.endswith(".py") else None
    plugins = load_file(name) if file else load_plugins(plugin_dirs=folders)
    kind, known = find(plugins, name, file)
    schema = (plugins.layers if kind == "layer" else plugins.backends)[known].options
    options = options_of(schema, words)
    problems = (plugins.validate_layer if kind == "layer" else plugins.validate)(known, options)
    if problems:
        raise PluginError(known, "; ".join(problems))
    broken = 0
    # What a layer keeps beside one medium says nothing of the next.
    paths = [Path(str(options.get(option.name, "."))) for option in schema or () if option.type == "path"]
    new = [path for path in paths if kind == "layer" and not path.exists()]
    with tempfile.TemporaryDirectory(prefix="iscsid-check-") as folder:
        for under, (backend, its, layers) in media(kind, known, options, folder).items():
            medium = Medium(plugins, backend, its, layers, forgets=forgets or backend == "null")
            broken += check_medium(f"{kind} {known}{under}", medium, overwrite=overwrite, seconds=seconds, all_=verbose)
            for path in new:
                path.unlink(missing_ok=True)
    click.get_current_context().exit(1 if broken else 0)


def media(
    kind: str, name: str, options: Mapping[str, Any], folder: str
) -> dict[str, tuple[str, Mapping[str, Any], list[tuple[str, Mapping[str, Any]]]]]:
    """What to check, by what is said of it: back end, options and layers."""
    if kind != "layer":
        return {"": (name, options, [])}
    layers = [(name, options)]
    file = {"path": f"{folder}/disk.img", "size": UNDER_SIZE}
    return {" over ram": ("ram", {"size": UNDER_SIZE}, layers), " over file": ("file", file, layers)}


def check_medium(what: str, medium: Medium, *, overwrite: bool, seconds: float, all_: bool) -> int:
    """Run the checks, print what they find, and return how much is broken. Raises PluginError when it may not be."""
    with ExitStack() as stack:
        stack.callback(medium.close)
        try:
            reason = why_not(medium, overwrite=overwrite or bool(medium.layers))
            can = abilities(medium.open())
        except (BlockError, OSError) as error:
            raise PluginError(medium.backend, f"cannot be opened and read: {error}") from error
        medium.close_handles()
        if reason:
            raise PluginError(
                medium.backend, f"{reason}; another medium, or --overwrite" if overwrite is False else reason
            )
        click.echo(what)
        for support, names in can.items():
            click.echo(f"  {_WORDS[support]:<12} {', '.join(names) or 'nothing'}")
        findings = examine(medium, printer(all_), seconds)
        if findings[-1].outcome is Outcome.HANGS:
            stack.pop_all()  # a thread is in the device: nothing of it can be closed
    count = {outcome: sum(finding.outcome is outcome for finding in findings) for outcome in Outcome}
    broken = count[Outcome.VIOLATED] + count[Outcome.HANGS]
    click.echo(f"  {count[Outcome.HOLDS]} hold, {count[Outcome.LEFT_OUT]} do not apply, {broken} violated")
    return broken


def printer(all_: bool) -> Callable[[Finding], None]:
    """Prints findings: what is wrong and what does not apply, or all."""

    def show(finding: Finding) -> None:
        if finding.outcome in (Outcome.VIOLATED, Outcome.HANGS):
            click.echo(f"  {finding.outcome.value}: {finding.name}: {finding.words}\n    {finding.about}")
        elif all_ or finding.outcome is Outcome.LEFT_OUT:
            words = f" ({finding.words})" if finding.words else ""
            click.echo(f"  {finding.outcome.value}: {finding.name}{words}")

    return show
