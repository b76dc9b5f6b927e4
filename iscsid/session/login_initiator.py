"""The initiator's side of the login phase (RFC 7143 sections 6.3, 11.12 and 11.13), without I/O.

``start`` gives the first Login Request, ``receive`` what follows each Login Response. All that a target can do wrong
raises RemoteProtocolError; a target that says no raises LoginFailed, which is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from iscsid import serial
from iscsid.errors import LocalProtocolError, RemoteProtocolError
from iscsid.session.authentication import Authenticator, OfferNone
from iscsid.session.params import Parameters, settled
from iscsid.text.codec import TEXT_LIMIT, Collector, Pair, build, parse, split
from iscsid.text.keys import AUTHENTICATION_KEYS, DISCOVERY, INITIATOR_OFFERS, NORMAL, Phase, Role
from iscsid.text.negotiate import Negotiator
from iscsid.wire.const import LOGIN_DATA_LIMIT, PROTOCOL_VERSION, LoginStatus, Stage
from iscsid.wire.pdu import LoginRequest, LoginResponse

RESPONSE_LIMIT: Final = 64  # Login Responses in one login; see login_target.REQUEST_LIMIT

_NEXT: Final[Mapping[int, int]] = {
    Stage.SECURITY_NEGOTIATION: Stage.LOGIN_OPERATIONAL_NEGOTIATION,
    Stage.LOGIN_OPERATIONAL_NEGOTIATION: Stage.FULL_FEATURE_PHASE,
}
_STATUS_NAMES: Final[Mapping[int, str]] = {int(status): status.name.lower().replace("_", " ") for status in LoginStatus}


class LoginFailed(RemoteProtocolError):
    """The target refused; ``status`` is Status-Class << 8 | Status-Detail (section 11.13.5).

    ``address`` is the TargetAddress of a target that moved (class 1), else "".
    """

    def __init__(self, status: int, address: str = "") -> None:
        self.status = status
        self.address = address
        reason = _STATUS_NAMES.get(status, f"status 0x{status:04x}")
        super().__init__(f"login failed: {reason}" + (f" ({address})" if address else ""))

    @property
    def moved(self) -> bool:
        """Whether to try again at ``address``."""
        return self.status >> 8 == 1 and bool(self.address)


class InitiatorLogin:
    """One login on one connection; ``target_name`` None asks for a discovery session.

    ``cmd_sn`` is the number of the first command of the session. ``skip_security`` begins in the operational stage, as
    an initiator without credentials may.

    When ``done``, ``parameters`` is there, and ``cmd_sn``, ``exp_stat_sn``, ``exp_cmd_sn`` and ``max_cmd_sn`` are the
    numbers with which the full feature phase goes on.
    """

    def __init__(
        self,
        initiator_name: str,
        target_name: str | None,
        *,
        isid: int,
        offers: Mapping[str, str] = INITIATOR_OFFERS,
        initiator_alias: str = "",
        authenticator: Authenticator | None = None,
        skip_security: bool = False,
        tsih: int = 0,
        cid: int = 0,
        cmd_sn: int = 1,
        initiator_task_tag: int = 0,
        response_limit: int = RESPONSE_LIMIT,
    ) -> None:
        if skip_security and authenticator is not None and not authenticator.done:
            raise LocalProtocolError("credentials need the security stage")
        self.done = False
        self.stage: int = Stage.LOGIN_OPERATIONAL_NEGOTIATION if skip_security else Stage.SECURITY_NEGOTIATION
        self.isid = isid
        self.tsih = tsih
        self.cid = cid
        self.cmd_sn = cmd_sn
        self.exp_stat_sn = 0
        self.exp_cmd_sn = cmd_sn
        self.max_cmd_sn = cmd_sn
        self._task_tag = initiator_task_tag
        self._responses_left = response_limit
        self._collector = Collector(TEXT_LIMIT)
        self._outgoing: deque[bytes] = deque()
        self._asked = False  # the T bit of our last request
        self._authenticator: Authenticator = OfferNone() if authenticator is None else authenticator
        self._parameters: Parameters | None = None
        session_type = DISCOVERY if target_name is None else NORMAL
        self._negotiator = Negotiator(Role.INITIATOR, session_type, offers, leading=not tsih)
        self._identity = [("InitiatorName", initiator_name), ("SessionType", session_type)]
        if initiator_alias:
            self._identity.append(("InitiatorAlias", initiator_alias))
        if target_name is not None:
            self._identity.append(("TargetName", target_name))

    @property
    def parameters(self) -> Parameters:
        """What was settled; only of a login that is ``done``."""
        if self._parameters is None:
            raise LocalProtocolError("the login is not done")
        return self._parameters

    @property
    def negotiator(self) -> Negotiator:
        """The negotiation, which may go on in the full feature phase."""
        return self._negotiator

    def start(self) -> LoginRequest:
        """Return the first request."""
        pairs: list[Pair] = []
        for name, text in self._identity:
            pairs += self._negotiator.announce(name, text)
        if self.stage == Stage.SECURITY_NEGOTIATION:
            pairs += self._authenticator.offer()
        else:
            pairs += self._negotiator.propose(Phase.OPERATIONAL)
        return self._say(pairs)

    def receive(self, response: LoginResponse) -> list[LoginRequest]:
        """Take the response to our last request; return the next request, or nothing when the login is done."""
        if self.done:
            raise LocalProtocolError("the login is over")
        self._check(response)
        if self._outgoing:
            if response.data or response.transit or response.continued:
                raise RemoteProtocolError("the target answers before it has heard all")
            return [self._request()]
        text = self._collector.add(response.data, more=response.continued)
        if text is None:
            return [self._say([])]
        replies = self._hear(parse(text))
        if not response.transit:
            return [self._say(replies)]
        if replies:
            raise RemoteProtocolError(f"the stage ends with {replies[0][0]} unsettled")
        return self._enter(response)

    # What the target says.

    def _check(self, response: LoginResponse) -> None:
        self._responses_left -= 1
        if self._responses_left < 0:
            raise RemoteProtocolError("the login does not come to an end")
        if response.status >> 8:
            raise LoginFailed(response.status, self._address(response))
        if response.isid != self.isid or response.initiator_task_tag != self._task_tag:
            raise RemoteProtocolError("a Login Response to somebody else")
        if response.version_active != PROTOCOL_VERSION:
            raise RemoteProtocolError(f"the target speaks version {response.version_active}")
        if response.csg != self.stage:
            raise RemoteProtocolError(f"CSG {response.csg} in stage {self.stage}")
        if response.transit and (response.continued or not self._asked or response.nsg != _NEXT[self.stage]):
            raise RemoteProtocolError("a stage transition that was not asked for")
        self.exp_stat_sn = serial.add(response.stat_sn, 1)
        self.exp_cmd_sn = response.exp_cmd_sn
        self.max_cmd_sn = response.max_cmd_sn

    def _address(self, response: LoginResponse) -> str:
        try:
            return dict(parse(response.data)).get("TargetAddress", "")
        except RemoteProtocolError:
            return ""  # the status is what matters, and it is known

    def _hear(self, pairs: list[Pair]) -> list[Pair]:
        phase = Phase.of(self.stage)
        credentials = [pair for pair in pairs if pair[0] in AUTHENTICATION_KEYS]
        replies = self._negotiator.answer((pair for pair in pairs if pair[0] not in AUTHENTICATION_KEYS), phase)
        if phase is Phase.SECURITY:
            replies += self._authenticator.receive(credentials)
        elif credentials:
            raise RemoteProtocolError(f"{credentials[0][0]} outside of the security stage")
        return replies

    def _enter(self, response: LoginResponse) -> list[LoginRequest]:
        self.stage = response.nsg
        if self.stage != Stage.FULL_FEATURE_PHASE:
            return [self._say(self._negotiator.propose(Phase.of(self.stage)))]
        if not response.tsih or (self.tsih and response.tsih != self.tsih):
            raise RemoteProtocolError(f"the target names the session {response.tsih}")
        if self._negotiator.unmet:
            raise RemoteProtocolError(f"the target does not do {' and '.join(self._negotiator.unmet)}")
        # A proposal that got no answer stands at its default: targets that pass over a key they do not know do so.
        self.tsih = response.tsih
        self.done = True
        self._parameters = settled(self._negotiator, isid=self.isid, tsih=self.tsih, cid=self.cid)
        return []

    # What we say.

    def _say(self, pairs: list[Pair]) -> LoginRequest:
        self._outgoing.extend(split(build(pairs), LOGIN_DATA_LIMIT))
        return self._request()

    def _request(self) -> LoginRequest:
        data = self._outgoing.popleft()
        continued = bool(self._outgoing)
        ready = self.stage != Stage.SECURITY_NEGOTIATION or self._authenticator.done
        self._asked = ready and not continued
        return LoginRequest(
            transit=self._asked,
            continued=continued,
            csg=self.stage,
            nsg=_NEXT[self.stage] if self._asked else 0,
            version_max=PROTOCOL_VERSION,
            version_min=PROTOCOL_VERSION,
            isid=self.isid,
            tsih=self.tsih,
            initiator_task_tag=self._task_tag,
            cid=self.cid,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=self.exp_stat_sn,
            data=data,
        )
