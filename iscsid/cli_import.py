"""``iscsid import-targets``: a configuration of another server as one of ours."""

from __future__ import annotations

import os

import click

from iscsid import config
from iscsid.compat import auths, conffile, importers
from iscsid.compat.draft import Draft
from iscsid.compat.importers import FORMATS, Format
from iscsid.errors import ConfigError, Problem

_HELP = "\n".join(f"  {found.name:8}{found.doc}" for found in FORMATS)


@click.command("import-targets", help=f"""Write what FILE says as a configuration of iscsid, in TOML.

FILE is the configuration of another server:

\b
{_HELP}

What cannot be translated is told on stderr, with its line, and stands in the TOML as a comment. The result is checked
as by `iscsid check`; when something in it is refused, it is written
all the same, and the exit code is 3.""")  # fmt: skip
@click.argument("file")
@click.option("--from", "name", type=click.Choice([found.name for found in FORMATS]), help="The format; else: guessed.")
@click.option("-o", "--output", metavar="FILE", help="Write here instead of to stdout.")
@click.option(
    "--auths", "auths_file", metavar="FILE", help="With targets(5): ask for the CHAP users of this auths file."
)
@click.option("--state-dir", default=importers.STATE_DIR, show_default=True, help="With targets(5): for its mirrors.")
def import_targets(file: str, name: str | None, output: str | None, auths_file: str | None, state_dir: str) -> None:
    """Registered by ``cli``; its help is above."""
    text = _read(file)
    found = next((found for found in FORMATS if found.name == name), None) or importers.detect(text)
    if found is None:
        raise ConfigError(file, [Problem("", "", "looks like none of the formats that are known; --from names one")])
    draft = _draft(found, file, text, auths_file, state_dir)
    for note in draft.notes:
        click.echo(note.at(file), err=True)
    if not draft.targets:
        raise ConfigError(file, [Problem("", "", "there is no target in it that can be served")])
    content = draft.toml(file)
    if output is None:
        click.echo(content, nl=False)
    else:
        _write(output, content)
    config.parse(content, output or "the TOML")


def _draft(found: Format, file: str, text: str, auths_file: str | None, state_dir: str) -> Draft:
    try:
        text.encode()  # TOML is UTF-8
        if found.name != "targets":
            return found.read(text)
        accounts = auths.parse(_read(auths_file)) if auths_file else None
        for message in accounts.messages if accounts else ():
            click.echo(message.at(str(auths_file)), err=True)
        return importers.from_targets(text, accounts, state_dir)
    except ValueError as error:
        raise ConfigError(file, [Problem("", "", f"cannot be read as {found.doc}: {error}")]) from error


def _read(path: str) -> str:
    try:
        return conffile.read(path)
    except OSError as error:
        raise ConfigError(path, [Problem("", "", error.strerror or str(error))]) from error
    except ValueError as error:
        raise ConfigError(path, [Problem("", "", str(error))]) from error


def _write(path: str, content: str) -> None:
    """For its owner only: there may be secrets in it."""
    try:
        with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
