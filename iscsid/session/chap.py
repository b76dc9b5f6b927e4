"""CHAP in the security stage, for either role (RFC 7143 sections 9.2.1 and 12.1.3).

One object serves one login. Both take their random bytes as ``nonce`` (``text.chap.NONCE_LENGTH`` of them, fresh for
every login), and neither shows a secret: not in its repr, not in an error.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final

from iscsid.errors import LocalProtocolError, LoginError, RemoteProtocolError
from iscsid.text import chap
from iscsid.text.chap import Account
from iscsid.text.codec import Pair, format_binary
from iscsid.text.keys import KEYS
from iscsid.wire.const import LoginStatus

SecretOf = Callable[[str], bytes | None]
"""User name -> secret, None for nobody we know."""

_METHOD: Final = "AuthMethod"
_CHAP: Final = "CHAP"
_PROOF: Final = frozenset({"CHAP_N", "CHAP_R"})
_COUNTER_CHALLENGE: Final = frozenset({"CHAP_I", "CHAP_C"})


class AuthenticationFailed(RemoteProtocolError):
    """A target that did not prove who it is, or that cannot be authenticated to as we were told to."""


class _Step(enum.Enum):
    METHOD = "the method"
    ALGORITHM = "the algorithm"
    PROOF = "the proof"
    OVER = "nothing more"


class _Challenge:
    """What one side asks the other to prove itself by."""

    __slots__ = ("_nonce", "algorithm")

    def __init__(self, nonce: bytes) -> None:
        if len(nonce) != chap.NONCE_LENGTH:
            raise LocalProtocolError(f"a nonce has {chap.NONCE_LENGTH} bytes")
        self._nonce = nonce
        self.algorithm = 0

    @property
    def identifier(self) -> int:
        return self._nonce[0]

    @property
    def data(self) -> bytes:
        return self._nonce[1 : 1 + chap.ALGORITHMS[self.algorithm].length]

    def pairs(self) -> list[Pair]:
        return [("CHAP_I", str(self.identifier)), ("CHAP_C", format_binary(self.data))]

    def met(self, secret: bytes, response: bytes) -> bool:
        expected = chap.digest(self.algorithm, self.identifier, secret, self.data)
        return chap.same(expected, response)


class ChapTarget:
    """A target that lets in whom its users are, and nobody else: None is not accepted, the stage cannot be skipped.

    ``secret_of`` looks a user up. ``own`` is what the target proves itself with where the initiator asks for that;
    None: such an initiator is refused. ``algorithms`` are the numbers that may be used.

    What fails is answered with 0201h (authentication failure), whether it is the user or the secret that is wrong, in
    the same number of steps and with the same work; the error's message, for the log, tells which.

    Attributes:
        user: who the initiator has proved to be, "" before that.
    """

    __slots__ = ("_algorithms", "_challenge", "_nonce", "_own", "_secret_of", "_step", "user")

    def __init__(
        self,
        secret_of: SecretOf,
        nonce: bytes,
        *,
        own: Account | None = None,
        algorithms: Sequence[int] = tuple(chap.ALGORITHMS),
    ) -> None:
        self.user = ""
        self._secret_of = secret_of
        self._own = own
        self._algorithms = algorithms
        self._nonce = nonce
        self._challenge = _Challenge(nonce)
        self._step = _Step.METHOD

    @property
    def done(self) -> bool:
        return self._step is _Step.OVER

    def offer(self) -> list[Pair]:
        return []

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        if not pairs:
            return []
        try:
            said = _once(pairs)
            if self._step is _Step.METHOD:
                return self._choose_method(said)
            if self._step is _Step.ALGORITHM:
                return self._choose_algorithm(said)
            if self._step is _Step.PROOF:
                return self._judge(said)
            raise ValueError(f"{pairs[0][0]} is out of place")
        except ValueError as error:
            raise LoginError(LoginStatus.INITIATOR_ERROR, f"CHAP: {error}") from error

    def _choose_method(self, said: dict[str, str]) -> list[Pair]:
        _expect(said, frozenset({_METHOD}))
        try:
            KEYS[_METHOD].rule.choose(said[_METHOD], _CHAP)
        except ValueError as error:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, f"CHAP is required: {error}") from error
        self._step = _Step.ALGORITHM
        return [(_METHOD, _CHAP)]

    def _choose_algorithm(self, said: dict[str, str]) -> list[Pair]:
        _expect(said, frozenset({"CHAP_A"}))
        algorithm = chap.choose_algorithm(said["CHAP_A"], self._algorithms)
        if algorithm is None:
            reason = f"CHAP: no algorithm of {said['CHAP_A'][:80]!r} is allowed"
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, reason)
        self._challenge.algorithm = algorithm
        self._step = _Step.PROOF
        return [("CHAP_A", str(algorithm)), *self._challenge.pairs()]

    def _judge(self, said: dict[str, str]) -> list[Pair]:
        asks_back = bool(_COUNTER_CHALLENGE & said.keys())
        _expect(said, _PROOF | _COUNTER_CHALLENGE if asks_back else _PROOF)
        user = chap.parse_name(said["CHAP_N"])
        response = chap.parse_response(said["CHAP_R"], self._challenge.algorithm)
        answer = self._answer(said) if asks_back else []
        self._verify(user, response)
        if asks_back and not answer:
            raise LoginError(
                LoginStatus.AUTHENTICATION_FAILURE, f"CHAP: {user[:80]!r} wants a proof of the target, which has none"
            )
        self.user = user
        self._step = _Step.OVER
        return answer

    def _verify(self, user: str, response: bytes) -> None:
        secret = self._secret_of(user)
        # A user whom we do not know costs the same work, with a secret that nobody can know.
        met = self._challenge.met(self._nonce if secret is None else secret, response)
        mirrored = self._own is not None and self._challenge.met(self._own.secret, response)
        if secret is None or not met:
            reason = "there is no such user" if secret is None else "wrong secret"
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, f"CHAP: user {user[:80]!r}: {reason}")
        if mirrored:
            raise LoginError(
                LoginStatus.AUTHENTICATION_FAILURE, f"CHAP: user {user[:80]!r} has the secret of the target itself"
            )

    def _answer(self, said: dict[str, str]) -> list[Pair]:
        """Return our proof for the initiator's challenge. It is sent only when the initiator has proved itself."""
        identifier = chap.parse_identifier(said["CHAP_I"])
        challenge = chap.parse_challenge(said["CHAP_C"])
        if chap.same(challenge, self._challenge.data):
            # It would have us make the very response that it was asked for.
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: the initiator sends our own challenge back")
        if self._own is None:
            return []
        response = chap.digest(self._challenge.algorithm, identifier, self._own.secret, challenge)
        return [("CHAP_N", self._own.user), ("CHAP_R", format_binary(response))]


