"""session.login_initiator: what it sends, what it takes from a target, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from iscsid.errors import LocalProtocolError, RemoteProtocolError
from iscsid.session.login_initiator import InitiatorLogin, LoginFailed
from iscsid.text.codec import Pair, build, parse
from iscsid.text.keys import INITIATOR_OFFERS
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest, LoginResponse

INITIATOR = "iqn.2010-11.org.example:host"
TARGET = "iqn.2026-11.org.iscsid:disk0"
ISID = 0x80_1234_56_0001
SECURITY, OPERATIONAL, FULL = 0, 1, 3


def new(target: str | None = TARGET, **options: object) -> InitiatorLogin:
    return InitiatorLogin(INITIATOR, target, **{"isid": ISID, **options})  # type: ignore[arg-type]


def response(stage: int, next_stage: int | None, pairs: Sequence[Pair] = (), **fields: object) -> LoginResponse:
    transit = next_stage is not None
    values = {"csg": stage, "nsg": next_stage or 0, "transit": transit, "isid": ISID, "data": build(pairs)}
    return LoginResponse(**{**values, **fields})  # type: ignore[arg-type]


def final(pairs: Sequence[Pair] = (), **fields: object) -> LoginResponse:
    return response(OPERATIONAL, FULL, pairs, **{"tsih": 9, **fields})


def one(login: InitiatorLogin, heard: LoginResponse) -> LoginRequest:
    (request,) = login.receive(heard)
    return request


def operational(**options: object) -> InitiatorLogin:
    login = new(skip_security=True, **options)
    login.start()
    return login


def test_first_request_names_both_ends_and_offers_no_authentication() -> None:
    request = new(initiator_alias="host", cid=3, cmd_sn=41, initiator_task_tag=5).start()
    assert parse(request.data) == [
        ("InitiatorName", INITIATOR),
        ("SessionType", "Normal"),
        ("InitiatorAlias", "host"),
        ("TargetName", TARGET),
        ("AuthMethod", "None"),
    ]
    assert (request.transit, request.continued, request.csg, request.nsg) == (True, False, SECURITY, OPERATIONAL)
    assert (request.isid, request.tsih, request.cid, request.cmd_sn) == (ISID, 0, 3, 41)
    assert (request.immediate, request.initiator_task_tag) == (True, 5)


def test_operational_stage_brings_the_offers_and_ends_the_login() -> None:
    login = new()
    login.start()
    request = one(login, response(SECURITY, OPERATIONAL, [("AuthMethod", "None"), ("TargetPortalGroupTag", "4")]))
    assert dict(parse(request.data)) == INITIATOR_OFFERS
    assert (request.transit, request.csg, request.nsg) == (True, OPERATIONAL, FULL)
    assert login.receive(final([("MaxRecvDataSegmentLength", "65536"), ("MaxBurstLength", "65536")])) == []
    assert login.done
    parameters = login.parameters
    assert (parameters.tsih, parameters.isid, parameters.target_portal_group_tag) == (9, ISID, 4)
    assert (parameters.initiator_name, parameters.target_name) == (INITIATOR, TARGET)
    assert (parameters.max_recv_data_segment_length, parameters.peer_max_recv_data_segment_length) == (262144, 65536)
    assert parameters.max_burst_length == 65536


def test_login_that_skips_security_says_all_at_once() -> None:
    request = new(skip_security=True).start()
    said = dict(parse(request.data))
    assert (request.csg, request.nsg, request.transit) == (OPERATIONAL, FULL, True)
    assert said["TargetName"] == TARGET
    assert said["MaxBurstLength"] == INITIATOR_OFFERS["MaxBurstLength"]
    assert "AuthMethod" not in said


def test_discovery_names_no_target_and_leaves_out_disk_keys() -> None:
    said = dict(parse(new(None, skip_security=True).start().data))
    assert said["SessionType"] == "Discovery"
    assert not {"TargetName", "MaxBurstLength", "ImmediateData"} & set(said)


def test_numbers_follow_the_target() -> None:
    login = new(cmd_sn=100)
    login.start()
    request = one(login, response(SECURITY, OPERATIONAL, stat_sn=0xFFFFFFFF, exp_cmd_sn=100, max_cmd_sn=131))
    assert (request.exp_stat_sn, request.cmd_sn) == (0, 100)
    login.receive(final(stat_sn=0, exp_cmd_sn=100, max_cmd_sn=163))
    assert (login.exp_stat_sn, login.exp_cmd_sn, login.max_cmd_sn, login.cmd_sn) == (1, 100, 163, 100)


def test_target_that_is_not_ready_is_asked_again() -> None:
    login = operational()
    request = one(login, response(OPERATIONAL, None, [("ImmediateData", "Yes")]))
    assert (request.data, request.transit) == (b"", True)
    assert login.receive(final()) == []


def test_proposal_of_the_target_is_answered() -> None:
    login = operational(offers={"MaxRecvDataSegmentLength": "65536"})
    request = one(login, response(OPERATIONAL, None, [("MaxOutstandingR2T", "8"), ("X-vendor", "1")]))
    assert parse(request.data) == [("MaxOutstandingR2T", "1"), ("X-vendor", "NotUnderstood")]
    login.receive(final())
    assert login.parameters.max_outstanding_r2t == 1


def test_proposal_without_an_answer_stands_at_its_default() -> None:
    login = operational()
    login.receive(final())
    assert login.parameters.max_burst_length == 262144
    assert login.parameters.initial_r2t is True
    assert login.parameters.first_burst_length == 65536


@pytest.mark.parametrize("status", [status for status in LoginStatus if status >> 8])
def test_every_failure_status_is_told(status: LoginStatus) -> None:
    login = new()
    login.start()
    with pytest.raises(LoginFailed) as caught:
        login.receive(response(SECURITY, None, status=int(status)))
    assert caught.value.status == status
    assert status.name.lower().replace("_", " ") in str(caught.value)
    assert not caught.value.moved


def test_unknown_failure_status_is_told_by_its_number() -> None:
    login = new()
    login.start()
    with pytest.raises(LoginFailed, match="0x03ff"):
        login.receive(response(SECURITY, None, status=0x3FF))


def test_redirection_tells_the_address() -> None:
    login = new()
    login.start()
    with pytest.raises(LoginFailed, match="10\\.0\\.0\\.2:3261") as caught:
        login.receive(response(SECURITY, None, [("TargetAddress", "10.0.0.2:3261")], status=0x0101))
    assert caught.value.moved
    assert caught.value.address == "10.0.0.2:3261"


def test_redirection_with_unreadable_text_is_still_the_status() -> None:
    login = new()
    login.start()
    with pytest.raises(LoginFailed) as caught:
        login.receive(response(SECURITY, None, status=0x0101, data=b"\xff"))
    assert (caught.value.status, caught.value.address) == (0x0101, "")


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (response(SECURITY, OPERATIONAL, isid=1), "somebody else"),
        (response(SECURITY, OPERATIONAL, initiator_task_tag=9), "somebody else"),
        (response(SECURITY, OPERATIONAL, version_active=1), "version 1"),
        (response(OPERATIONAL, FULL), "CSG 1 in stage 0"),
        (response(SECURITY, FULL), "not asked for"),
        (response(SECURITY, OPERATIONAL, continued=True), "not asked for"),
        (response(SECURITY, OPERATIONAL, [("AuthMethod", "CHAP")]), "asks for authentication"),
        (response(SECURITY, OPERATIONAL, [("HeaderDigest", "None")]), "not allowed"),
        (response(SECURITY, OPERATIONAL, [("X-vendor", "1")]), "ends with X-vendor"),
        (response(SECURITY, None, [("InitiatorName", "iqn.x")]), "not for the TARGET"),
        (response(SECURITY, None, data=b"no pair\0"), "no '='"),
        (response(SECURITY, None, data=b"\xff\0"), "UTF-8"),
    ],
)
def test_target_that_breaks_the_rules_in_the_security_stage_is_left(heard: LoginResponse, reason: str) -> None:
    login = new()
    login.start()
    with pytest.raises(RemoteProtocolError, match=reason):
        login.receive(heard)
    assert not login.done


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (final(tsih=0), "names the session 0"),
        (final([("MaxBurstLength", "16777215")]), "no answer"),
        (final([("AuthMethod", "None")]), "outside of the security stage"),
        (final([("MaxRecvDataSegmentLength", "1")]), "not in"),
        (response(OPERATIONAL, SECURITY), "not asked for"),
    ],
)
def test_target_that_breaks_the_rules_in_the_operational_stage_is_left(heard: LoginResponse, reason: str) -> None:
    login = operational()
    with pytest.raises(RemoteProtocolError, match=reason):
        login.receive(heard)
    assert not login.done


@pytest.mark.parametrize("answer", [[], [("HeaderDigest", "Reject")], [("HeaderDigest", "NotUnderstood")]])
def test_target_without_the_digest_that_we_insist_on_is_left(answer: list[Pair]) -> None:
    login = operational(offers={**INITIATOR_OFFERS, "HeaderDigest": "CRC32C"})
    with pytest.raises(RemoteProtocolError, match="does not do HeaderDigest"):
        login.receive(final(answer))
    assert not login.done


def test_session_that_we_join_keeps_its_tsih() -> None:
    login = operational(tsih=5)
    with pytest.raises(RemoteProtocolError, match="names the session 9"):
        login.receive(final())
    login = operational(tsih=5)
    assert login.receive(final(tsih=5)) == []


def test_endless_login_is_ended_by_its_number_of_responses() -> None:
    login = operational(response_limit=3)
    for _ in range(3):
        one(login, response(OPERATIONAL, None))
    with pytest.raises(RemoteProtocolError, match="come to an end"):
        login.receive(response(OPERATIONAL, None))


def test_response_in_pieces_is_read_when_it_is_whole() -> None:
    login = operational()
    text = build([("MaxBurstLength", "65536"), ("ImmediateData", "No")])
    request = one(login, response(OPERATIONAL, None, continued=True, data=text[:20]))
    assert (request.data, request.continued, request.transit) == (b"", False, True)
    assert login.receive(final(data=text[20:])) == []
    assert login.parameters.max_burst_length == 65536
    assert login.parameters.immediate_data is False


def long_offer() -> InitiatorLogin:
    return new(skip_security=True, initiator_alias="x" * 255, offers={"MaxBurstLength": "0x" + "0" * 9000 + "200"})


def test_long_request_goes_out_in_pieces_and_asks_with_the_last() -> None:
    login = long_offer()
    first = login.start()
    assert (len(first.data), first.continued, first.transit) == (8192, True, False)
    last = one(login, response(OPERATIONAL, None))
    assert (last.continued, last.transit) == (False, True)
    assert dict(parse(bytes(first.data) + bytes(last.data)))["MaxBurstLength"].endswith("200")


@pytest.mark.parametrize(
    "heard", [response(OPERATIONAL, None, [("X-a", "1")]), response(OPERATIONAL, None, continued=True), final()]
)
def test_answer_in_the_middle_of_a_long_request_is_refused(heard: LoginResponse) -> None:
    login = long_offer()
    login.start()
    with pytest.raises(RemoteProtocolError, match=r"before it has heard all|not asked for"):
        login.receive(heard)


def test_login_that_is_over_takes_nothing_more() -> None:
    login = operational()
    login.receive(final())
    with pytest.raises(LocalProtocolError, match="over"):
        login.receive(final())


def test_parameters_of_a_login_that_is_not_done_are_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="not done"):
        _ = new().parameters


class Chap:
    """An authenticator in three legs, as CHAP has them."""

    def __init__(self) -> None:
        self.done = False

    def offer(self) -> list[Pair]:
        return [("AuthMethod", "CHAP,None")]

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        names = dict(pairs)
        if names.get("AuthMethod") == "CHAP":
            return [("CHAP_A", "5")]
        if "CHAP_C" in names:
            self.done = True
            return [("CHAP_N", "joe"), ("CHAP_R", "0x" + "ab" * 16)]
        return []


def test_authenticator_speaks_its_legs_before_the_stage_ends() -> None:
    login = new(authenticator=Chap())
    first = login.start()
    assert not first.transit
    assert ("AuthMethod", "CHAP,None") in parse(first.data)
    second = one(login, response(SECURITY, None, [("AuthMethod", "CHAP")]))
    assert (parse(second.data), second.transit) == ([("CHAP_A", "5")], False)
    third = one(login, response(SECURITY, None, [("CHAP_A", "5"), ("CHAP_I", "7"), ("CHAP_C", "0x01")]))
    assert (dict(parse(third.data))["CHAP_N"], third.transit) == ("joe", True)
    assert one(login, response(SECURITY, OPERATIONAL)).csg == OPERATIONAL
