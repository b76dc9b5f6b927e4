"""iscsi-target(8): serve what targets(5) says.

Options are those of the man page, written as getopt(3) takes them (``46b:Df:p:s:t:Vv:``), and long ones of ours for
what was compiled in. It starts as the original did, and says what it said; what is better is told in docs/netbsd.md:
the shell hears of a port that is taken, signals end it cleanly, SIGHUP has it read its file again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import syslog
from collections.abc import Sequence
from typing import Any, Final

import click

from iscsid.compat import background, libiscsi_target
from iscsid.compat.background import Background
from iscsid.compat.libiscsi_target import (
    DEFAULTS,
    PIDFILE,
    iscsi_target_listen,
    iscsi_target_set_defaults,
    iscsi_target_setvar,
    iscsi_target_start,
    iscsi_target_t,
    iscsi_target_write_pidfile,
)
from iscsid.daemon.signals import Signals

NAME: Final = "iscsi-target"
VERSION: Final = '"netbsd-iscsi" 20111006\nPlease send all bug reports to Alistair Crooks <agc@NetBSD.org>'
MOST_SESSIONS: Final = 127  # of -s; a larger number, and one that is none, was passed over without a word
FAILED: Final = 1

_PRIORITIES: Final = (
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
    (logging.NOTSET, syslog.LOG_DEBUG),
)


class _Syslog(logging.Handler):
    """Log records to syslog(3); silent where nobody listens, as in a container."""

    def emit(self, record: logging.LogRecord) -> None:
        priority = next(priority for level, priority in _PRIORITIES if record.levelno >= level)
        syslog.syslog(priority | syslog.LOG_DAEMON, self.format(record))


def _print_version(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
    if given:
        click.echo(VERSION)
        ctx.exit()


_SETTINGS: Final = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": ["-h", "--help"],
}


@click.command(NAME, context_settings=_SETTINGS)
@click.option("-4", "family", flag_value="4", help="Listen on IPv4 only.")
@click.option("-6", "family", flag_value="6", help="Listen on IPv6 only. Without -4 and -6: on both.")
@click.option("-b", "block_length", metavar="LENGTH", help="Bytes in a block: 512 (default), 1024, 2048, 4096, 8192.")
@click.option("-D", "foreground", is_flag=True, help="Stay in the foreground; without, become a daemon.")
@click.option("-f", "file", metavar="FILE", help=f"The targets(5) file; {DEFAULTS['configfile']}.")
@click.option("-p", "port", metavar="PORT", help="The TCP port; 3260.")
@click.option("-s", "sessions", metavar="NUMBER", help="How many sessions there may be, 1 to 127; 16.")
@click.option("-t", "iqn", metavar="NAME", help=f"What names of targets begin with; {DEFAULTS['iqn']}.")
@click.option("-v", "verbose", metavar="WHAT", help="Tell more: net, iscsi, scsi or all.")
@click.option("-V", "version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Print the version of NetBSD's suite that this stands for, and exit.")  # fmt: skip
@click.option("--auths", metavar="FILE", help="The auths file: its CHAP users may log in; /etc/iscsi/auths.")
@click.option("--no-auth", is_flag=True, help="Ask nobody for proof, whatever the auths file says.")
@click.option("--pid-file", metavar="FILE", help=f"Where the process id goes; {PIDFILE}.")
@click.option("--runtime-dir", metavar="DIR", help="Lock and control socket; /run/iscsi-target/PORT.")
@click.option("--state-dir", metavar="DIR", help="What must survive a restart; /var/lib/iscsi-target.")
@click.option("--workers", metavar="NUMBER", help="Worker processes; one per core.")
@click.pass_context
def main(ctx: click.Context, /, foreground: bool, sessions: str | None, pid_file: str | None, **given: Any) -> None:
    """Serve the disks that a targets(5) file names, over iSCSI.

    SIGTERM stops it when what is under way is done, SIGHUP has it read the file again. What is logged goes to
    syslog, logins and logouts to stdout too.

    \b
    Exit codes: 0 it was stopped (or, of the shell's process, it serves),
    1 it could not start, 2 bad command line.
    """
    _tell_unknown(ctx.args)
    tgt = iscsi_target_t()
    iscsi_target_set_defaults(tgt)
    for name, value in _variables(sessions, **given).items():
        iscsi_target_setvar(tgt, name, value)
    _log_to_syslog()
    if iscsi_target_start(tgt) != 0:
        click.echo("iscsi_target_start() failed", err=True)
        ctx.exit(FAILED)
    shell = None if foreground else _become_daemon(ctx)
    ctx.exit(_serve(tgt, shell, pid_file))


def _variables(sessions: str | None, *, no_auth: bool, **given: str | None) -> dict[str, str]:
    """The variables that the options stand for."""
    names = {
        "family": "address family",
        "block_length": "blocklen",
        "file": "configfile",
        "port": "target port",
        "iqn": "iqn",
        "verbose": "debug",
        "auths": "auths file",
        "runtime_dir": "runtime directory",
        "state_dir": "state directory",
        "workers": "workers",
    }
    values = {names[option]: value for option, value in given.items() if value is not None}
    if "configfile" in values:
        values["configfile"] = os.path.abspath(values["configfile"])  # a daemon's folder is /
    if sessions is not None:
        if sessions.isdecimal() and 0 < int(sessions[:9]) <= MOST_SESSIONS:
            values["max sessions"] = sessions
        else:
            click.echo(f"{NAME}: -s {sessions}: ignored; it is a number from 1 to {MOST_SESSIONS}", err=True)
    if no_auth:
        values["auth type"] = "none"
    return values


def _tell_unknown(arguments: Sequence[str]) -> None:
    """As getopt(3): an unknown option is told, and no more; what is no option is passed over."""
    for argument in arguments:
        if not argument.startswith("-") or argument == "-":
            return
        if argument.startswith("--"):
            click.echo(f"{NAME}: unknown option -- {argument[2:]}", err=True)
            continue
        for letter in argument[1:]:
            click.echo(f"{NAME}: unknown option -- {letter}", err=True)


def _log_to_syslog() -> None:
    """Warnings go to stderr too, as long as there is one."""
    syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(logging.Formatter(f"{NAME}: %(message)s"))
    to_stderr.setLevel(logging.WARNING)
    to_syslog = _Syslog()
    to_syslog.setFormatter(logging.Formatter("%(processName)s %(name)s: %(message)s"))
    logging.getLogger().handlers[:] = [to_stderr, to_syslog]


def _become_daemon(ctx: click.Context) -> Background:
    try:
        return background.begin()
    except OSError as error:
        click.echo(f"daemon() failed: {error.strerror}", err=True)
        ctx.exit(FAILED)


def _serve(tgt: iscsi_target_t, shell: Background | None, pid_file: str | None) -> int:
    """Listen until a signal says stop; the exit code. The pid file is there while it serves."""

    def started() -> None:
        iscsi_target_write_pidfile(pid_file)
        if shell is not None:
            shell.ready()

    code = iscsi_target_listen(tgt, signals=Signals, started=started)
    if code != 0:
        click.echo("iscsi_target_listen() failed", err=True)
    _remove_pidfile(pid_file or libiscsi_target.PIDFILE)
    return FAILED if code else 0


def _remove_pidfile(path: str) -> None:
    """If it is ours."""
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        if file.read(32).strip() == str(os.getpid()):
            os.unlink(path)
