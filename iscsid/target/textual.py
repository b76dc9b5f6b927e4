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

    __slots__ = ("_answer", "_collector", "_connection", "_open", "_outgoing", "_tag", "_task")

    def __init__(self, connection: TargetConnection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer
        self._collector = Collector(TEXT_LIMIT)
        self._outgoing: deque[bytes] = deque()
        self._open = False  # an exchange is under way, of which these are the tags
        self._task = RESERVED_TAG
        self._tag = 0

    def request(self, request: TextRequest) -> None:
        """Answer one Text Request.

        Raises RejectError for one that does not fit, which ends the exchange, RemoteProtocolError for one that cannot
        be understood.
        """
        if request.target_transfer_tag == RESERVED_TAG:
            self._begin(request)
        elif (request.initiator_task_tag, request.target_transfer_tag) != (self._task, self._tag) or not self._open:
            raise RejectError(RejectReason.INVALID_PDU_FIELD, "a Text Request of no exchange")
        if request.continued and request.final:
            raise self._broken("F and C bit together")
        if self._outgoing:
            if request.data or request.continued:
                raise self._broken("text in the middle of our answer")
        else:
            text = self._collector.add(request.data, more=request.continued)
            if text is None:
                self._respond(request, b"", final=False)
                return
            limit = self._connection.parameters.peer_max_recv_data_segment_length
            self._outgoing.extend(split(build(self._answer(self._pairs(text))), limit))
        data = self._outgoing.popleft()
        self._respond(request, data, final=request.final and not self._outgoing)

    def _begin(self, request: TextRequest) -> None:
        """A new exchange; one that was not brought to its end is forgotten (section 11.10.4)."""
        self._collector = Collector(TEXT_LIMIT)
        self._outgoing.clear()
        self._open = True
        self._task = request.initiator_task_tag
        self._tag = (self._tag + 1) % RESERVED_TAG

    def _pairs(self, text: bytes) -> list[Pair]:
        """Return what a text says; no key may come twice in it (section 6.2), which also bounds the answer."""
        pairs = parse(text)
        if len({key for key, _ in pairs}) < len(pairs):
            raise self._broken("a key comes twice")
        return pairs

    def _broken(self, reason: str) -> RejectError:
        self._open = False
        return RejectError(RejectReason.PROTOCOL_ERROR, reason)

    def _respond(self, request: TextRequest, data: bytes, *, final: bool) -> None:
        self._open = not final
        response = TextResponse(
            final=final,
            continued=bool(self._outgoing),
            lun=request.lun,
            initiator_task_tag=request.initiator_task_tag,
            target_transfer_tag=RESERVED_TAG if final else self._tag,
            data=data,
        )
        self._connection.send(response)