class ChapInitiator:
    """An initiator that proves itself as ``user``, and asks the target for a proof where ``target_secret`` is given.

    ``target_user`` "" takes the target's proof under any name. Without ``target_secret`` a target that asks for no
    authentication gets None; with it, that is a failure. ``algorithms`` are proposed in this order.

    Raises AuthenticationFailed when the target fails, LocalProtocolError for credentials that cannot be used.
    """

    __slots__ = ("_account", "_algorithms", "_challenge", "_step", "_target_secret", "_target_user")

    def __init__(
        self,
        user: str,
        secret: bytes,
        nonce: bytes,
        *,
        target_user: str = "",
        target_secret: bytes = b"",
        algorithms: Sequence[int] = chap.PREFERENCE,
    ) -> None:
        if not user or not secret:
            raise LocalProtocolError("CHAP needs a user and a secret")
        if target_user and not target_secret:
            raise LocalProtocolError("CHAP needs the secret of the target, not only its user")
        if chap.same(secret, target_secret):
            raise LocalProtocolError("the secrets of both directions must differ (RFC 7143 section 12.1.3)")
        if not algorithms or not set(algorithms) <= chap.ALGORITHMS.keys():
            raise LocalProtocolError(f"CHAP algorithms are {', '.join(map(str, chap.ALGORITHMS))}")
        self._account = Account(user, secret)
        self._target_user = target_user
        self._target_secret = target_secret
        self._algorithms = algorithms
        self._challenge = _Challenge(nonce)
        self._step = _Step.METHOD

    @property
    def done(self) -> bool:
        """We have said all. The answer to it is refused by ``receive`` if it lacks the proof that we asked for."""
        return self._step in (_Step.PROOF, _Step.OVER)

    def offer(self) -> list[Pair]:
        return [(_METHOD, _CHAP if self._target_secret else f"{_CHAP},None")]

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        try:
            said = _once(pairs)
            if self._step is _Step.METHOD:
                return self._begin(said)
            if self._step is _Step.ALGORITHM:
                return self._respond(said)
            if self._step is _Step.PROOF:
                self._judge(said)
            elif said:
                raise ValueError(f"{pairs[0][0]} is out of place")
        except ValueError as error:
            raise RemoteProtocolError(f"CHAP: {error}") from error
        return []

    def _begin(self, said: dict[str, str]) -> list[Pair]:
        if not said:
            return []  # the target has something else to say first
        _expect(said, frozenset({_METHOD}))
        method = said[_METHOD]
        if method == "None" and not self._target_secret:
            self._step = _Step.OVER
            return []
        if method != _CHAP:
            raise AuthenticationFailed(f"the target does not do CHAP ({_METHOD}={method[:80]})")
        self._step = _Step.ALGORITHM
        return [("CHAP_A", chap.format_algorithms(self._algorithms))]

    def _respond(self, said: dict[str, str]) -> list[Pair]:
        if said.keys() == {"CHAP_A"} and said["CHAP_A"] == "Reject":
            raise AuthenticationFailed("the target has none of our CHAP algorithms")
        _expect(said, frozenset({"CHAP_A"}) | _COUNTER_CHALLENGE)
        algorithm = chap.choose_algorithm(said["CHAP_A"], self._algorithms)
        if algorithm is None or "," in said["CHAP_A"]:
            raise AuthenticationFailed(f"the target chooses CHAP algorithm {said['CHAP_A'][:80]!r}")
        identifier, challenge = chap.parse_identifier(said["CHAP_I"]), chap.parse_challenge(said["CHAP_C"])
        response = chap.digest(algorithm, identifier, self._account.secret, challenge)
        pairs = [("CHAP_N", self._account.user), ("CHAP_R", format_binary(response))]
        if not self._target_secret:
            self._step = _Step.OVER
            return pairs
        self._challenge.algorithm = algorithm
        if chap.same(challenge, self._challenge.data):
            raise AuthenticationFailed("the target has foreseen our challenge")
        self._step = _Step.PROOF
        return pairs + self._challenge.pairs()

    def _judge(self, said: dict[str, str]) -> None:
        if not said:
            raise AuthenticationFailed("the target does not prove who it is")
        _expect(said, _PROOF)
        user = chap.parse_name(said["CHAP_N"])
        response = chap.parse_response(said["CHAP_R"], self._challenge.algorithm)
        if not self._challenge.met(self._target_secret, response):
            raise AuthenticationFailed("the target proves that it has another secret")
        if self._target_user and user != self._target_user:
            raise AuthenticationFailed(f"the target is {user[:80]!r}, not {self._target_user[:80]!r}")
        self._step = _Step.OVER


def _once(pairs: Sequence[Pair]) -> dict[str, str]:
    said = dict(pairs)
    if len(said) != len(pairs):
        raise ValueError("a key comes twice")
    return said


def _expect(said: dict[str, str], wanted: frozenset[str]) -> None:
    if missing := sorted(wanted - said.keys()):
        raise ValueError(f"{missing[0]} is missing")
    if extra := sorted(said.keys() - wanted):
        raise ValueError(f"{extra[0]} is out of place")
