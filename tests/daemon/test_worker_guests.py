"""A whole worker and who comes to it: guest lists and CHAP, from the socket to what the supervisor is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from worker_kit import BLOCK, NAME, TARGET, Initiator, MemoryDevice, Running, lun_of, running

from iscsid.plugin import CredentialSource
from iscsid.session.chap import AuthenticationFailed, ChapInitiator
from iscsid.session.login import LoginFailed
from iscsid.shared.messages import SessionClosed, SessionOpened
from iscsid.specs import AuthSpec
from iscsid.text.chap import NONCE_LENGTH
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import TextRequest, TextResponse

ONES = b"1" * BLOCK
OTHER = "iqn.2010-11.org.example:other"
JOE, OWN = ("joe", b"a secret of joe's"), ("disk", b"the disk's secret")


class Accounts(CredentialSource):
    """Joe's, and that of the target where it has one."""

    def __init__(self, own: tuple[str, bytes] | None = None) -> None:
        self._own = own

    def secret(self, user: str) -> bytes | None:
        return JOE[1] if user == JOE[0] else None

    def own(self) -> tuple[str, bytes] | None:
        return self._own


class Broken(CredentialSource):
    def secret(self, user: str) -> bytes | None:
        raise RuntimeError(f"the vault of {JOE[1].decode()} does not answer")


def chap(user: str = JOE[0], secret: bytes = JOE[1], **target: Any) -> ChapInitiator:
    return ChapInitiator(user, secret, b"n" * NONCE_LENGTH, **target)


def auth(source: CredentialSource) -> AuthSpec:
    return AuthSpec("planted", {"source": source})


def refusal(worker: Running, tsih: int, **options: Any) -> int:
    """The status of a login that is refused, of which the supervisor hears no more than its end."""
    initiator = worker.connect(tsih, **options)
    with pytest.raises(LoginFailed) as caught:
        initiator.log_in()
    assert initiator.at_end()
    worker.wait_for(SessionClosed, tsih=tsih)
    assert not [message for message in worker.said if isinstance(message, SessionOpened) and message.tsih == tsih]
    return caught.value.status


def told_of(initiator: Initiator) -> bytes:
    initiator.send(TextRequest(initiator_task_tag=1, cmd_sn=initiator.cmd_sn, data=b"SendTargets=All\0", final=True))
    return bytes(initiator.expect(TextResponse).data)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def proved() -> Iterator[Running]:
    """A worker whose disk wants to know who comes."""
    with running(lun_of(MemoryDevice()), guests={"auth": auth(Accounts(OWN))}) as worker:
        yield worker


@pytest.mark.parametrize(
    ("guests", "admitted"),
    [
        ({"initiators": (NAME,)}, True),
        ({"initiators": ("iqn.2010-11.org.example:h*",)}, True),
        ({"initiators": (OTHER,)}, False),
        ({"networks": ("127.0.0.0/8",)}, True),
        ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, False),
        ({"initiators": (NAME,), "networks": ("192.0.2.0/24",)}, False),
    ],
)
def test_guest_list_lets_in_whom_it_has_and_tells_nobody_else_of_the_target(
    guests: dict[str, Any], admitted: bool
) -> None:
    with running(lun_of(MemoryDevice()), guests=guests) as worker:
        if admitted:
            worker.log_in(1).write(0, ONES)
            worker.wait_for(SessionOpened, tsih=1)
        else:
            assert refusal(worker, 1) == LoginStatus.AUTHORIZATION_FAILURE
        assert (TARGET.encode() in told_of(worker.log_in(2, target=None))) is admitted


def test_guest_list_is_about_the_name_in_the_login_and_not_that_of_the_supervisor() -> None:
    """The supervisor has only peeked: what counts is what the session will be known by."""
    with running(lun_of(MemoryDevice()), guests={"initiators": (NAME,)}) as worker:
        assert refusal(worker, 1, name=OTHER) == LoginStatus.AUTHORIZATION_FAILURE
        worker.log_in(2).write(0, ONES)


def test_user_who_proves_himself_is_let_in_and_named_in_the_log(
    proved: Running, caplog: pytest.LogCaptureFixture
) -> None:
    proved.log_in(1, authenticator=chap()).write(0, ONES)
    proved.wait_for(SessionOpened, tsih=1)
    assert "as user joe" in caplog.text
    assert JOE[1].decode() not in caplog.text


@pytest.mark.parametrize("authenticator", [None, chap(secret=b"another secret"), chap(user="ann")])
def test_who_does_not_prove_himself_is_refused_and_his_neighbours_go_on(
    proved: Running, authenticator: ChapInitiator | None, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = proved.log_in(1, authenticator=chap())
    assert refusal(proved, 2, isid=2, authenticator=authenticator) == LoginStatus.AUTHENTICATION_FAILURE
    neighbour.write(0, ONES)
    assert JOE[1].decode() not in caplog.text


def test_failed_proof_of_the_same_nexus_does_not_end_the_session_that_there_is(proved: Running) -> None:
    """RFC 7143 6.3.5: only a login that is authenticated reinstates."""
    session = proved.log_in(1, authenticator=chap())
    assert refusal(proved, 2, authenticator=chap(secret=b"another secret")) == LoginStatus.AUTHENTICATION_FAILURE
    session.write(0, ONES)


def test_target_proves_itself_to_whom_asks_for_it(proved: Running) -> None:
    proved.log_in(1, authenticator=chap(target_user=OWN[0], target_secret=OWN[1])).write(0, ONES)
    initiator = proved.connect(2, isid=2, authenticator=chap(target_user=OWN[0], target_secret=b"expected another"))
    with pytest.raises(AuthenticationFailed):
        initiator.log_in()


def test_source_that_fails_refuses_its_logins_and_costs_nobody_else_anything(caplog: pytest.LogCaptureFixture) -> None:
    with running(lun_of(MemoryDevice()), guests={"auth": auth(Broken())}) as worker:
        for tsih in (1, 2):
            assert refusal(worker, tsih, authenticator=chap()) == LoginStatus.TARGET_ERROR
        assert told_of(worker.log_in(3, target=None))
    assert "RuntimeError" in caplog.text and JOE[1].decode() not in caplog.text


def test_discovery_may_ask_for_a_proof_of_its_own() -> None:
    with running(lun_of(MemoryDevice()), discovery_auth=auth(Accounts())) as worker:
        assert refusal(worker, 1, target=None) == LoginStatus.AUTHENTICATION_FAILURE
        assert TARGET.encode() in told_of(worker.log_in(2, target=None, authenticator=chap()))
        worker.log_in(3).write(0, ONES)
