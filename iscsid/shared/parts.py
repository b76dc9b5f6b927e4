"""How the authority's word is put into messages: as JSON, in parts that a message has room for, and as answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.shared.messages import UnitAnswer

MAX_PART: Final = 64 * 1024  # bytes of attentions and aborts in one message; more of them take more messages


def json_text(value: Any) -> str:
    """``value`` as JSON, as short as can be."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def parts(raised: Iterable[str], aborts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Two lists of JSON texts as JSON lists, in as many pairs of lists as MAX_PART asks for; one at least."""
    lists: tuple[list[str], list[str]] = ([], [])
    size = 0
    for which, text in chain(((0, text) for text in raised), ((1, text) for text in aborts)):
        length = len(json.dumps(text))
        if size + length > MAX_PART:
            yield f"[{','.join(lists[0])}]", f"[{','.join(lists[1])}]"
            lists, size = ([], []), 0
        lists[which].append(text)
        size += length
    yield f"[{','.join(lists[0])}]", f"[{','.join(lists[1])}]"


def unit_answer(ask: int, error: ScsiError | None) -> UnitAnswer:
    """The answer to ``ask``; the inverse is ``messages.error_of``."""
    if error is None:
        return UnitAnswer(ask, int(Status.GOOD), "", -1, -1, False)
    if isinstance(error.reason, Status):
        return UnitAnswer(ask, int(error.reason), "", -1, -1, False)
    field_pointer = -1 if error.field is None else error.field
    bit = -1 if error.bit is None else error.bit
    return UnitAnswer(ask, int(Status.CHECK_CONDITION), error.reason.name, field_pointer, bit, error.in_data)
