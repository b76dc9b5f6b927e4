"""What the authority asks the supervisor to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from iscsid.shared.messages import UnitAnswer, UpdateUnit


class Tell(NamedTuple):
    """Send ``message`` to this worker, or to the ADMINISTRATOR."""

    worker: int
    message: UpdateUnit | UnitAnswer


class Kill(NamedTuple):
    """This worker holds everybody up."""

    worker: int
    reason: str


class Keep(NamedTuple):
    """Put ``kept`` on disk in place of what is kept of the unit (None: remove it), then call ``Authority.kept``."""

    unit: str
    kept: Mapping[str, Any] | None


class End(NamedTuple):
    """End this session."""

    tsih: int
    reason: str


Action: TypeAlias = Tell | Kill | Keep | End
