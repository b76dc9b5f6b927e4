"""session.login_target: every stage path and failure status, text in pieces, habits of initiators in the field."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from iscsid.errors import LocalProtocolError, LoginError
from iscsid.session.login_target import Admission, Redirect, TargetLogin
from iscsid.text.codec import Pair, build, parse, split
from iscsid.text.keys import TARGET_OFFERS
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest, LoginResponse

INITIATOR = "iqn.2010-11.org.example:host"
TARGET = "iqn.2026-11.org.iscsid:disk0"
ISID = 0x80_1234_56_0001
NAMES = [("InitiatorName", INITIATOR), ("TargetName", TARGET), ("SessionType", "Normal")]
SECURITY, OPERATIONAL, FULL = 0, 1, 3


class Asked:
    """An authority that remembers what it was asked."""

    def __init__(self, verdict: int | Admission = 0) -> None:
        self.verdict = verdict
        self.questions: list[tuple[str, str, str]] = []

    def __call__(self, target: str, initiator: str, session_type: str) -> int | Admission:
        self.questions.append((target, initiator, session_type))
        return self.verdict


def new(verdict: int | Admission = 0, **options: object) -> TargetLogin:
    return TargetLogin(Asked(verdict), **{"tsih": 77, **options})  # type: ignore[arg-type]


def request(stage: int, next_stage: int | None, pairs: Sequence[Pair] | bytes = (), **fields: object) -> LoginRequest:
    data = pairs if isinstance(pairs, bytes) else build(pairs)
    transit = next_stage is not None
    values = {"csg": stage, "nsg": next_stage or 0, "transit": transit, "isid": ISID, "cmd_sn": 41, "data": data}
    return LoginRequest(**{**values, **fields})  # type: ignore[arg-type]


def one(login: TargetLogin, asked: LoginRequest) -> LoginResponse:
    (response,) = login.receive(asked)
    assert response.status == LoginStatus.SUCCESS
    return response


def refused(login: TargetLogin, asked: LoginRequest) -> int:
    with pytest.raises(LoginError) as caught:
        login.receive(asked)
    assert login.failed
    assert not login.done
    response = login.failure(asked, caught.value.status)
    assert (response.status, response.transit, response.tsih) == (caught.value.status, False, asked.tsih)
    return caught.value.status


def logged_in(login: TargetLogin) -> TargetLogin:
    one(login, request(OPERATIONAL, FULL, NAMES))
    return login


# The ways through the stages.


def test_login_through_both_stages_reaches_full_feature_phase() -> None:
    login = new()
    first = one(login, request(SECURITY, OPERATIONAL, [*NAMES, ("AuthMethod", "CHAP,None")]))
    assert (first.transit, first.csg, first.nsg, first.tsih) == (True, SECURITY, OPERATIONAL, 0)
    assert parse(first.data) == [("TargetPortalGroupTag", "1"), ("AuthMethod", "None")]
    assert not login.done
    second = one(login, request(OPERATIONAL, FULL, [("MaxBurstLength", "65536"), ("HeaderDigest", "None")]))
    assert (second.transit, second.csg, second.nsg, second.tsih) == (True, OPERATIONAL, FULL, 77)
    assert parse(second.data) == [
        ("MaxBurstLength", "65536"),
        ("HeaderDigest", "None"),
        ("MaxRecvDataSegmentLength", "262144"),
    ]
    assert login.done
    assert login.parameters.max_burst_length == 65536
    assert login.parameters.initiator_name == INITIATOR
    assert login.parameters.target_name == TARGET
    assert (login.parameters.isid, login.parameters.tsih) == (ISID, 77)


def test_login_that_skips_the_security_stage_reaches_full_feature_phase() -> None:
    login = new()
    response = one(login, request(OPERATIONAL, FULL, [*NAMES, ("ImmediateData", "Yes")]))
    assert dict(parse(response.data)) == {
        "TargetPortalGroupTag": "1",
        "ImmediateData": "Yes",
        "MaxRecvDataSegmentLength": "262144",
    }
    assert login.done


def test_login_from_security_straight_to_full_feature_leaves_the_defaults() -> None:
    login = new()
    response = one(login, request(SECURITY, FULL, [*NAMES, ("AuthMethod", "None")]))
    assert (response.nsg, response.tsih) == (FULL, 77)
    assert login.parameters.max_recv_data_segment_length == 8192
    assert login.parameters.initial_r2t is True


def test_login_that_lingers_in_a_stage_moves_when_asked() -> None:
    login = new()
    assert not one(login, request(SECURITY, None, NAMES)).transit
    assert one(login, request(SECURITY, OPERATIONAL)).transit
    assert not one(login, request(OPERATIONAL, None, [("ErrorRecoveryLevel", "0")])).transit
    assert one(login, request(OPERATIONAL, FULL)).transit
    assert login.done


def test_discovery_login_needs_no_target_and_gets_no_portal_group() -> None:
    login = new()
    pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery"), ("MaxBurstLength", "512")]
    response = one(login, request(OPERATIONAL, FULL, pairs))
    assert dict(parse(response.data)) == {"MaxBurstLength": "Irrelevant", "MaxRecvDataSegmentLength": "262144"}
    assert login.parameters.discovery
    assert login.parameters.target_name == ""


def test_target_declares_its_segment_length_once() -> None:
    login = new()
    one(login, request(OPERATIONAL, None, NAMES))
    assert parse(one(login, request(OPERATIONAL, FULL)).data) == []


# What the authority says.


@pytest.mark.parametrize(
    ("pairs", "question"),
    [
        (NAMES, (TARGET, INITIATOR, "Normal")),
        (NAMES[:2], (TARGET, INITIATOR, "Normal")),
        ([NAMES[0], ("SessionType", "Discovery")], ("", INITIATOR, "Discovery")),
        ([NAMES[0], NAMES[1], ("SessionType", "Discovery")], ("", INITIATOR, "Discovery")),
    ],
)
def test_authority_is_asked_once_and_with_the_names(pairs: list[Pair], question: tuple[str, str, str]) -> None:
    authority = Asked()
    login = TargetLogin(authority, tsih=1)
    login.receive(request(SECURITY, OPERATIONAL, pairs))
    login.receive(request(OPERATIONAL, FULL))
    assert authority.questions == [question]


@pytest.mark.parametrize(
    "status",
    [
        LoginStatus.NOT_FOUND,
        LoginStatus.TARGET_REMOVED,
        LoginStatus.AUTHORIZATION_FAILURE,
        LoginStatus.SESSION_TYPE_NOT_SUPPORTED,
        LoginStatus.SERVICE_UNAVAILABLE,
        LoginStatus.OUT_OF_RESOURCES,
        LoginStatus.TARGET_ERROR,
    ],
)
def test_refusal_of_the_authority_is_the_status_of_the_login(status: LoginStatus) -> None:
    assert refused(new(int(status)), request(SECURITY, OPERATIONAL, NAMES)) == status


def test_admission_brings_offers_alias_and_portal_group_of_the_target() -> None:
    offers = {**TARGET_OFFERS, "MaxRecvDataSegmentLength": "65536", "MaxBurstLength": "4096"}
    login = new(Admission(offers=offers, alias="scratch", portal_group_tag=0))
    response = one(login, request(OPERATIONAL, FULL, [*NAMES, ("MaxBurstLength", "8192")]))
    assert parse(response.data) == [
        ("TargetPortalGroupTag", "0"),
        ("TargetAlias", "scratch"),
        ("MaxBurstLength", "4096"),
        ("MaxRecvDataSegmentLength", "65536"),
    ]
    assert login.parameters.target_alias == "scratch"
    assert login.parameters.target_portal_group_tag == 0


@pytest.mark.parametrize(("permanent", "status"), [(False, 0x0101), (True, 0x0102)])
def test_redirection_carries_the_address_in_the_response(permanent: bool, status: int) -> None:
    def authority(target: str, initiator: str, session_type: str) -> int:
        raise Redirect("[2001:db8::1]:3261", permanent=permanent)

    login = TargetLogin(authority, tsih=1)
    asked = request(SECURITY, OPERATIONAL, NAMES)
    assert refused(login, asked) == status
    assert parse(login.failure(asked, status).data) == [("TargetAddress", "[2001:db8::1]:3261")]


class Strict:
    """An authenticator that wants one exchange of CHAP_A before it is content."""

    def __init__(self) -> None:
        self.done = False
        self.heard: list[Pair] = []

    def offer(self) -> list[Pair]:
        return []

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        self.heard += pairs
        names = dict(pairs)
        if "CHAP_A" in names:
            self.done = True
            return [("CHAP_A", names["CHAP_A"])]
        return [("AuthMethod", "CHAP")] if "AuthMethod" in names else []


def test_authenticator_holds_the_security_stage_until_it_is_done() -> None:
    strict = Strict()
    login = new(Admission(authenticator=strict))
    first = one(login, request(SECURITY, OPERATIONAL, [*NAMES, ("AuthMethod", "CHAP,None")]))
    assert not first.transit
    assert ("AuthMethod", "CHAP") in parse(first.data)
    second = one(login, request(SECURITY, OPERATIONAL, [("CHAP_A", "5")]))
    assert second.transit
    assert parse(second.data) == [("CHAP_A", "5")]
    assert strict.heard == [("AuthMethod", "CHAP,None"), ("CHAP_A", "5")]


def test_security_stage_may_not_be_skipped_where_it_is_needed() -> None:
    login = new(Admission(authenticator=Strict()))
    assert refused(login, request(OPERATIONAL, FULL, NAMES)) == LoginStatus.AUTHENTICATION_FAILURE


def test_security_stage_without_a_method_does_not_end_where_one_is_needed() -> None:
    login = new(Admission(authenticator=Strict()))
    assert not one(login, request(SECURITY, FULL, NAMES)).transit
    assert not login.done


# Failures.


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(SECURITY, OPERATIONAL, NAMES, version_min=1, version_max=2), LoginStatus.UNSUPPORTED_VERSION),
        (request(SECURITY, OPERATIONAL, NAMES[1:]), LoginStatus.MISSING_PARAMETER),
        (request(SECURITY, OPERATIONAL, NAMES[:1]), LoginStatus.MISSING_PARAMETER),
        (request(SECURITY, OPERATIONAL), LoginStatus.MISSING_PARAMETER),
        (request(SECURITY, OPERATIONAL, [("InitiatorName", ""), *NAMES[1:]]), LoginStatus.MISSING_PARAMETER),
        (
            request(SECURITY, OPERATIONAL, [*NAMES[:2], ("SessionType", "Boot")]),
            LoginStatus.SESSION_TYPE_NOT_SUPPORTED,
        ),
        (request(SECURITY, OPERATIONAL, NAMES, tsih=5), LoginStatus.SESSION_DOES_NOT_EXIST),
        (request(SECURITY, OPERATIONAL, [*NAMES, ("AuthMethod", "CHAP")]), LoginStatus.AUTHENTICATION_FAILURE),
        (request(SECURITY, OPERATIONAL, [*NAMES, ("CHAP_N", "joe")]), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, [*NAMES, ("AuthMethod", "None")]), LoginStatus.INITIATOR_ERROR),
        (request(SECURITY, OPERATIONAL, [*NAMES, ("HeaderDigest", "None")]), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, [*NAMES, ("SendTargets", "All")]), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, [*NAMES, NAMES[0]]), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, [("InitiatorName", "a\nb"), NAMES[1]]), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, b"garbage\xff\xfe"), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, b"garbage\0"), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, b"A=" + b"x" * 65536), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, FULL, NAMES, continued=True), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, SECURITY, NAMES), LoginStatus.INITIATOR_ERROR),
        (request(OPERATIONAL, OPERATIONAL, NAMES), LoginStatus.INITIATOR_ERROR),
        (request(SECURITY, 2, NAMES), LoginStatus.INITIATOR_ERROR),
        (request(2, FULL, NAMES), LoginStatus.INITIATOR_ERROR),
        (request(FULL, FULL, NAMES), LoginStatus.INITIATOR_ERROR),
    ],
)
def test_first_request_that_cannot_be_granted_has_its_status(asked: LoginRequest, status: LoginStatus) -> None:
    assert refused(new(), asked) == status


@pytest.mark.parametrize(
    "then",
    [
        request(SECURITY, OPERATIONAL),  # back
        request(FULL, FULL),
        request(OPERATIONAL, FULL, isid=1),
        request(OPERATIONAL, FULL, tsih=77),
        request(OPERATIONAL, FULL, cid=9),
        request(OPERATIONAL, FULL, [("InitiatorName", "iqn.other")]),
        request(OPERATIONAL, FULL, [("MaxBurstLength", "512"), ("MaxBurstLength", "512")]),
    ],
)
def test_second_request_that_breaks_the_rules_ends_the_login(then: LoginRequest) -> None:
    login = new()
    one(login, request(SECURITY, OPERATIONAL, NAMES))
    assert refused(login, then) == LoginStatus.INITIATOR_ERROR


def test_version_range_that_includes_ours_is_accepted() -> None:
    response = one(new(), request(SECURITY, OPERATIONAL, NAMES, version_min=0, version_max=3))
    assert (response.version_active, response.version_max) == (0, 0)


def test_endless_login_is_ended_by_its_number_of_requests() -> None:
    login = new(request_limit=5)
    one(login, request(SECURITY, None, NAMES))
    for _ in range(4):
        one(login, request(SECURITY, None))
    assert refused(login, request(SECURITY, None)) == LoginStatus.INITIATOR_ERROR


def test_endless_text_is_ended_by_its_length() -> None:
    login = new(text_limit=10000)
    one(login, request(SECURITY, None, b"A=" + b"x" * 8190, continued=True))
    assert refused(login, request(SECURITY, None, b"x" * 8192, continued=True)) == LoginStatus.INITIATOR_ERROR


def test_text_limit_holds_for_the_login_and_not_for_each_text() -> None:
    login = new(text_limit=1000)
    one(login, request(SECURITY, None, NAMES))
    for number in range(3):
        one(login, request(SECURITY, None, [(f"X-{number}", "x" * 250)]))
    assert refused(login, request(SECURITY, None, [("X-3", "x" * 250)])) == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize("pairs", [[], [("DataDigest", "None")], [("DataDigest", "X-sum")]])
def test_initiator_without_the_digest_that_we_insist_on_is_refused(pairs: list[Pair]) -> None:
    login = new(offers={**TARGET_OFFERS, "DataDigest": "CRC32C"})
    assert refused(login, request(OPERATIONAL, FULL, [*NAMES, *pairs])) == LoginStatus.INITIATOR_ERROR


def test_login_that_is_over_takes_nothing_more() -> None:
    for login in (logged_in(new()), new()):
        if not login.done:
            refused(login, request(FULL, FULL))
        with pytest.raises(LocalProtocolError, match="over"):
            login.receive(request(OPERATIONAL, FULL))


def test_parameters_of_a_login_that_is_not_done_are_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="not done"):
        _ = new().parameters
    with pytest.raises(LocalProtocolError, match="not begun"):
        _ = new().negotiator


@pytest.mark.parametrize("tsih", [0, -1, 65536])
def test_tsih_out_of_range_is_our_bug(tsih: int) -> None:
    with pytest.raises(LocalProtocolError, match="TSIH"):
        new(tsih=tsih)


def test_failure_decided_by_the_caller_answers_the_request() -> None:
    login = new()
    asked = request(SECURITY, None, NAMES, initiator_task_tag=0xABCD)
    response = login.failure(asked, LoginStatus.SERVICE_UNAVAILABLE)
    assert (response.status, response.initiator_task_tag, response.isid) == (0x0301, 0xABCD, ISID)
    assert login.failed


# Numbers.


def test_numbers_follow_the_first_request_and_count_responses() -> None:
    login = new(stat_sn=0xFFFFFFFF, command_window=32)
    first = one(login, request(SECURITY, OPERATIONAL, NAMES, cmd_sn=0xFFFFFFF0, initiator_task_tag=7))
    second = one(login, request(OPERATIONAL, FULL, cmd_sn=0xFFFFFFF0, initiator_task_tag=8))
    assert [first.stat_sn, second.stat_sn, login.stat_sn] == [0xFFFFFFFF, 0, 1]
    assert [first.initiator_task_tag, second.initiator_task_tag] == [7, 8]
    assert {first.exp_cmd_sn, second.exp_cmd_sn, login.exp_cmd_sn} == {0xFFFFFFF0}
    assert {first.max_cmd_sn, second.max_cmd_sn, login.max_cmd_sn} == {0xF}


def test_responses_echo_isid_and_name_the_session_only_at_the_end() -> None:
    login = new()
    responses = [one(login, request(SECURITY, OPERATIONAL, NAMES)), one(login, request(OPERATIONAL, FULL))]
    assert [response.isid for response in responses] == [ISID, ISID]
    assert [response.tsih for response in responses] == [0, 77]


# Joining a session.


def test_connection_that_may_join_keeps_the_sessions_tsih() -> None:
    login = new(rejoin=lambda asked: 0 if asked.tsih == 5 else LoginStatus.SESSION_DOES_NOT_EXIST)
    response = one(login, request(OPERATIONAL, FULL, NAMES, tsih=5, cid=2))
    assert response.tsih == 5
    assert (login.parameters.tsih, login.parameters.cid) == (5, 2)


def test_connection_that_may_not_join_gets_the_status() -> None:
    login = new(rejoin=lambda asked: int(LoginStatus.TOO_MANY_CONNECTIONS))
    assert refused(login, request(OPERATIONAL, FULL, NAMES, tsih=5)) == LoginStatus.TOO_MANY_CONNECTIONS


def test_connection_that_joins_may_not_negotiate_for_the_session() -> None:
    login = new(rejoin=lambda asked: 0)
    asked = request(OPERATIONAL, FULL, [*NAMES, ("MaxBurstLength", "512")], tsih=5)
    assert refused(login, asked) == LoginStatus.INITIATOR_ERROR


# Text in pieces.


def test_text_in_pieces_is_answered_when_it_is_whole() -> None:
    login = new()
    *pieces, last = split(build([*NAMES, ("MaxBurstLength", "512")]), 7)
    for piece in pieces:
        response = one(login, request(OPERATIONAL, None, piece, continued=True))
        assert (response.data, response.transit, response.continued) == (b"", False, False)
    response = one(login, request(OPERATIONAL, FULL, last))
    assert ("MaxBurstLength", "512") in parse(response.data)
    assert login.done


def long_answer() -> tuple[TargetLogin, bytes]:
    """A login whose answer needs three responses because the initiator takes 512 bytes only."""
    login = new()
    one(login, request(OPERATIONAL, None, [*NAMES, ("MaxRecvDataSegmentLength", "512")]))
    return login, build([(f"X-{'key' * 15}{number:02}", "1") for number in range(18)])


def test_long_answer_goes_out_in_pieces_and_transits_with_the_last() -> None:
    login, text = long_answer()
    response = one(login, request(OPERATIONAL, FULL, text))
    data = bytes(response.data)
    while response.continued:
        assert len(response.data) == 512
        assert not response.transit
        response = one(login, request(OPERATIONAL, FULL))
        data += response.data
    assert response.transit
    assert login.done
    assert [value for _, value in parse(data)] == ["NotUnderstood"] * 18


@pytest.mark.parametrize("fields", [{"pairs": [("X-a", "1")]}, {"pairs": [], "continued": True}])
def test_text_in_the_middle_of_a_long_answer_is_refused(fields: dict[str, object]) -> None:
    login, text = long_answer()
    assert one(login, request(OPERATIONAL, FULL, text)).continued
    then = request(OPERATIONAL, None, **fields)  # type: ignore[arg-type]
    assert refused(login, then) == LoginStatus.INITIATOR_ERROR


def test_request_data_is_copied_before_the_call_returns() -> None:
    login = new()
    text = bytearray(build(NAMES))
    half = len(text) // 2
    one(login, request(OPERATIONAL, None, continued=True, data=memoryview(text)[:half]))
    rest = bytes(text[half:])
    text[:] = bytes(len(text))
    one(login, request(OPERATIONAL, FULL, rest))
    assert login.parameters.initiator_name == INITIATOR


# Initiators of the field, in the words they use.

LIBISCSI_OPERATIONAL = [
    ("HeaderDigest", "None,CRC32C"),
    ("DataDigest", "None"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "262144"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "0"),
    ("MaxOutstandingR2T", "1"),
    ("ErrorRecoveryLevel", "0"),
    ("IFMarker", "No"),
    ("OFMarker", "No"),
    ("MaxConnections", "1"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
]


def test_libiscsi_repeats_its_names_in_the_operational_stage() -> None:
    login = new()
    names = [("InitiatorName", INITIATOR), ("InitiatorAlias", ""), ("TargetName", TARGET), ("SessionType", "Normal")]
    one(login, request(SECURITY, OPERATIONAL, [*names, ("AuthMethod", "CHAP,None")]))
    replies = dict(parse(one(login, request(OPERATIONAL, FULL, [*names, *LIBISCSI_OPERATIONAL])).data))
    assert login.done
    assert "Reject" not in replies.values()
    assert replies["FirstBurstLength"] == "262144"
    assert login.parameters.peer_max_recv_data_segment_length == 262144
    assert not login.parameters.header_digest


def test_libiscsi_discovery_is_let_in_with_all_its_keys() -> None:
    login = new()
    names = [("InitiatorName", INITIATOR), ("InitiatorAlias", ""), ("SessionType", "Discovery")]
    one(login, request(SECURITY, OPERATIONAL, [*names, ("AuthMethod", "CHAP,None")]))
    one(login, request(OPERATIONAL, FULL, [*names, *LIBISCSI_OPERATIONAL]))
    assert login.parameters.discovery


def test_open_iscsi_declares_its_segment_length_and_asks_for_crc32c() -> None:
    login = new()
    names = [("InitiatorName", INITIATOR), ("InitiatorAlias", "host"), ("TargetName", TARGET)]
    one(login, request(SECURITY, OPERATIONAL, [*names, ("SessionType", "Normal"), ("AuthMethod", "None")]))
    pairs = [
        ("HeaderDigest", "CRC32C,None"),
        ("DataDigest", "CRC32C,None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "0"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "262144"),
    ]
    one(login, request(OPERATIONAL, FULL, pairs))
    parameters = login.parameters
    assert parameters.header_digest
    assert parameters.data_digest
    assert not parameters.initial_r2t
    assert parameters.max_burst_length == 1048576


def test_initiator_that_declares_its_segment_length_in_the_security_stage_is_heard() -> None:
    login = new()
    one(login, request(SECURITY, OPERATIONAL, [*NAMES, ("MaxRecvDataSegmentLength", "65536")]))
    one(login, request(OPERATIONAL, FULL))
    assert login.parameters.peer_max_recv_data_segment_length == 65536


def test_netbsd_offers_no_for_the_orders_and_private_keys_are_not_understood() -> None:
    login = new()
    pairs = [("DataPDUInOrder", "No"), ("DataSequenceInOrder", "No"), ("X-com.example.a", "b")]
    replies = dict(parse(one(login, request(OPERATIONAL, FULL, [*NAMES, *pairs])).data))
    assert replies["DataPDUInOrder"] == "Yes"
    assert replies["X-com.example.a"] == "NotUnderstood"
    assert login.parameters.data_pdu_in_order


def test_marker_intervals_of_rfc_3720_are_rejected_and_do_no_harm() -> None:
    login = new()
    pairs = [("OFMarker", "Yes"), ("OFMarkInt", "2048~8192"), ("IFMarker", "Yes"), ("IFMarkInt", "2048~8192")]
    replies = dict(parse(one(login, request(OPERATIONAL, FULL, [*NAMES, *pairs])).data))
    assert [replies[name] for name, _ in pairs] == ["No", "Reject", "No", "Reject"]
    assert login.done


def test_padding_counted_into_the_text_and_a_missing_last_nul_are_overlooked() -> None:
    for text in (build(NAMES) + bytes(3), build(NAMES)[:-1]):
        login = new()
        one(login, request(OPERATIONAL, FULL, text))
        assert login.done
