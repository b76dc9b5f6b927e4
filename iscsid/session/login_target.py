"""The target's side of the login phase (RFC 7143 sections 6.3, 11.12 and 11.13), without I/O.

Login Requests go in, Login Responses come out, one for one. A login that fails raises LoginError; ``failure`` makes the
response to send before the connection is closed. Whether the target exists and lets this initiator in is asked through
``authority``; how many logins there may be, and for how long, is the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from iscsid import serial
from iscsid.errors import LocalProtocolError, LoginError, RemoteProtocolError
from iscsid.session.authentication import AcceptNone, Authenticator
from iscsid.session.params import Parameters, settled
from iscsid.text.codec import TEXT_LIMIT, Collector, Pair, build, parse, split
from iscsid.text.keys import AUTHENTICATION_KEYS, DISCOVERY, NORMAL, TARGET_OFFERS, Phase, Role
from iscsid.text.negotiate import Negotiator
from iscsid.wire.const import LOGIN_DATA_LIMIT, PROTOCOL_VERSION, LoginStatus, Stage
from iscsid.wire.pdu import LoginRequest, LoginResponse

REQUEST_LIMIT: Final = 64  # Login Requests in one login; CHAP both ways takes four, a text in small pieces a few more

# CSG -> what NSG may be, section 11.12.3.
TRANSITIONS: Final[Mapping[int, tuple[int, ...]]] = {
    Stage.SECURITY_NEGOTIATION: (Stage.LOGIN_OPERATIONAL_NEGOTIATION, Stage.FULL_FEATURE_PHASE),
    Stage.LOGIN_OPERATIONAL_NEGOTIATION: (Stage.FULL_FEATURE_PHASE,),
}


@dataclass(slots=True, kw_only=True)
class Admission:
    """What an authority says of a login that it lets in; None leaves what the login was made with."""

    offers: Mapping[str, str] | None = None
    alias: str = ""
    portal_group_tag: int = 1
    authenticator: Authenticator | None = None


# (target name, "" in a discovery session; initiator name; session type) -> LoginStatus, 0 for welcome, or an Admission.
Authority = Callable[[str, str, str], "int | Admission"]


class Redirect(LoginError):
    """Raised by an authority to send the initiator elsewhere: ``address`` as in the key TargetAddress."""

    def __init__(self, address: str, *, permanent: bool = False) -> None:
        moved = LoginStatus.TARGET_MOVED_PERMANENTLY if permanent else LoginStatus.TARGET_MOVED_TEMPORARILY
        super().__init__(moved, f"the target is at {address}")
        self.address = address


class TargetLogin:
    """One login on one connection.

    ``tsih`` is the handle that a new session gets. ``rejoin`` judges a request with a TSIH, that is a connection for an
    existing session; without it there is no such session. ``stat_sn`` is the number of the first response,
    ``command_window`` how many commands the initiator may send at once afterwards.

    When ``done``, ``parameters`` is there, and ``stat_sn``, ``exp_cmd_sn`` and ``max_cmd_sn`` are the numbers with
    which the full feature phase goes on; ``negotiator`` then answers text that may be negotiated in it.
    """

    def __init__(
        self,
        authority: Authority,
        *,
        offers: Mapping[str, str] = TARGET_OFFERS,
        tsih: int,
        rejoin: Callable[[LoginRequest], int] | None = None,
        stat_sn: int = 1,
        command_window: int = 128,
        request_limit: int = REQUEST_LIMIT,
        text_limit: int = TEXT_LIMIT,
    ) -> None:
        if not 0 < tsih <= 0xFFFF:
            raise LocalProtocolError(f"TSIH {tsih} is out of range")
        self.done = False
        self.failed = False
        self.stage: int = Stage.SECURITY_NEGOTIATION
        self.stat_sn = stat_sn
        self.exp_cmd_sn = 0
        self.max_cmd_sn = serial.add(0, command_window - 1)
        self.tsih = tsih
        self._authority = authority
        self._rejoin = rejoin
        self._offers = offers
        self._window = command_window
        self._requests_left = request_limit
        self._text_left = text_limit
        self._first: LoginRequest | None = None
        self._moved_to = ""
        self._collector = Collector(text_limit)
        self._outgoing: deque[bytes] = deque()
        self._authenticator: Authenticator = AcceptNone()
        self._negotiator: Negotiator | None = None
        self._parameters: Parameters | None = None

    @property
    def parameters(self) -> Parameters:
        """What was settled; only of a login that is ``done``."""
        if self._parameters is None:
            raise LocalProtocolError("the login is not done")
        return self._parameters

    @property
    def negotiator(self) -> Negotiator:
        """The negotiation so far; only after the first whole text."""
        if self._negotiator is None:
            raise LocalProtocolError("the login has not begun")
        return self._negotiator

    def receive(self, request: LoginRequest) -> list[LoginResponse]:
        """Take the next Login Request and return what answers it. ``request.data`` is not kept."""
        if self.done or self.failed:
            raise LocalProtocolError("the login is over")
        try:
            return [self._step(request)]
        except LoginError as error:
            self.failed = True
            if isinstance(error, Redirect):
                self._moved_to = error.address
            raise
        except RemoteProtocolError as error:
            self.failed = True
            raise LoginError(LoginStatus.INITIATOR_ERROR, str(error)) from error

    def failure(self, request: LoginRequest, status: int) -> LoginResponse:
        """Return the response to ``request`` that ends the login; ``status`` is the LoginError's, or the caller's own
        when it is he who ends it."""
        self.failed = True
        response = self._response(request, build([("TargetAddress", self._moved_to)] if self._moved_to else []))
        response.status = status
        return response

    # One request.

    def _step(self, request: LoginRequest) -> LoginResponse:
        self._check(request)
        if self._outgoing:
            # We are sending a long text in pieces; all the initiator may say is: go on.
            if request.data or request.continued:
                raise RemoteProtocolError("text in the middle of our answer")
        else:
            text = self._collector.add(request.data, more=request.continued)
            if text is None:
                return self._response(request, b"")
            self._outgoing.extend(split(build(self._converse(parse(text))), self._piece()))
        data = self._outgoing.popleft()
        if self._outgoing:
            return self._response(request, data, continued=True)
        if not request.transit or not self._may_leave():
            return self._response(request, data)
        self._enter(request.nsg)
        return self._response(request, data, transit=True)

    def _check(self, request: LoginRequest) -> None:
        self._requests_left -= 1
        self._text_left -= len(request.data)
        if self._requests_left < 0 or self._text_left < 0:
            raise RemoteProtocolError("the login does not come to an end")
        if self._first is None:
            self._begin(request)
        first = self._first
        if first is not None and (request.isid, request.tsih, request.cid) != (first.isid, first.tsih, first.cid):
            raise RemoteProtocolError("ISID, TSIH or CID changed during the login")
        if request.csg != self.stage:
            raise RemoteProtocolError(f"CSG {request.csg} in stage {self.stage}")
        if request.transit and request.continued:
            raise RemoteProtocolError("T and C bit together")
        if request.transit and request.nsg not in TRANSITIONS[self.stage]:
            raise RemoteProtocolError(f"no way from stage {request.csg} to {request.nsg}")

    def _begin(self, request: LoginRequest) -> None:
        if request.version_min > PROTOCOL_VERSION:
            raise LoginError(LoginStatus.UNSUPPORTED_VERSION, f"version {request.version_min} is not supported")
        if request.csg not in TRANSITIONS:
            raise RemoteProtocolError(f"a login cannot begin in stage {request.csg}")
        # A Login Request is immediate, so it uses up no CmdSN: the first command carries the same (11.12.8).
        self.stage = request.csg
        self.exp_cmd_sn = request.cmd_sn
        self.max_cmd_sn = serial.add(request.cmd_sn, self._window - 1)
        if request.tsih:
            status = LoginStatus.SESSION_DOES_NOT_EXIST if self._rejoin is None else self._rejoin(request)
            if status:
                raise LoginError(status, f"TSIH {request.tsih} cannot be joined")
            self.tsih = request.tsih
        # Without its data, which lies in a buffer that is not ours.
        self._first = LoginRequest(isid=request.isid, tsih=request.tsih, cid=request.cid)

    def _piece(self) -> int:
        """How much the initiator takes in one response: 8 KiB, unless it has declared to take less."""
        declared = None if self._negotiator is None else self._negotiator.declared("MaxRecvDataSegmentLength")
        return LOGIN_DATA_LIMIT if declared is None else min(LOGIN_DATA_LIMIT, int(declared))

    # Text.

    def _converse(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return the answer to one whole text."""
        replies: list[Pair] = []
        if self._negotiator is None:
            replies += self._introduce(dict(pairs))
        phase = Phase.of(self.stage)
        credentials = [pair for pair in pairs if pair[0] in AUTHENTICATION_KEYS]
        replies += self.negotiator.answer((pair for pair in pairs if pair[0] not in AUTHENTICATION_KEYS), phase)
        if phase is Phase.SECURITY:
            replies += self._authenticator.receive(credentials)
        elif credentials:
            raise RemoteProtocolError(f"{credentials[0][0]} outside of the security stage")
        else:
            name = "MaxRecvDataSegmentLength"
            replies += self.negotiator.announce(name, self._offers.get(name, TARGET_OFFERS[name]))
        return replies

    def _introduce(self, said: Mapping[str, str]) -> list[Pair]:
        """Find out from the first text who wants what (section 6.3.1, 13.4, 13.5 and 13.21)."""
        session_type = said.get("SessionType", NORMAL)
        if session_type not in (NORMAL, DISCOVERY):
            raise LoginError(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"session type {session_type[:80]!r}")
        initiator, target = said.get("InitiatorName", ""), said.get("TargetName", "")
        if not initiator:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing")
        if session_type == DISCOVERY:
            target = ""
        elif not target:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "TargetName is missing")
        admission = self._authority(target, initiator, session_type)
        if not isinstance(admission, Admission):
            if admission:
                raise LoginError(admission, f"{initiator[:223]!r} is not let in to {target[:223] or 'discovery'!r}")
            admission = Admission()
        return self._admit(admission, session_type)

    def _admit(self, admission: Admission, session_type: str) -> list[Pair]:
        if admission.offers is not None:
            self._offers = admission.offers
        if admission.authenticator is not None:
            self._authenticator = admission.authenticator
        if self.stage != Stage.SECURITY_NEGOTIATION and not self._authenticator.done:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, "the security stage may not be skipped")
        leading = self._first is None or not self._first.tsih
        self._negotiator = Negotiator(Role.TARGET, session_type, self._offers, leading=leading)
        if session_type == DISCOVERY:
            return []
        pairs = self._negotiator.announce("TargetPortalGroupTag", str(admission.portal_group_tag))
        if admission.alias:
            pairs += self._negotiator.announce("TargetAlias", admission.alias)
        return pairs

    # Stages.

    def _may_leave(self) -> bool:
        if self.stage == Stage.SECURITY_NEGOTIATION:
            return self._authenticator.done
        return not self.negotiator.waiting

    def _enter(self, stage: int) -> None:
        self.stage = stage
        if stage != Stage.FULL_FEATURE_PHASE or self._first is None:
            return
        if self.negotiator.unmet:
            raise RemoteProtocolError(f"{' and '.join(self.negotiator.unmet)} must not be None here")
        self.done = True
        self._parameters = settled(self.negotiator, isid=self._first.isid, tsih=self.tsih, cid=self._first.cid)

    def _response(
        self, request: LoginRequest, data: bytes, *, transit: bool = False, continued: bool = False
    ) -> LoginResponse:
        response = LoginResponse(
            transit=transit,
            continued=continued,
            csg=request.csg,
            nsg=request.nsg if transit else 0,
            version_max=PROTOCOL_VERSION,
            version_active=PROTOCOL_VERSION,
            isid=request.isid,
            tsih=self.tsih if self.done else request.tsih,
            initiator_task_tag=request.initiator_task_tag,
            stat_sn=self.stat_sn,
            exp_cmd_sn=self.exp_cmd_sn,
            max_cmd_sn=self.max_cmd_sn,
            data=data,
        )
        self.stat_sn = serial.add(self.stat_sn, 1)
        return response
