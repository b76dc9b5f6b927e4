"""session.login: our initiator against our target through packed PDUs, and both against noise.

Invariants: two honest sides always agree; whatever a peer sends raises RemoteProtocolError and nothing else.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import LoginError, RemoteProtocolError
from iscsid.session import login as names
from iscsid.session.login import Admission, InitiatorLogin, LoginFailed, Parameters, Redirect, TargetLogin
from iscsid.text.keys import INITIATOR_OFFERS, KEYS, TARGET_OFFERS
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest, LoginResponse

INITIATOR = "iqn.2010-11.org.example:host"
TARGET = "iqn.2026-11.org.iscsid:disk0"
ISID = 0x80_1234_56_0001
BY_SIDE = {  # what each side sees from its own end
    "max_recv_data_segment_length": "peer_max_recv_data_segment_length",
    "peer_max_recv_data_segment_length": "max_recv_data_segment_length",
}


def over_the_wire(pdu: LoginRequest | LoginResponse) -> LoginRequest | LoginResponse:
    return type(pdu).unpack(pdu.pack(), 0, b"", bytes(pdu.data))


def meet(initiator: InitiatorLogin, target: TargetLogin) -> int:
    """Let the two log in; return how many requests it took. A refusal goes back to the initiator."""
    requests, count = [initiator.start()], 0
    while requests:
        request = over_the_wire(requests.pop())
        assert isinstance(request, LoginRequest)
        count += 1
        try:
            (response,) = target.receive(request)
        except LoginError as error:
            response = target.failure(request, error.status)
        heard = over_the_wire(response)
        assert isinstance(heard, LoginResponse)
        requests += initiator.receive(heard)
    return count


def same(left: Parameters, right: Parameters) -> None:
    for field in Parameters.__slots__:
        assert getattr(left, field) == getattr(right, BY_SIDE.get(field, field)), field


def initiator(target: str | None = TARGET, **options: object) -> InitiatorLogin:
    return InitiatorLogin(INITIATOR, target, **{"isid": ISID, **options})  # type: ignore[arg-type]


def welcome(target: str, name: str, session_type: str) -> Admission:
    return Admission(alias="disk", portal_group_tag=2)


@pytest.mark.parametrize("target_name", [TARGET, None])
@pytest.mark.parametrize(("skip", "requests"), [(False, 2), (True, 1)])
def test_pair_agrees_on_everything(target_name: str | None, skip: bool, requests: int) -> None:
    ours, theirs = initiator(target_name, skip_security=skip, cid=1, cmd_sn=9), TargetLogin(welcome, tsih=3)
    assert meet(ours, theirs) == requests
    assert ours.done
    assert theirs.done
    same(ours.parameters, theirs.parameters)
    assert ours.parameters.discovery == (target_name is None)
    assert (ours.exp_stat_sn, ours.exp_cmd_sn, ours.max_cmd_sn) == (theirs.stat_sn, 9, theirs.max_cmd_sn)
    assert ours.tsih == theirs.tsih == 3


def test_pair_settles_what_this_server_is_built_for() -> None:
    ours, theirs = initiator(), TargetLogin(welcome, tsih=3)
    meet(ours, theirs)
    parameters = theirs.parameters
    assert not parameters.initial_r2t
    assert parameters.immediate_data
    assert parameters.max_recv_data_segment_length == 262144
    assert parameters.max_burst_length == 1048576
    assert parameters.first_burst_length == 262144
    assert parameters.max_outstanding_r2t == 8
    assert parameters.error_recovery_level == 0


@pytest.mark.parametrize("header", ["None", "CRC32C", "CRC32C,None", "None,CRC32C"])
@pytest.mark.parametrize("data", ["None", "CRC32C", "CRC32C,None", "None,CRC32C"])
def test_pair_agrees_on_digests_by_the_initiators_preference(header: str, data: str) -> None:
    ours = initiator(offers={**INITIATOR_OFFERS, "HeaderDigest": header, "DataDigest": data})
    theirs = TargetLogin(welcome, tsih=3)
    meet(ours, theirs)
    same(ours.parameters, theirs.parameters)
    assert ours.parameters.header_digest == header.startswith("CRC32C")
    assert ours.parameters.data_digest == data.startswith("CRC32C")


def test_pair_with_long_text_in_both_directions_agrees() -> None:
    # Names of 254 bytes each, and an initiator that takes 512 bytes at a time.
    offers = {**INITIATOR_OFFERS, "MaxRecvDataSegmentLength": "512", "DefaultTime2Wait": "0x" + "0" * 14 + "ff"}
    ours = initiator(skip_security=True, initiator_alias="é" * 127, offers=offers)
    target_offers = {**TARGET_OFFERS, "TaskReporting": "RFC3720"}

    def admit(target: str, name: str, session_type: str) -> Admission:
        return Admission(alias="ü" * 127, offers=target_offers)

    theirs = TargetLogin(admit, tsih=3)
    assert meet(ours, theirs) > 1
    same(ours.parameters, theirs.parameters)
    assert ours.parameters.target_alias == "ü" * 127
    assert theirs.parameters.default_time2wait == 255


def test_pair_joins_a_session_on_its_own_terms() -> None:
    ours = initiator(tsih=3, cid=2)
    theirs = TargetLogin(welcome, tsih=8, rejoin=lambda request: 0 if request.tsih == 3 else 0x020A)
    meet(ours, theirs)
    same(ours.parameters, theirs.parameters)
    assert theirs.parameters.tsih == 3


@pytest.mark.parametrize("status", [status for status in LoginStatus if status >> 8 > 1])
def test_refusal_reaches_the_initiator_with_its_status(status: LoginStatus) -> None:
    theirs = TargetLogin(lambda *asked: int(status), tsih=3)
    with pytest.raises(LoginFailed) as caught:
        meet(initiator(), theirs)
    assert caught.value.status == status
    assert not theirs.done


def test_redirection_reaches_the_initiator_with_its_address() -> None:
    def away(target: str, name: str, session_type: str) -> int:
        raise Redirect("192.0.2.1:3260")

    with pytest.raises(LoginFailed) as caught:
        meet(initiator(), TargetLogin(away, tsih=3))
    assert caught.value.moved
    assert caught.value.address == "192.0.2.1:3260"


@pytest.mark.parametrize("strict", ["initiator", "target"])
def test_digest_that_one_side_insists_on_and_the_other_lacks_ends_the_login(strict: str) -> None:
    with_digest, without = {"HeaderDigest": "CRC32C"}, {"HeaderDigest": "None"}
    ours = initiator(offers={**INITIATOR_OFFERS, **(with_digest if strict == "initiator" else without)})
    theirs = TargetLogin(welcome, tsih=3, offers={**TARGET_OFFERS, **(with_digest if strict == "target" else without)})
    with pytest.raises(RemoteProtocolError, match=r"HeaderDigest|initiator error"):
        meet(ours, theirs)
    assert not ours.done


def test_module_gives_the_names_of_both_roles() -> None:
    assert all(hasattr(names, name) for name in names.__all__)


# Noise.

words = st.sampled_from(
    [
        *(f"{name}={value}\0" for name in KEYS for value in ("", "0", "512", "Yes", "None", "CHAP,None", "Reject")),
        f"InitiatorName={INITIATOR}\0",
        f"TargetName={TARGET}\0",
        "SessionType=Normal\0",
        "SessionType=Discovery\0",
        "X-a=1\0",
        "\0",
        "=",
        "garbage",
    ]
).map(str.encode)
texts = st.lists(words | st.binary(max_size=20), max_size=6).map(b"".join)
opening = st.just(f"InitiatorName={INITIATOR}\0TargetName={TARGET}\0".encode()) | texts


def headers(stages: st.SearchStrategy[int]) -> dict[str, st.SearchStrategy[object]]:
    return {
        "transit": st.booleans(),
        "continued": st.sampled_from([False, False, False, True]),
        "csg": stages,
        "nsg": stages,
        "isid": st.sampled_from([ISID, ISID, ISID, 7]),
        "tsih": st.sampled_from([0, 0, 0, 3]),
    }


stages = st.sampled_from([0, 0, 1, 1, 2, 3])
requests = st.builds(LoginRequest, data=texts, version_min=st.sampled_from([0, 0, 0, 1]), **headers(stages))
responses = st.builds(
    LoginResponse,
    data=texts,
    status=st.sampled_from([0] * 8 + [0x0101, 0x0203, 0xFFFF, 0x0001]),
    version_active=st.sampled_from([0, 0, 0, 1]),
    **headers(stages),
)


@settings(deadline=None, max_examples=300)
@given(opening, st.lists(requests, min_size=1, max_size=8), st.sampled_from([0, 0x0203, Admission()]))
def test_target_raises_only_login_errors_whatever_it_is_sent(
    text: bytes, asked: list[LoginRequest], verdict: int | Admission
) -> None:
    target = TargetLogin(lambda *names: verdict, tsih=3)
    asked[0].data = text
    for request in asked:
        try:
            (response,) = target.receive(request)
        except LoginError as error:
            assert error.status >> 8 in (1, 2, 3)
            assert target.failure(request, error.status).pack()
            assert not target.done
            return
        assert len(response.pack()) == 48
        assert len(response.data) <= 8192
        if target.done:
            assert target.parameters.initiator_name
            return


@settings(deadline=None, max_examples=300)
@given(st.booleans(), st.lists(responses, min_size=1, max_size=8))
def test_initiator_raises_only_remote_errors_whatever_it_is_sent(skip: bool, heard: list[LoginResponse]) -> None:
    login = initiator(skip_security=skip)
    login.start()
    for response in heard:
        try:
            requests = login.receive(response)
        except RemoteProtocolError:
            return
        assert len(requests) == (0 if login.done else 1)
        if login.done:
            return
