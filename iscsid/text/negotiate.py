"""Text negotiation for either role (RFC 7143 section 6.2), one object per connection.

The rules of this file: it knows keys, phases and roles, and neither PDUs nor stages' transitions; authentication keys
and SendTargets never reach it, their owners take them out first; whatever the peer says raises RemoteProtocolError or
gets its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from iscsid.errors import LocalProtocolError, RemoteProtocolError
from iscsid.text.codec import Pair
from iscsid.text.keys import (
    DISCOVERY,
    IRRELEVANT,
    KEYS,
    NOT_UNDERSTOOD,
    REJECT,
    RESERVED_VALUES,
    Key,
    Phase,
    Role,
)
from iscsid.text.rules import Value

REDECLARABLE = frozenset({"MaxRecvDataSegmentLength", "TargetAlias", "InitiatorAlias"})  # "ALL": anew at any time


class Negotiator:
    """Proposes, answers and remembers.

    ``offers`` maps key names to what this side would like, see ``keys.TARGET_OFFERS``; what it does not name stands
    at the RFC's default. ``leading`` is False for a connection that joins an existing session.
    """

    __slots__ = (
        "_announced",
        "_answered",
        "_declared",
        "_leading",
        "_offers",
        "_proposed",
        "_settled",
        "role",
        "session_type",
    )

    def __init__(self, role: Role, session_type: str, offers: Mapping[str, str], *, leading: bool = True) -> None:
        self.role = role
        self.session_type = session_type
        self._offers = offers
        self._leading = leading
        self._proposed: dict[str, str] = {}  # ours, without an answer yet
        self._answered: set[str] = set()  # by either side, with whatever outcome
        self._settled: dict[str, str] = {}  # negotiated values that are not the default by omission
        self._declared: dict[str, str] = {}  # by the peer
        self._announced: dict[str, str] = {}  # by us

    # What we say.

    def propose(self, phase: Phase) -> list[Pair]:
        """Return every offer that may be proposed or declared in ``phase`` and has not been settled or said yet."""
        pairs = []
        for name, text in self._offers.items():
            key = KEYS[name]
            if name in self._answered or name in self._proposed or not self._may_say(key, phase):
                continue
            if key.rule.negotiated:
                self._proposed[name] = text
                pairs.append((name, text))
            else:
                pairs.extend(self.announce(name, text))
        return pairs

    def announce(self, name: str, text: str) -> list[Pair]:
        """Return the declaration of a key, or nothing when the same was declared before."""
        if self._announced.get(name) == text:
            return []
        KEYS[name].rule.value(text)
        self._announced[name] = text
        return [(name, text)]

    @property
    def waiting(self) -> frozenset[str]:
        """Proposals of ours that need an answer and have none."""
        return frozenset(name for name, text in self._proposed.items() if KEYS[name].rule.implied(text) is None)

    def _may_say(self, key: Key, phase: Phase) -> bool:
        if not key.phases & phase or not key.senders & self.role:
            return False
        if not key.rule.negotiated:
            # MaxRecvDataSegmentLength may be said in the security stage, but nobody is helped by that.
            return phase is not Phase.SECURITY
        return self._relevant(key) and (self._leading or not key.leading)

    # What the peer says.

    def answer(self, pairs: Iterable[Pair], phase: Phase) -> list[Pair]:
        """Take one whole text of the peer; return what has to be answered."""
        seen: set[str] = set()
        replies: list[Pair] = []
        # FirstBurstLength is bounded by MaxBurstLength, so the latter is settled first, wherever it stands.
        for name, text in sorted(pairs, key=lambda pair: pair[0] == "FirstBurstLength"):
            key = KEYS.get(name)
            if name in seen and not (key is not None and key.repeats):
                raise RemoteProtocolError(f"{name} comes twice in one text")
            seen.add(name)
            replies += self._unknown(name, text, phase) if key is None else self._take(key, text, phase)
        return replies

    def _unknown(self, name: str, text: str, phase: Phase) -> list[Pair]:
        if text in RESERVED_VALUES:
            # An answer to something we never asked. Answering it could go on for ever between two such peers.
            raise RemoteProtocolError(f"{name}={text} answers nothing")
        if name in self._answered:
            raise RemoteProtocolError(f"{name} is negotiated again")
        if phase is not Phase.FULL_FEATURE:  # a login has limits that bound this set, a session has none
            self._answered.add(name)
        return [(name, NOT_UNDERSTOOD)]

    def _take(self, key: Key, text: str, phase: Phase) -> list[Pair]:
        if not key.phases & phase:
            raise RemoteProtocolError(f"{key.name} is not allowed in the {phase.name} phase")
        if key.authentication or key.name == "SendTargets":
            raise LocalProtocolError(f"{key.name} is not for the negotiator")
        if key.name in self._proposed:
            self._conclude(key, text)
            return []
        if not key.senders & self.role.peer:
            raise RemoteProtocolError(f"{key.name} is not for the {self.role.peer.name} to say")
        if not key.rule.negotiated:
            self._declare(key, text, phase)
            return []
        return [(key.name, self._respond(key, text))]

    def _conclude(self, key: Key, text: str) -> None:
        """The peer's answer to a proposal of ours."""
        proposed = self._proposed.pop(key.name)
        self._answered.add(key.name)
        if text in RESERVED_VALUES:
            return  # the default stays in force
        try:
            key.rule.value(text)
            legal = key.rule.admits(proposed, text)
        except ValueError as error:
            raise RemoteProtocolError(f"{key.name}: {error}") from error
        if not legal:
            raise RemoteProtocolError(f"{key.name}={text} is no answer to {proposed}")
        self._settled[key.name] = text

    def _respond(self, key: Key, text: str) -> str:
        """Our answer to a proposal of the peer."""
        if key.name in self._answered:
            raise RemoteProtocolError(f"{key.name} is negotiated again")
        if text in RESERVED_VALUES:
            raise RemoteProtocolError(f"{key.name}={text} answers nothing")
        if not self._leading and key.leading:
            raise RemoteProtocolError(f"{key.name} belongs to the leading connection")
        self._answered.add(key.name)
        if not self._relevant(key):
            return IRRELEVANT
        try:
            answer = key.rule.choose(text, self._liking(key))
        except ValueError:
            return REJECT  # section 6.2.2 allows it; the value in force stays
        self._settled[key.name] = answer
        return answer

    def _declare(self, key: Key, text: str, phase: Phase) -> None:
        try:
            key.rule.value(text)
        except ValueError as error:
            raise RemoteProtocolError(f"{key.name}: {error}") from error
        known = self._declared.get(key.name)
        anew = phase is Phase.FULL_FEATURE and key.name in REDECLARABLE
        # Section 6.3 forbids to declare twice. Saying the same again in the next stage is a habit (libiscsi does it
        # with four keys) and changes nothing; saying something else is refused.
        if known is not None and known != text and not anew and not key.repeats:
            raise RemoteProtocolError(f"{key.name} was {known[:80]!r} and is now {text[:80]!r}")
        self._declared[key.name] = text

    def _relevant(self, key: Key) -> bool:
        return key.discovery or self.session_type != DISCOVERY

    def _liking(self, key: Key) -> str:
        liking = self._offers.get(key.name, key.default or "")
        if key.name == "FirstBurstLength":
            burst = self._settled.get("MaxBurstLength", KEYS["MaxBurstLength"].default or "")
            liking = key.rule.choose(liking, burst)
        return liking

    # What came of it.

    def outcome(self, name: str) -> Value:
        """Return the value in force of a negotiated key."""
        key = KEYS[name]
        text = self._settled.get(name)
        if text is None and name in self._proposed:
            text = key.rule.implied(self._proposed[name])
        if text is None:
            text = key.default
        if text is None:
            raise LocalProtocolError(f"{name} has no value")
        return key.rule.value(text)

    @property
    def unmet(self) -> list[str]:
        """Digests that our offer insists on, by leaving out None, and that did not come about."""
        return [
            name
            for name in ("HeaderDigest", "DataDigest")
            if name in self._offers and not KEYS[name].rule.admits(self._offers[name], str(self.outcome(name)))
        ]

    def declared(self, name: str) -> Value | None:
        """Return what the peer declared, or None."""
        text = self._declared.get(name)
        return None if text is None else KEYS[name].rule.value(text)

    def announced(self, name: str) -> Value | None:
        """Return what we declared, or None."""
        text = self._announced.get(name)
        return None if text is None else KEYS[name].rule.value(text)
