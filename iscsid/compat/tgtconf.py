"""tgt's ``targets.conf``, as tgt-admin(8) reads it, to a draft of a configuration.

LUN numbers are kept: tgt has a controller at LUN 0, and its disks begin at 1.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from iscsid.compat.draft import Draft, Table, auth, disk

_OPENING: Final = re.compile(r"<\s*([\w-]+)\s*(.*?)\s*>")
_CLOSING: Final = re.compile(r"<\s*/\s*([\w-]+)\s*>")
_STORES: Final = ("backing-store", "direct-store")
_YES: Final = frozenset(["1", "yes", "on", "true"])
#: Words that ask for nothing that is not done anyway, or that have no meaning here.
_SILENT: Final = frozenset(["driver", "default-driver", "controller_tid", "ignore-errors", "scsi_id", "write-cache"])
_PARAMETERS: Final = frozenset(
    (
        "HeaderDigest",
        "DataDigest",
        "InitialR2T",
        "ImmediateData",
        "MaxRecvDataSegmentLength",
        "MaxBurstLength",
        "FirstBurstLength",
        "MaxOutstandingR2T",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
    )
)
#: What is said of a disk, in its block or, for all of them, in the target's.
_DISK_WORDS: Final = frozenset(
    (
        "vendor_id",
        "product_id",
        "product_rev",
        "scsi_sn",
        "removable",
        "readonly",
        "lun",
        "device-type",
        "bs-type",
        "block-size",
    )
)
_TEXTS: Final = (("vendor_id", "vendor", 8), ("product_id", "product", 16), ("scsi_sn", "serial", 36))
FIRST_LUN: Final = 1


@dataclass(slots=True)
class Block:
    """``<word value> ... </word>``, or a single line; ``entries`` are those within."""

    line: int
    word: str
    value: str
    entries: list[Block] = field(default_factory=list)

    def all(self, *words: str) -> Iterator[Block]:
        return (entry for entry in self.entries if entry.word in words)

    def last(self, word: str) -> Block | None:
        return next((entry for entry in reversed(self.entries) if entry.word == word), None)


def parse(text: str, draft: Draft) -> Block:
    """Return the file as a tree; what cannot be understood is noted."""
    root = Block(0, "", "")
    open_blocks = [root]
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        if closing := _CLOSING.fullmatch(line):
            if len(open_blocks) > 1 and open_blocks[-1].word == closing[1].lower():
                open_blocks.pop()
            else:
                draft.note(number, f"</{closing[1]}> closes nothing")
        elif opening := _OPENING.fullmatch(line):
            block = Block(number, opening[1].lower(), opening[2])
            open_blocks[-1].entries.append(block)
            open_blocks.append(block)
        else:
            word, _, value = re.sub(r"\s*=\s*|\s+", " ", line, count=1).partition(" ")
            open_blocks[-1].entries.append(Block(number, word, value.strip().strip('"')))
    for block in open_blocks[1:]:
        draft.note(block.line, f"<{block.word}> is not closed")
    return root


def read(text: str) -> Draft:
    """Return what a configuration of iscsid can say of it."""
    draft = Draft()
    root = parse(text, draft)
    for entry in root.entries:
        if entry.word == "target":
            draft.targets.append(_target(draft, entry))
        elif entry.word == "include":
            draft.note(entry.line, f"include {entry.value}: import those files by themselves")
        elif entry.word not in _SILENT and not entry.word.endswith("discoveryuser"):
            draft.note(entry.line, f"{entry.word} is not translated")
    incoming = [_account(entry) for entry in root.all("incomingdiscoveryuser")]
    outgoing = root.last("outgoingdiscoveryuser")
    if incoming:
        draft.discovery = auth(draft, 1, incoming, _account(outgoing) if outgoing else None)
    return draft


def _account(entry: Block) -> tuple[str, str]:
    user, _, secret = entry.value.partition(" ")
    return user.strip('"'), secret.strip().strip('"')


def _target(draft: Draft, block: Block) -> Table:
    table: Table = {"name": block.value}
    _guests(draft, block, table)
    outgoing = block.last("outgoinguser")
    found = auth(draft, block.line, map(_account, block.all("incominguser")), _account(outgoing) if outgoing else None)
    if found is not None:
        table["auth"] = found
    parameters = {entry.word: _parameter(entry.value) for entry in block.entries if entry.word in _PARAMETERS}
    if parameters:
        table["parameters"] = parameters
    luns = list(_luns(draft, block))
    if luns:
        table["lun"] = luns
    known = {*_STORES, *_SILENT, *_PARAMETERS, "incominguser", "outgoinguser", "initiator-address", "initiator-name"}
    for entry in block.entries:
        if entry.word not in known and entry.word not in _DISK_WORDS:
            draft.note(entry.line, f"{entry.word} is not translated")
    return table


def _parameter(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _guests(draft: Draft, block: Block, table: Table) -> None:
    networks: list[str] = []
    for entry in block.all("initiator-address"):
        if entry.value.upper() == "ALL":
            networks = []
            break
        try:
            networks.append(str(ipaddress.ip_network(entry.value, strict=False)))
        except ValueError:
            draft.note(entry.line, f"initiator-address {entry.value} is no address: not let in")
            networks.append("0.0.0.0/32")
    initiators = [entry.value for entry in block.all("initiator-name")]
    if networks:
        table["networks"] = list(dict.fromkeys(networks))
    if initiators:
        table["initiators"] = list(dict.fromkeys(initiators))
    if networks and initiators:
        draft.note(block.line, "an initiator needs both a name and an address of those named")


def _luns(draft: Draft, target: Block) -> Iterator[Table]:
    stores = list(target.all(*_STORES))
    taken = {int(number.value) for store in stores if (number := store.last("lun")) and number.value.isdecimal()}
    free = (number for number in range(FIRST_LUN, 1 << 14) if number not in taken)
    for store in stores:
        number = store.last("lun")
        lun = int(number.value) if number and number.value.isdecimal() else next(free)
        facts = {entry.word: entry for owner in (target, store) for entry in owner.entries}
        table = _disk(draft, store, facts)
        if table is not None:
            yield {"lun": lun, **table}


def _disk(draft: Draft, store: Block, facts: Mapping[str, Block]) -> Table | None:
    values = {word: entry.value for word, entry in facts.items()}
    kind, store_type = values.get("device-type", "disk"), values.get("bs-type", "rdwr")
    if kind not in ("disk", "cd") or store_type not in ("rdwr", "aio"):
        draft.note(store.line, f"{store.value}: device-type {kind}, bs-type {store_type}: left out")
        return None
    table = disk(draft, store.line, store.value)
    if store.word == "direct-store":
        draft.note(store.line, f"{store.value}: its own INQUIRY data are not shown")
    if kind == "cd":
        draft.note(store.line, f"{store.value}: a disk that is read-only and removable, not a CD")
        table |= {"readonly": True, "removable": True}
    table |= {key: values[word][:longest] for word, key, longest in _TEXTS if values.get(word)}
    table |= {word: True for word in ("readonly", "removable") if values.get(word, "").lower() in _YES}
    if values.get("block-size", "").isdecimal():
        table["block_size"] = int(values["block-size"])
    for entry in store.entries:
        if entry.word not in _DISK_WORDS and entry.word not in _SILENT:
            draft.note(entry.line, f"{entry.word} is not translated")
    return table
