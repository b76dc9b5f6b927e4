"""The golden PDUs, for every test that asks for one: ``golden``, ``golden_request`` or ``golden_response``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli

from iscsid.wire import pdu as pdus
from iscsid.wire.digest import crc32c_python

GOLDEN = Path(__file__).parent / "pdus" / "golden.toml"
HEX_FIELDS = ("cdb", "ahs")


@dataclass(frozen=True)
class Golden:
    """One PDU: the bytes a hand has written, and what they say."""

    name: str
    cls: type[pdus.Pdu]
    header: bytes
    data: bytes
    fields: dict[str, Any] = field(repr=False)

    def build(self) -> pdus.Pdu:
        return self.cls(**self.fields, data=self.data)

    def wire(self, *, header_digest: bool = False, data_digest: bool = False) -> bytes:
        """The whole PDU as a stream carries it."""
        sent = self.header
        if header_digest:
            sent += crc32c_python(self.header).to_bytes(4, "little")
        if self.data:
            segment = self.data + bytes(-len(self.data) % 4)
            sent += segment
            if data_digest:
                sent += crc32c_python(segment).to_bytes(4, "little")
        return sent


def load() -> list[Golden]:
    return [
        Golden(
            name=entry["name"],
            cls=getattr(pdus, entry["class"]),
            header=bytes.fromhex(entry["wire"]),
            data=bytes.fromhex(entry.get("data", "")),
            fields={
                key: bytes.fromhex(value) if key in HEX_FIELDS else value for key, value in entry["fields"].items()
            },
        )
        for entry in tomli.loads(GOLDEN.read_text())["pdu"]
    ]


ALL = load()
KINDS = {
    "golden": ALL,
    "golden_request": [golden for golden in ALL if golden.cls.opcode in pdus.TARGET_RECEIVES],
    "golden_response": [golden for golden in ALL if golden.cls.opcode in pdus.INITIATOR_RECEIVES],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cases in KINDS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases, ids=[golden.name for golden in cases])


@pytest.fixture(scope="session")
def all_requests() -> list[Golden]:
    return KINDS["golden_request"]


@pytest.fixture(scope="session")
def all_responses() -> list[Golden]:
    return KINDS["golden_response"]
