"""All checks on one medium, one after the other, and what came of each: what ``iscsid plugin check`` prints."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from iscsid.block.device import Support
from iscsid.block.guard import Guarded
from iscsid.contract.checks import CHECKS, Check, name_of
from iscsid.contract.expect import NotApplicable, Violation, read
from iscsid.contract.medium import BLOCKS, SMALLEST, Medium

LARGEST: Final = 64 << 20  # bytes that are read to see whether there is data
PIECE: Final = 1 << 20
SECONDS: Final = 60.0  # for one check


class Outcome(enum.Enum):
    """What a check found."""

    HOLDS = "holds"
    LEFT_OUT = "left out"  # the contract has nothing to say about this device
    VIOLATED = "VIOLATED"
    HANGS = "HANGS"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, what it is about, what it found, and in which words."""

    name: str
    about: str
    outcome: Outcome
    words: str = ""


def why_not(medium: Medium, *, overwrite: bool) -> str:
    """Why the checks may not run on this medium; "" when they may. With ``overwrite`` its data do not matter.

    Raises what the device raises.
    """
    guard = medium.open()
    try:
        wanted = max(SMALLEST, BLOCKS * guard.block_size)
        if guard.size < wanted:
            return f"it has {guard.size} bytes, and the checks need {wanted}"
        if overwrite or medium.forgets:
            return ""
        if guard.size > LARGEST:
            return f"it has more than {LARGEST} bytes, too many to see whether there is data on it"
        for at in range(0, guard.size, PIECE):
            if any(read(guard, at, min(PIECE, guard.size - at))):
                return "there is data on it, which the checks would overwrite"
        return ""
    finally:
        medium.close_handles()


def examine(medium: Medium, told: Callable[[Finding], None], seconds: float = SECONDS) -> list[Finding]:
    """Run every check, and tell each finding. A check that hangs is the last, and the medium stays as it is then."""
    findings = []
    for check in CHECKS:
        finding = _run(check, medium, seconds)
        findings.append(finding)
        told(finding)
        if finding.outcome is Outcome.HANGS:
            break
    return findings


def _run(check: Check, medium: Medium, seconds: float) -> Finding:
    found: list[tuple[Outcome, str]] = []

    def work() -> None:
        try:
            try:
                check(medium)
            finally:
                medium.close_handles()
        except NotApplicable as reason:
            found.append((Outcome.LEFT_OUT, str(reason)))
        except Violation as violation:
            found.append((Outcome.VIOLATED, str(violation)))
        except BaseException as error:  # whatever a stranger's device raises
            found.append((Outcome.VIOLATED, f"{type(error).__name__}: {error}"))
        else:
            found.append((Outcome.HOLDS, ""))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    outcome, words = found[0] if found else (Outcome.HANGS, f"no answer in {seconds:g} seconds")
    return Finding(name_of(check), (check.__doc__ or "").strip(), outcome, words)


def abilities(guard: Guarded) -> dict[Support, list[str]]:
    """The names of what a device can do itself, of what is emulated, and of what is missing."""
    found: dict[Support, list[str]] = {support: [] for support in sorted(Support, reverse=True)}
    for field in dataclasses.fields(guard.can):
        found[getattr(guard.can, field.name)].append(field.name)
    return found
