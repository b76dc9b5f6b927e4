"""Who is let in by one worker: guest lists, authentication sources, and what a guest may reach from where he is.

A :class:`Guest` is one connection. Its login asks ``authorize``; discovery asks what it may be told of; and a copy that
it orders may reach another target only if the guest could have logged in there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from typing import TypeVar

from iscsid.errors import IscsidError, LoginError, PluginError
from iscsid.plugin.auth import CredentialSource
from iscsid.plugin.manager import Plugins
from iscsid.scsi.state import NexusId
from iscsid.session.chap import ChapTarget
from iscsid.shared.messages import Connect
from iscsid.specs import AuthSpec, ServerSpec
from iscsid.target.guestlist import GuestList
from iscsid.text import chap
from iscsid.wire.const import LoginStatus

log = logging.getLogger(__name__)

T = TypeVar("T")
_NUMBERS = {row.name: row.number for row in chap.ALGORITHMS.values()}


class GateError(IscsidError):
    """An authentication source cannot be used; the message names its place and the reason."""


class Gate:
    """What one worker knows of who may come. Raises GateError when an authentication source cannot be used."""

    def __init__(self, spec: ServerSpec, plugins: Plugins, random: Callable[[int], bytes] = os.urandom) -> None:
        self._lists = {target.name: GuestList(target.initiators, target.networks) for target in spec.targets}
        self._sources = {
            target.name: _source(plugins, target.name, target.auth) for target in spec.targets if target.auth
        }
        if spec.discovery_auth is not None:
            self._sources[""] = _source(plugins, "discovery", spec.discovery_auth)
        self._random = random
        self._guests: dict[NexusId, Guest] = {}

    def succeed(self, before: Gate) -> None:
        """Take the place of ``before``, whose guests are in already."""
        self._guests = before._guests
        for guest in self._guests.values():
            guest.move(self)

    def guest(self, connect: Connect) -> Guest:
        """Return the guest for a connection."""
        return Guest(self, connect.peer)

    def admits(self, target: str, initiator: str, host: str) -> bool:
        """Whether the guest list of ``target`` has this initiator."""
        guests = self._lists.get(target)
        return guests is not None and guests.admits(initiator, host)

    def asks(self, target: str) -> bool:
        """Whether something has to be proved to log in to ``target``, "" for discovery."""
        return target in self._sources

    def authenticator(self, target: str) -> ChapTarget | None:
        """Return what has to be passed to log in to ``target``, "" for discovery. Raises LoginError."""
        source = self._sources.get(target)
        if source is None:
            return None
        own = _ask(target, source.own)
        return ChapTarget(
            lambda user: _ask(target, lambda: source.secret(user)),
            self._random(chap.NONCE_LENGTH),
            own=None if own is None else chap.Account(*own),
            algorithms=[_NUMBERS[name] for name in source.algorithms if name in _NUMBERS],
        )

    def enter(self, nexus: NexusId, guest: Guest) -> None:
        """The guest is logged in by ``nexus``."""
        self._guests[nexus] = guest

    def leave(self, nexus: NexusId, guest: Guest) -> None:
        """The guest has gone, if it is still he whom ``nexus`` stands for."""
        if self._guests.get(nexus) is guest:
            del self._guests[nexus]

    def may_reach(self, nexus: NexusId, target: str) -> bool:
        """Whether who is logged in by ``nexus`` may be served by ``target`` too, without having logged in there."""
        if target == nexus.target:
            return True
        guest = self._guests.get(nexus)
        if not self.admits(target, nexus.initiator, "" if guest is None else guest.host):
            return False
        theirs = self._sources.get(target)
        if theirs is None:
            return True
        ours = self._sources.get(nexus.target)
        user = "" if guest is None else guest.user
        if ours is None or not user:
            return False
        try:
            # He has proved that he is the user and has the secret that the other target would ask him for.
            proof, wanted = ours.secret(user), theirs.secret(user)
        except Exception as error:  # a source of a stranger may raise anything
            log.error("%s: authentication source: %s", target, type(error).__name__)
            return False
        return proof is not None and wanted is not None and chap.same(proof, wanted)


class Guest:
    """Who is at the other end of one connection.

    Attributes:
        host: the address that he comes from.
    """

    __slots__ = ("_asked", "_authenticator", "_gate", "host")

    def __init__(self, gate: Gate, peer: str) -> None:
        self.host = peer.rpartition(":")[0].strip("[]")
        self._gate = gate
        self._authenticator: ChapTarget | None = None
        self._asked: tuple[str, str] | None = None  # target and initiator of the login that was let in

    @property
    def user(self) -> str:
        """The name that he has proved to have, "" without a proof."""
        return "" if self._authenticator is None else self._authenticator.user

    def move(self, gate: Gate) -> None:
        """There is another gate now."""
        self._gate = gate

    def may_stay(self, target: str, initiator: str) -> bool:
        """Whether he could still be let in to ``target``, "" for discovery, with what he has proved."""
        if target and not self._gate.admits(target, initiator, self.host):
            return False
        return bool(self.user) or not self._gate.asks(target)

    def may_go_on(self, gone: Collection[str] = ()) -> bool:
        """Whether a login that is not over may go on: by this gate he would have to pass no more than he was asked.

        ``gone`` are the targets that this worker has no more. A guest who has not said yet where he wants to go will
        be asked what is right by then.
        """
        if self._asked is None:
            return True
        target, initiator = self._asked
        if target in gone:
            return False
        if target and not self._gate.admits(target, initiator, self.host):
            return False
        return self._authenticator is not None or not self._gate.asks(target)

    def challenge(self, target: str, initiator: str) -> ChapTarget | None:
        """Return what he has to pass to log in to ``target``, "" for discovery; None: nothing.

        Raises LoginError when he may not log in at all.
        """
        if target and not self._gate.admits(target, initiator, self.host):
            reason = f"{initiator[:223]!r} from {self.host} may not use {target}"
            raise LoginError(LoginStatus.AUTHORIZATION_FAILURE, reason)
        self._authenticator = self._gate.authenticator(target)
        self._asked = target, initiator
        return self._authenticator

    def sees(self, target: str, initiator: str) -> bool:
        """Whether he may be told of ``target``."""
        return self._gate.admits(target, initiator, self.host)


def _source(plugins: Plugins, place: str, auth: AuthSpec) -> CredentialSource:
    try:
        return plugins.authenticate(auth.source, auth.options)
    except PluginError as error:
        raise GateError(f"{place}: {error}") from error


def _ask(place: str, question: Callable[[], T]) -> T:
    try:
        return question()
    except Exception as error:  # a source of a stranger may raise anything, with a secret in its words
        reason = f"the authentication source of {place or 'discovery'} failed: {type(error).__name__}"
        raise LoginError(LoginStatus.TARGET_ERROR, reason) from None
