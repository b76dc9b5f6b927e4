"""The security stage's half of a login: who picks the method and speaks its keys (RFC 7143 section 12).

A login hands every authentication key to its authenticator and asks it whether the stage may be left. The two here
know the method None. A CHAP authenticator has the same three members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iscsid.errors import LoginError, RemoteProtocolError
from iscsid.text.codec import Pair
from iscsid.text.keys import KEYS
from iscsid.wire.const import LoginStatus

_METHOD = "AuthMethod"
_NONE = "None"


class Authenticator(Protocol):
    """One object per login, for either role."""

    @property
    def done(self) -> bool:
        """Whether the security stage may be left, or skipped, now."""

    def offer(self) -> list[Pair]:
        """Return the keys with which an initiator opens the stage; a target has none."""

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Take the peer's authentication keys of one text, maybe none, and return ours.

        Raises LoginError (target) or RemoteProtocolError (initiator) when the peer fails.
        """


class AcceptNone:
    """A target that asks nobody who he is: ``AuthMethod=CHAP,None`` gets None, and the stage may be skipped."""

    __slots__ = ("_answered",)

    done = True

    def __init__(self) -> None:
        self._answered = False

    def offer(self) -> list[Pair]:
        return []

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        replies = []
        for name, text in pairs:
            if name != _METHOD or self._answered:
                raise LoginError(LoginStatus.INITIATOR_ERROR, f"{name} is out of place")
            try:
                replies.append((_METHOD, KEYS[_METHOD].rule.choose(text, _NONE)))
            except ValueError as error:
                # An initiator that insists on a method would only fail one step later if it got a Reject.
                raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, f"{_METHOD}: {error}") from error
            self._answered = True
        return replies


class OfferNone:
    """An initiator without credentials."""

    __slots__ = ()

    done = True

    def offer(self) -> list[Pair]:
        return [(_METHOD, _NONE)]

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        for name, text in pairs:
            if (name, text) != (_METHOD, _NONE):
                raise RemoteProtocolError(f"the target asks for authentication ({name}={text[:80]})")
        return []
