"""daemon.gate: who is let in, who sees what, and how far a copy reaches."""

from __future__ import annotations

from typing import Any

import pytest

from iscsid.daemon.gate import Gate, GateError, Guest
from iscsid.errors import LoginError
from iscsid.plugin.manager import load
from iscsid.scsi.state import NexusId
from iscsid.session.chap import ChapInitiator
from iscsid.shared.messages import Connect
from iscsid.specs import AuthSpec, ServerSpec, TargetSpec
from iscsid.text import chap
from iscsid.wire.const import LoginStatus

HOST = "iqn.2010-11.org.example:host"
JOE = {"user": "joe", "secret": "a secret of joe's"}
ANN = {"user": "ann", "secret": "a secret of ann's"}
NONCE = bytes(chap.NONCE_LENGTH)


def auth(*accounts: dict[str, str]) -> AuthSpec:
    return AuthSpec("chap", {"chap": list(accounts)})


def gate_of(*targets: TargetSpec, **options: Any) -> Gate:
    return Gate(ServerSpec(targets=targets, **options), load(["chap"]))


def guest_of(gate: Gate, peer: str = "192.0.2.1:1024") -> Guest:
    return gate.guest(Connect(1, HOST, 1, "iqn.a", peer, "192.0.2.9:3260"))


def prove(guest: Guest, target: str, account: dict[str, str] = JOE) -> None:
    theirs = guest.challenge(target, HOST)
    assert theirs is not None
    ours = ChapInitiator(account["user"], account["secret"].encode(), NONCE)
    text = ours.offer()
    while text:
        answer = theirs.receive(text)
        text = ours.receive(answer) if answer else []


@pytest.mark.parametrize(("peer", "host"), [("192.0.2.1:5", "192.0.2.1"), ("[2001:db8::1]:5", "2001:db8::1")])
def test_guest_comes_from_the_address_of_his_connection(peer: str, host: str) -> None:
    assert guest_of(gate_of(), peer).host == host


def test_open_target_asks_for_nothing() -> None:
    guest = guest_of(gate_of(TargetSpec("iqn.a")))
    assert guest.challenge("iqn.a", HOST) is None
    assert guest.challenge("", HOST) is None
    assert guest.user == ""


@pytest.mark.parametrize("closed", [{"initiators": ("iqn.x*",)}, {"networks": ("10.0.0.0/8",)}])
def test_who_is_not_on_the_list_may_not_log_in_and_sees_nothing(closed: dict[str, tuple[str, ...]]) -> None:
    gate = gate_of(TargetSpec("iqn.a", **closed), TargetSpec("iqn.b"))  # type: ignore[arg-type]
    guest = guest_of(gate)
    with pytest.raises(LoginError) as caught:
        guest.challenge("iqn.a", HOST)
    assert caught.value.status == LoginStatus.AUTHORIZATION_FAILURE
    assert [guest.sees(name, HOST) for name in ("iqn.a", "iqn.b", "iqn.c")] == [False, True, False]
    nexus = NexusId(HOST, 1, "iqn.b", 1)
    gate.enter(nexus, guest)
    assert gate.may_reach(nexus, "iqn.b")
    assert not gate.may_reach(nexus, "iqn.a")


def test_discovery_may_have_an_authentication_of_its_own() -> None:
    guest = guest_of(gate_of(TargetSpec("iqn.a"), discovery_auth=auth(JOE)))
    assert guest.challenge("iqn.a", HOST) is None
    prove(guest, "")
    assert guest.user == "joe"


def test_copy_reaches_a_target_only_with_a_proof_that_counts_there() -> None:
    gate = gate_of(TargetSpec("iqn.a", auth=auth(JOE, ANN)), TargetSpec("iqn.b", auth=auth(JOE)), TargetSpec("iqn.c"))
    for account, reached in ((JOE, True), (ANN, False)):
        guest = guest_of(gate)
        prove(guest, "iqn.a", account)
        nexus = NexusId(HOST, 1, "iqn.a", 1)
        gate.enter(nexus, guest)
        assert gate.may_reach(nexus, "iqn.b") is reached
        assert gate.may_reach(nexus, "iqn.c")
        gate.leave(nexus, guest)
        assert not gate.may_reach(nexus, "iqn.b")
    assert not gate.may_reach(NexusId(HOST, 1, "iqn.c", 1), "iqn.b")


