"""What of a unit's state survives the server, as text: one file a unit, written and read by the daemon.

The text is JSON: the version of this format, the unit that it is of, and what ``rules`` wants kept. A file that is not
exactly that is refused: whoever starts without the reservations that were promised to persist destroys data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
SUFFIX: Final = ".json"
MAX_TEXT: Final = 1 << 20  # characters; what is longer was not written by us


def file_name(unit: str) -> str:
    """The name of the unit's file: serial numbers are whatever the configuration says, file names are not."""
    return hashlib.sha256(unit.encode()).hexdigest()[:32] + SUFFIX


def encode(unit: str, kept: Mapping[str, Any]) -> str:
    """The text of the unit's file. Equal states give equal texts."""
    return json.dumps({"version": VERSION, "unit": unit, "kept": kept}, indent=1, sort_keys=True) + "\n"


def decode(text: str, unit: str) -> dict[str, Any]:
    """What was kept of ``unit``. Raises ValueError, which says what is wrong with the text."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters")
    try:
        document = json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError("not the state of a logical unit")
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}; this server knows version {VERSION}")
    if document.keys() != {"version", "unit", "kept"} or not isinstance(document["kept"], dict):
        raise ValueError("not the state of a logical unit")
    if document["unit"] != unit:
        raise ValueError(f"of unit {document['unit']!r}, not {unit!r}")
    kept: dict[str, Any] = document["kept"]
    return kept
