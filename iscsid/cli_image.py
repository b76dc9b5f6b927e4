"""``iscsid image``: what back ends can do with their media when no server has them.

Which verbs there are, and their options, is what the back ends say (``BackendInfo.verbs``); nothing here knows any of
them but by name. A medium is named by its path; the back end that knows it is found by asking each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from iscsid.errors import PluginError
from iscsid.plugin.info import BackendInfo, Option, Verb
from iscsid.plugin.manager import Plugins
from iscsid.plugin.manager import load as load_plugins

DEFAULT_BACKEND = "qcow2"  # of create, where there is nothing yet to be asked
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")


def find_backend(plugins: Plugins, path: str, verb: str, named: str | None) -> str:
    """The back end that is meant. Raises PluginError when none knows the medium."""
    if named is not None:
        return named
    if verb == "create":
        return DEFAULT_BACKEND
    for _, backend in plugins.probe(path):
        if any(known.name == verb for known in plugins.backends[backend].verbs):
            return backend
    raise PluginError("image", f"no back end knows {path}; name one with --backend")


def split_options(info: BackendInfo, verb: Verb, given: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the back end and of the verb, from words KEY=VALUE. What neither knows goes to the verb's check."""
    own: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    of_verb = {option.name: option for option in verb.options}
    of_backend = {option.name: option for option in info.options or ()}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"-o {word}: not KEY=VALUE")
        if key in of_verb:
            arguments[key] = typed(of_verb[key], value)
        elif key in of_backend and key != "path":
            own[key] = typed(of_backend[key], value)
        else:
            arguments[key] = value
    return own, arguments


def typed(option: Option, text: str) -> Any:
    """What a configuration would have written as a number or a truth value; the rest is left to the option's check."""
    if option.type == "bool":
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else text
    if option.type == "int" and text.lstrip("-").isdecimal():
        return int(text)
    return text


def print_answer(answer: Mapping[str, Any], indent: str = "") -> None:
    """Key and value, a line each; a mapping, and a list of mappings, as lines of its own."""
    for key, value in answer.items():
        label = key.replace("_", " ")
        if isinstance(value, list | Mapping):
            click.echo(f"{indent}{label}:" + ("" if value else " none"))
        if isinstance(value, Mapping):
            print_answer(value, indent + "  ")
        elif isinstance(value, list):
            for item in value:
                words = ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, Mapping) else str(item)
                click.echo(f"{indent}  {words}")
        elif value is not None:
            click.echo(f"{indent}{label}: {'yes' if value is True else 'no' if value is False else value}")


class ImageCommand(click.Command):
    """A verb, whose help tells the options that back ends have for it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for backend, info in load_plugins().backends.items():
            for verb in info.verbs:
                if verb.name == ctx.info_name and verb.options:
                    with formatter.section(f"Options (-o) of {backend}"):
                        formatter.write_dl([(option.name, _describe(option)) for option in verb.options])


def _describe(option: Option) -> str:
    parts = [option.doc or option.type]
    parts += [f"one of {', '.join(map(str, option.choices))}"] if option.choices else []
    parts += [f"default {option.default}"] if option.default not in (None, "", False) else []
    return "; ".join(parts)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def image() -> None:
    """Make, examine and change disk images that no server has open."""


def _add(verb: str, doc: str) -> None:
    def run(path: str, words: tuple[str, ...], backend: str | None, size: str | None, as_json: bool) -> None:
        answer = do(verb, path, words, backend, size)
        click.echo(json.dumps(answer, indent=2)) if as_json else print_answer(answer)
        if answer.get("sound") is False and not answer.get("repaired"):
            click.get_current_context().exit(1)

    run.__doc__ = doc
    params: list[click.Parameter] = [
        click.Argument(["path"]),
        click.Option(["-o", "words"], metavar="KEY=VALUE", multiple=True, help="An option; may be repeated."),
        click.Option(
            ["-b", "--backend"], metavar="NAME", help="The back end; by default the one that knows the image."
        ),
        click.Option(["--size"], metavar="SIZE", help='Of the disk: bytes, or with a unit such as "10 GiB".'),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the answer for programs."),
    ]
    image.add_command(ImageCommand(verb, callback=run, params=params, help=doc))


def do(verb: str, path: str, words: Sequence[str], named: str | None, size: str | None) -> Mapping[str, Any]:
    """Do ``verb`` with the medium at ``path``. Raises PluginError."""
    plugins = load_plugins()
    backend = find_backend(plugins, path, verb, named)
    info = plugins.backends.get(backend)
    known = {each.name: each for each in info.verbs} if info is not None else {}
    given = [*words, *([f"size={size}"] if size is not None else [])]
    if info is None or verb not in known:
        return plugins.image(backend, {"path": path}, verb, {})  # which says what is missing
    own, arguments = split_options(info, known[verb], given)
    return plugins.image(backend, {"path": path, **own}, verb, arguments)


for _verb, _doc in (
    ("create", "Make the image PATH, of --size or as large as its backing file."),
    ("info", "Tell what the image PATH is. It may be in use."),
    ("check", "Tell whether the image PATH is sound; exit code 1 if it is not."),
    ("resize", "Change the size of the disk in PATH to --size."),
    ("commit", "Write the image PATH into its backing file, and empty it."),
    ("snapshot", "List, make, apply or delete snapshots in PATH."),
    ("clone", "Write a snapshot in PATH into a new image. PATH may be in use."),
):
    _add(_verb, _doc)