def test_successor_of_a_session_is_not_forgotten_with_it() -> None:
    gate = gate_of(TargetSpec("iqn.a"), TargetSpec("iqn.b", networks=("192.0.2.0/24",)))
    nexus, old, new = NexusId(HOST, 1, "iqn.a", 1), guest_of(gate), guest_of(gate)
    gate.enter(nexus, old)
    gate.enter(nexus, new)
    gate.leave(nexus, old)
    assert gate.may_reach(nexus, "iqn.b")


def test_source_that_is_not_there_stops_the_worker_with_its_name() -> None:
    with pytest.raises(GateError, match=r"iqn\.a.*ldap"):
        gate_of(TargetSpec("iqn.a", auth=AuthSpec("ldap")))


def test_source_that_fails_refuses_the_login_and_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_of(TargetSpec("iqn.a", auth=auth(JOE)))

    def fail(_: object) -> None:
        raise RuntimeError(JOE["secret"])

    monkeypatch.setattr(type(gate._sources["iqn.a"]), "own", fail)
    with pytest.raises(LoginError, match="RuntimeError") as caught:
        guest_of(gate).challenge("iqn.a", HOST)
    assert caught.value.status == LoginStatus.TARGET_ERROR
    assert JOE["secret"] not in str(caught.value)


def test_guest_stays_behind_another_gate_as_long_as_he_could_come_in() -> None:
    before = gate_of(TargetSpec("iqn.a"))
    guest = guest_of(before)
    guest.challenge("iqn.a", "iqn.host")
    for spec, stays in (
        (TargetSpec("iqn.a"), True),
        (TargetSpec("iqn.a", initiators=("iqn.host",)), True),
        (TargetSpec("iqn.a", initiators=("iqn.other",)), False),
        (TargetSpec("iqn.a", networks=("198.51.100.0/24",)), False),
        (TargetSpec("iqn.a", auth=auth(JOE)), False),  # he has proved nothing
        (TargetSpec("iqn.b"), False),
    ):
        guest.move(gate_of(spec))
        assert guest.may_stay("iqn.a", "iqn.host") is stays


def test_guest_who_has_proved_who_he_is_stays() -> None:
    before = gate_of(TargetSpec("iqn.a", auth=auth(JOE)))
    guest = guest_of(before)
    prove(guest, "iqn.a")
    guest.move(gate_of(TargetSpec("iqn.a", auth=auth(JOE))))
    assert guest.may_stay("iqn.a", "iqn.host")


@pytest.mark.parametrize("account", [{**JOE, "secret": "another secret of his"}, ANN], ids=["secret", "account"])
def test_guest_whose_secret_or_account_has_changed_stays_and_cannot_come_again(account: dict[str, str]) -> None:
    guest = guest_of(gate_of(TargetSpec("iqn.a", auth=auth(JOE))))
    prove(guest, "iqn.a")
    after = gate_of(TargetSpec("iqn.a", auth=auth(account)))
    guest.move(after)
    assert guest.may_stay("iqn.a", "iqn.host")
    with pytest.raises(LoginError):
        prove(guest_of(after), "iqn.a")


@pytest.mark.parametrize(
    ("spec", "goes_on"),
    [
        (TargetSpec("iqn.a"), True),
        (TargetSpec("iqn.a", initiators=("iqn.other",)), False),
        (TargetSpec("iqn.a", auth=auth(JOE)), False),
        (TargetSpec("iqn.b"), False),
    ],
)
def test_login_under_way_goes_on_only_where_another_gate_asks_no_more(spec: TargetSpec, goes_on: bool) -> None:
    guest = guest_of(gate_of(TargetSpec("iqn.a")))
    guest.challenge("iqn.a", "iqn.host")
    stranger = guest_of(gate_of(TargetSpec("iqn.a")))
    for one in (guest, stranger):
        one.move(gate_of(spec))
    assert guest.may_go_on() is goes_on
    assert stranger.may_go_on()  # nothing was asked of him yet


def test_login_under_way_ends_where_its_own_target_has_gone() -> None:
    gate = gate_of(TargetSpec("iqn.a"), TargetSpec("iqn.b"))
    for target, goes_on in (("iqn.a", False), ("iqn.b", True), ("", True), (None, True)):
        guest = guest_of(gate)
        if target is not None:
            guest.challenge(target, "iqn.host")
        assert guest.may_go_on(["iqn.a"]) is goes_on


def test_login_that_has_to_prove_something_goes_on_behind_another_gate() -> None:
    guest = guest_of(gate_of(TargetSpec("iqn.a", auth=auth(JOE))))
    guest.challenge("iqn.a", "iqn.host")
    guest.move(gate_of(TargetSpec("iqn.a", auth=auth(JOE))))
    assert guest.may_go_on()
