"""What ``iscsid status`` shows: the server in a few lines, the LUNs that are not well, and the workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from iscsid import screen
from iscsid.screen import size_text


def print_status(console: Console, answer: Mapping[str, Any]) -> None:
    """The answer to ``status``: the server in a few lines, then its workers."""
    state = f"iscsid {answer['version']}, pid {answer['pid']}: {answer['phase']} for {duration_text(answer['uptime'])}"
    console.print(Text(state, style="bold"), soft_wrap=True)
    console.print(Text(f"portals    {', '.join(answer['portals'])}"), soft_wrap=True)
    for target in answer["targets"]:
        luns = ", ".join(f"{lun['lun']} {lun['backend']}" for lun in target["luns"])
        console.print(Text(f"target     {target['name']} (LUN {luns})" if luns else f"target     {target['name']}"))
    counts = ", ".join(f"{count} {state}" for state, count in answer["sessions"].items() if count)
    console.print(Text(f"sessions   {counts or 'none'}; connections before their login: {answer['callers']}"))
    if answer["refused"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in answer["refused"].items())
        console.print(Text(f"refused    {reasons}"), soft_wrap=True)
    print_health(console, answer)
    console.print()
    columns = ("WORKER", "PID", "STATE", "SESSIONS", "COMMANDS", "READ", "WRITTEN", "CPU", "MEMORY", "REPLACED")
    table = screen.table(*columns, right=[name for name in columns if name != "STATE"])
    for worker in answer["workers"]:
        table.add_row(*map(Text, _worker_row(worker)))
    console.print(table)


def _worker_row(worker: Mapping[str, Any]) -> list[str]:
    """A worker that is dead just now has no figures."""
    alive = worker["pid"] is not None
    return [
        str(worker["index"]),
        str(worker["pid"]) if alive else "",
        worker["state"],
        str(worker["sessions"]),
        f"{worker['commands']:,}" if alive else "",
        size_text(worker["read_bytes"]) if alive else "",
        size_text(worker["written_bytes"]) if alive else "",
        f"{worker['cpu_percent']:.0f}%" if alive else "",
        size_text(worker["rss"]) if alive else "",
        str(worker["replaced"]),
    ]


def print_health(console: Console, answer: Mapping[str, Any]) -> None:
    """A calm line where all is well, else one for each LUN that is not."""
    luns = [lun["health"] for target in answer["targets"] for lun in target["luns"]]
    unwell = sum(not health["well"] for health in luns)
    if luns:
        words = f"{unwell} of {len(luns)} LUNs {'is' if unwell == 1 else 'are'} not well" if unwell else "well"
        console.print(Text(f"LUNs       {words}", style="bold red" if unwell else ""))
    for row in _health_rows(answer):
        console.print(Text(f"  {': '.join(part for part in row if part)}"), soft_wrap=True)


def _health_rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each LUN that is not well, or has been unwell: which, how and since when, and why."""
    for target in answer["targets"]:
        for lun in target["luns"]:
            health = lun["health"]
            name = f"{target['name']} LUN {lun['lun']}"
            if health["state"] != "ok":
                yield name, f"{health['state']} for {duration_text(health['seconds'])}", _reasons(health)
            elif health["last_error"]:
                yield name, "ok", _reasons(health)


def _reasons(health: Mapping[str, Any]) -> str:
    """Why, in words."""
    words = []
    if health["hanging"]:
        words.append(f"{health['hanging']} calls hang, {health['waiting']} wait for them")
    if health["size"] is not None and health["size"] < (health["promised"] or 0):
        words.append(f"has {health['size']:,} bytes of {health['promised']:,}")
    if last := health["last_error"]:
        errors = ", ".join(f"{count} {kind}" for kind, count in health["errors"].items() if count)
        ago = duration_text(last["seconds_ago"])
        words.append(f"errors: {errors}; the last {ago} ago, {last['kind']}: {printable(last['reason'])}")
    return "; ".join(words)


def printable(text: str) -> str:
    """What an initiator said of itself, with nothing in it that would steer a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def duration_text(seconds: float) -> str:
    """Seconds for people: 3725 is "1h 2m"; no more than two units."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    parts: list[tuple[int, str]] = [(days, "d"), (hours, "h"), (minutes, "m"), (whole % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[:2])
