"""Text Requests in full feature phase (RFC 7143 11.10, 11.11): whole texts out of pieces, long answers in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from iscsid.errors import RejectError
from iscsid.session.connection import TargetConnection
from iscsid.text.codec import TEXT_LIMIT, Collector, Pair, build, parse, split
from iscsid.wire.const import RESERVED_TAG, RejectReason
from iscsid.wire.pdu import TextRequest, TextResponse

Answer = Callable[[Sequence[Pair]], Sequence[Pair]]


class TextExchange:
    """The one text negotiation that a connection may have at a time (section 6.2).

    ``answer`` turns the pairs of a whole request into those of the answer.
    """

    __slots__ = ("_answer", "_collector", "_connection", "_outgoing", "_tag", "_task")

    def __init__(self, connection: TargetConnection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer
        self._collector = Collector(TEXT_LIMIT)
        self._outgoing: deque[bytes] = deque()
        self._task = RESERVED_TAG
        self._tag = 0  # the Target Transfer Tag of the exchange, while it is not at its end

    def request(self, request: TextRequest) -> None:
        """Answer one Text Request. Raises RejectError for one that does not fit."""
        if request.target_transfer_tag == RESERVED_TAG:
            self._begin(request)
        elif request.initiator_task_tag != self._task or request.target_transfer_tag != self._tag:
            raise RejectError(RejectReason.INVALID_PDU_FIELD, "a Text Request of no exchange")
        if self._outgoing:
            if request.data or request.continued:
                raise RejectError(RejectReason.PROTOCOL_ERROR, "text in the middle of our answer")
        else:
            text = self._collector.add(request.data, more=request.continued)
            if text is None:
                self._respond(request, b"", final=False)
                return
            limit = self._connection.parameters.peer_max_recv_data_segment_length
            self._outgoing.extend(split(build(self._answer(parse(text))), limit))
        data = self._outgoing.popleft() if self._outgoing else b""
        self._respond(request, data, final=request.final and not self._outgoing)

    def _begin(self, request: TextRequest) -> None:
        """A new exchange; one that was not brought to its end is forgotten (section 11.10.4)."""
        self._collector = Collector(TEXT_LIMIT)
        self._outgoing.clear()
        self._task = request.initiator_task_tag
        self._tag = (self._tag + 1) % RESERVED_TAG

    def _respond(self, request: TextRequest, data: bytes, *, final: bool) -> None:
        response = TextResponse(
            final=final,
            continued=bool(self._outgoing),
            lun=request.lun,
            initiator_task_tag=request.initiator_task_tag,
            target_transfer_tag=RESERVED_TAG if final else self._tag,
            data=data,
        )
        self._connection.send(response)
