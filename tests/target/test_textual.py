"""target.textual: texts in pieces either way, exchanges that end, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from helpers import Pair

from iscsid.errors import RejectError, RemoteProtocolError
from iscsid.target.textual import TextExchange
from iscsid.text.codec import TEXT_LIMIT, build, parse
from iscsid.wire.const import RESERVED_TAG, RejectReason
from iscsid.wire.pdu import TextRequest, TextResponse

LONG = [("TargetName", f"iqn.2026-11.org.iscsid:disk{number:04}") for number in range(60)]


class Talk:
    """An exchange that asks ``answer``, and what it was asked."""

    def __init__(self, answer: Sequence[tuple[str, str]] = (), segment: int = 512) -> None:
        self.pair = Pair({"MaxRecvDataSegmentLength": str(segment)})
        self.asked: list[list[tuple[str, str]]] = []
        self._answer = answer
        self.exchange = TextExchange(self.pair.connection, self._ask)

    def _ask(self, pairs: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        self.asked.append(list(pairs))
        return self._answer

    def say(self, data: bytes = b"", **fields: Any) -> TextResponse:
        self.exchange.request(TextRequest(data=data, **{"initiator_task_tag": 5, "lun": 3 << 48, **fields}))
        (response,) = self.pair.receive()
        assert isinstance(response, TextResponse)
        assert (response.initiator_task_tag, response.lun) == (fields.get("initiator_task_tag", 5), 3 << 48)
        return response

    def refused(self, data: bytes = b"", **fields: Any) -> int:
        with pytest.raises(RejectError) as caught:
            self.exchange.request(TextRequest(data=data, **{"initiator_task_tag": 5, **fields}))
        assert not caught.value.fatal
        assert self.pair.receive() == []
        return caught.value.reason


def test_text_in_one_piece_is_answered_in_one() -> None:
    talk = Talk([("TargetName", "iqn.x:y")])
    response = talk.say(build([("SendTargets", "All")]))
    assert talk.asked == [[("SendTargets", "All")]]
    assert (response.final, response.continued, response.target_transfer_tag) == (True, False, RESERVED_TAG)
    assert parse(response.data) == [("TargetName", "iqn.x:y")]


def test_empty_text_has_an_empty_answer() -> None:
    talk = Talk()
    response = talk.say()
    assert (response.final, response.data, talk.asked) == (True, b"", [[]])


def test_long_answer_comes_in_pieces_each_asked_for() -> None:
    talk = Talk(LONG)
    response = talk.say(build([("SendTargets", "All")]))
    text = b""
    while response.continued:
        assert not response.final and response.target_transfer_tag != RESERVED_TAG
        assert len(response.data) <= 512
        text += response.data
        response = talk.say(target_transfer_tag=response.target_transfer_tag)
    assert response.final and response.target_transfer_tag == RESERVED_TAG
    assert parse(text + response.data) == LONG
    assert len(talk.asked) == 1


def test_text_in_pieces_is_put_together() -> None:
    talk = Talk([("X-a", "1")])
    text = build([("SendTargets", "All"), ("X-org.example", "v" * 100)])
    first = talk.say(text[:20], continued=True, final=False)
    assert (first.final, first.continued, first.data) == (False, False, b"")
    second = talk.say(text[20:50], continued=True, final=False, target_transfer_tag=first.target_transfer_tag)
    third = talk.say(text[50:], target_transfer_tag=second.target_transfer_tag)
    assert third.final and parse(third.data) == [("X-a", "1")]
    assert talk.asked == [[("SendTargets", "All"), ("X-org.example", "v" * 100)]]


def test_exchange_goes_on_until_the_initiator_ends_it() -> None:
    talk = Talk()
    first = talk.say(build([("X-one", "1")]), final=False)
    assert not first.final and first.target_transfer_tag != RESERVED_TAG
    last = talk.say(build([("X-two", "2")]), target_transfer_tag=first.target_transfer_tag)
    assert last.final and talk.asked == [[("X-one", "1")], [("X-two", "2")]]


def test_every_exchange_has_a_tag_of_its_own() -> None:
    talk = Talk()
    tags = {talk.say(final=False, initiator_task_tag=tag).target_transfer_tag for tag in range(5)}
    assert len(tags) == 5


def test_new_exchange_takes_the_place_of_one_that_is_not_at_its_end() -> None:
    talk = Talk(LONG)
    first = talk.say(build([("SendTargets", "All")]))
    second = talk.say(build([("SendTargets", "All")]))
    assert second.data == first.data
    assert talk.refused(target_transfer_tag=first.target_transfer_tag) == RejectReason.INVALID_PDU_FIELD


def test_half_a_text_is_forgotten_by_a_new_exchange() -> None:
    talk = Talk()
    talk.say(b"SendTargets=", continued=True, final=False)
    talk.say(build([("X-new", "1")]), initiator_task_tag=6)
    assert talk.asked == [[("X-new", "1")]]


# What does not fit.


@pytest.mark.parametrize("fields", [{"target_transfer_tag": 0}, {"target_transfer_tag": 1}])
def test_request_of_no_exchange_is_rejected(fields: dict[str, int]) -> None:
    talk = Talk()
    assert talk.refused(**fields) == RejectReason.INVALID_PDU_FIELD
    assert talk.refused(initiator_task_tag=RESERVED_TAG, **fields) == RejectReason.INVALID_PDU_FIELD


def test_request_of_another_task_is_rejected_and_the_exchange_goes_on() -> None:
    talk = Talk(LONG)
    tag = talk.say(build([("SendTargets", "All")])).target_transfer_tag
    assert talk.refused(initiator_task_tag=6, target_transfer_tag=tag) == RejectReason.INVALID_PDU_FIELD
    assert talk.say(target_transfer_tag=tag).data


def test_exchange_that_ended_is_over() -> None:
    talk = Talk()
    tag = talk.say(final=False).target_transfer_tag
    assert talk.say(target_transfer_tag=tag).final
    assert talk.refused(target_transfer_tag=tag) == RejectReason.INVALID_PDU_FIELD


@pytest.mark.parametrize("fields", [{"data": b"X-a=1\0"}, {"continued": True, "final": False}])
def test_text_in_the_middle_of_an_answer_is_rejected(fields: dict[str, Any]) -> None:
    talk = Talk(LONG)
    tag = talk.say(build([("SendTargets", "All")])).target_transfer_tag
    assert talk.refused(target_transfer_tag=tag, **fields) == RejectReason.PROTOCOL_ERROR
    assert talk.refused(target_transfer_tag=tag) == RejectReason.INVALID_PDU_FIELD


def test_final_and_continue_together_are_rejected() -> None:
    assert Talk().refused(b"X-a=", continued=True, final=True) == RejectReason.PROTOCOL_ERROR


def test_key_that_comes_twice_is_rejected_before_it_is_answered() -> None:
    talk = Talk(LONG)
    assert talk.refused(build([("SendTargets", "All")] * 200)) == RejectReason.PROTOCOL_ERROR
    assert talk.asked == []
    assert talk.say(build([("SendTargets", "All")])).data


def test_text_without_end_is_cut_off() -> None:
    talk = Talk()
    tag = RESERVED_TAG
    with pytest.raises(RemoteProtocolError, match="longer than"):
        for _ in range(TEXT_LIMIT // 8192 + 1):
            tag = talk.say(bytes(8192), continued=True, final=False, target_transfer_tag=tag).target_transfer_tag


@pytest.mark.parametrize("data", [b"no pair\0", b"\xff=1\0", b"=1\0"])
def test_text_that_is_none_ends_the_connection(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Talk().say(data)
