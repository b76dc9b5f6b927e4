"""Invariant: what encodes decodes to an equal message, and nothing else decodes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import BlockError, Fault, LocalProtocolError, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import Reason
from iscsid.shared import messages
from iscsid.shared.messages import (
    AskReset,
    AskUnit,
    Beat,
    BootFailed,
    Commit,
    Connect,
    Drop,
    Held,
    Hold,
    Lend,
    Message,
    Poll,
    Ready,
    Revise,
    Revised,
    SanitizeOver,
    SessionClosed,
    SessionFigures,
    SessionInfo,
    SessionOpened,
    Stop,
    Stopped,
    Undo,
    UnitAnswer,
    UnitApplied,
    UnitHealth,
    UpdateUnit,
    Withdraw,
    Work,
    Worked,
    decode,
    encode,
    failure_of,
    failure_text,
)

INFO = SessionInfo(
    initiator="iqn.2026-11.org.example:host",
    isid=0x80123456789A,
    target="iqn.2026-11.org.iscsid:disk0",
    peer="[::1]:40000",
    portal="[::1]:3260",
    initiator_alias="the café's host",
    header_digest=True,
    max_burst_length=1 << 20,
)
EXAMPLES = [
    Connect(7, "iqn.x:host", 0x800000000001, "iqn.x:disk", "127.0.0.1:40000", "127.0.0.1:3260"),
    Drop(65535, "reinstated"),
    Stop(10.0),
    Poll(),
    Lend(3, 1),
    Hold(3, '[["iqn.x:disk",1]]', False),
    Work(3, "iqn.x:disk", 1, "snapshot", '{"action":"create","name":"x"}'),
    Revise(3),
    Commit(3),
    Undo(3),
    Revised(3, False, "disk0 LUN 1: no such file"),
    Held(3, "disk0 LUN 1: flush failed"),
    Worked(3, '{"snapshots":[]}'),
    UpdateUnit("SERIAL1", 3, '{"mode":null}', '[[["iqn.x:host",1,"iqn.x:disk",1],"NOT_READY"]]', '"all"', "reset"),
    UnitAnswer(4, 2, "INVALID_FIELD_IN_CDB", 1, 4, False),
    AskUnit(4, "SERIAL1", "iqn.x:host", 0x800000000001, "iqn.x:disk", 1, "5f06", "00" * 24),
    AskReset(5, "", "iqn.x:host", 0x800000000001, "iqn.x:disk", 1, 6),
    Withdraw(4),
    SanitizeOver(6, "SERIAL1", True),
    UnitApplied("SERIAL1", 3),
    UnitHealth("iqn.x:disk", 3, hanging=2, since=0.5, kind="read", reason="bad sector", at=1.5, size=512),
    Ready(),
    BootFailed("lun 0: No such file"),
    SessionOpened(7, INFO),
    SessionClosed(7, "logout"),
    SessionFigures(7, 10**12, 1 << 60, 0),
    Beat(3, 10, 4096, 512, 0.25),
    Stopped(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_message_encoded_and_decoded_is_equal(message: Message) -> None:
    assert decode(encode(message)) == message
    assert type(decode(encode(message))) is type(message)


def test_examples_cover_the_vocabulary() -> None:
    assert {type(message) for message in EXAMPLES} == set(get_args(Message))


def test_session_info_survives_nested() -> None:
    opened = decode(encode(SessionOpened(1, INFO)))
    assert isinstance(opened, SessionOpened)
    assert isinstance(opened.info, SessionInfo)
    assert opened.info == INFO


def test_every_field_is_decoded_with_its_type() -> None:
    """An int for a float is no error (JSON has one kind of number); any other type is."""
    assert decode(b'["Stop",{"deadline_seconds":3}]') == Stop(3.0)
    for message in EXAMPLES:
        name, values = json.loads(encode(message))
        for key, value in values.items():
            wrong = {**values, key: [value]}
            with pytest.raises(LocalProtocolError, match=key if key != "info" else "SessionInfo"):
                decode(json.dumps([name, wrong]).encode())


def test_true_for_an_int_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="tsih"):
        decode(b'["Drop",{"tsih":true,"reason":""}]')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'["Connect"]',
        b'["Ready",{},1]',
        b'["Ready",[]]',
        b'["Ready",{"more":1}]',
        b'["Drop",{"tsih":1}]',
        b'["Nothing",{}]',
        b'[["Ready"],{}]',
        b'{"Ready":{}}',
        b"\xff\xfe",
        b"[" * 15000,
    ],
)
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        decode(data)


def test_longest_names_fit_into_a_message() -> None:
    name = "\u20ac" * 223  # each character becomes six bytes of JSON
    info = dataclasses.replace(INFO, initiator=name, target=name, initiator_alias="\u20ac" * 255)
    assert len(encode(SessionOpened(65535, info))) <= messages.MAX_MESSAGE


def test_longest_parameters_fit_into_a_message() -> None:
    name = "\u20ac" * 223
    ask = AskUnit(1 << 62, "S" * 36, name, 1, name, 1, "ff" * 16, "ff" * messages.MAX_PARAMETERS)
    assert len(encode(ask)) <= messages.MAX_MESSAGE


def test_message_beyond_the_limit_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="longer than"):
        encode(Drop(1, "x" * messages.MAX_MESSAGE))


@given(st.text(max_size=300), st.integers(0, 65535))
def test_any_text_survives(text: str, tsih: int) -> None:
    message = SessionClosed(tsih, text)
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_the_one_error(data: bytes) -> None:
    with contextlib.suppress(LocalProtocolError):
        decode(data)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EIO, "broken"), "WRITE_ERROR"),
        (BlockError(Fault.BUSY), "BUSY"),
        (ScsiError(Reason.COMMAND_TIMEOUT_DURING_PROCESSING), "COMMAND_TIMEOUT_DURING_PROCESSING"),
        (ZeroDivisionError(), "INTERNAL_TARGET_FAILURE"),
    ],
)
def test_failure_of_a_flush_goes_by_its_name(error: Exception, text: str) -> None:
    assert failure_text(error) == text
    assert failure_of(text).reason.name == text


def test_reasons_and_statuses_have_different_names() -> None:
    assert not Reason.__members__.keys() & Status.__members__.keys()
