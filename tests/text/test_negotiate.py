"""text.negotiate: proposals, answers, declarations and everything that a peer may not do."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError, RemoteProtocolError
from iscsid.text.codec import Pair
from iscsid.text.keys import (
    AUTHENTICATION_KEYS,
    DISCOVERY,
    INITIATOR_OFFERS,
    KEYS,
    NORMAL,
    TARGET_OFFERS,
    Phase,
    Role,
)
from iscsid.text.negotiate import Negotiator


def target(session_type: str = NORMAL, *, leading: bool = True, **offers: str) -> Negotiator:
    return Negotiator(Role.TARGET, session_type, {**TARGET_OFFERS, **offers}, leading=leading)


def initiator(session_type: str = NORMAL, *, leading: bool = True, **offers: str) -> Negotiator:
    return Negotiator(Role.INITIATOR, session_type, {**INITIATOR_OFFERS, **offers}, leading=leading)


def ask(*pairs: Pair, phase: Phase = Phase.OPERATIONAL, **offers: str) -> list[Pair]:
    return target(**offers).answer(pairs, phase)


# The responder.


@pytest.mark.parametrize(
    ("name", "theirs", "answer"),
    [
        ("HeaderDigest", "None,CRC32C", "None"),
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("DataDigest", "CRC32C", "CRC32C"),
        ("DataDigest", "MD5", "Reject"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("MaxBurstLength", "16776192", "1048576"),
        ("MaxBurstLength", "512", "512"),
        ("MaxBurstLength", "0", "Reject"),
        ("MaxBurstLength", "lots", "Reject"),
        ("FirstBurstLength", "262144", "262144"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "5", "5"),
        ("DefaultTime2Retain", "20", "0"),
        ("MaxOutstandingR2T", "1", "1"),
        ("MaxOutstandingR2T", "64", "8"),
        ("MaxConnections", "8", "1"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("iSCSIProtocolLevel", "31", "2"),
        ("iSCSIProtocolLevel", "1", "1"),
        ("TaskReporting", "FastAbort,ResponseFence,RFC3720", "ResponseFence"),
        ("OFMarker", "No", "No"),
        ("IFMarker", "Yes", "No"),
        ("OFMarkInt", "2048~8192", "Reject"),
        ("X-com.example.turbo", "Yes", "NotUnderstood"),
        ("NoSuchKey", "", "NotUnderstood"),
        ("RDMAExtensions", "Yes", "NotUnderstood"),
    ],
)
def test_answer_of_the_target_to_a_proposal(name: str, theirs: str, answer: str) -> None:
    assert ask((name, theirs)) == [(name, answer)]


@pytest.mark.parametrize("first", ["MaxBurstLength", "FirstBurstLength"])
def test_first_burst_is_bounded_by_max_burst_wherever_it_stands(first: str) -> None:
    pairs = [("FirstBurstLength", "262144"), ("MaxBurstLength", "65536")]
    replies = dict(ask(*sorted(pairs, key=lambda pair: pair[0] != first)))
    assert replies == {"FirstBurstLength": "65536", "MaxBurstLength": "65536"}


def test_first_burst_alone_is_bounded_by_the_default_of_max_burst() -> None:
    assert ask(("FirstBurstLength", "1048576"), FirstBurstLength="1048576") == [("FirstBurstLength", "262144")]


@pytest.mark.parametrize("name", [name for name in TARGET_OFFERS if not KEYS[name].discovery])
def test_key_without_meaning_in_discovery_is_irrelevant(name: str) -> None:
    negotiator = target(DISCOVERY)
    assert negotiator.answer([(name, KEYS[name].default or "")], Phase.OPERATIONAL) == [(name, "Irrelevant")]
    assert negotiator.outcome(name) == KEYS[name].rule.value(KEYS[name].default or "")


def test_declarations_get_no_answer_and_are_remembered() -> None:
    negotiator = target()
    pairs = [("InitiatorName", "iqn.x"), ("InitiatorAlias", ""), ("MaxRecvDataSegmentLength", "0x1000")]
    assert negotiator.answer(pairs, Phase.SECURITY) == []
    assert negotiator.declared("InitiatorName") == "iqn.x"
    assert negotiator.declared("InitiatorAlias") == ""
    assert negotiator.declared("MaxRecvDataSegmentLength") == 4096
    assert negotiator.declared("TargetName") is None


def test_same_declaration_in_the_next_stage_is_tolerated() -> None:
    negotiator = target()
    names = [("InitiatorName", "iqn.x"), ("SessionType", "Normal"), ("TargetName", "iqn.y"), ("InitiatorAlias", "")]
    assert negotiator.answer(names, Phase.SECURITY) == []
    assert negotiator.answer(names, Phase.OPERATIONAL) == []


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("InitiatorName", "iqn.other"),
        ("TargetName", "iqn.other"),
        ("SessionType", "Discovery"),
        ("MaxRecvDataSegmentLength", "1024"),
    ],
)
def test_other_declaration_in_the_next_stage_is_refused(name: str, then: str) -> None:
    negotiator = target()
    now = {"SessionType": "Normal", "MaxRecvDataSegmentLength": "512"}.get(name, "iqn.x")
    negotiator.answer([(name, now)], Phase.SECURITY)
    with pytest.raises(RemoteProtocolError, match=f"{name} was"):
        negotiator.answer([(name, then)], Phase.OPERATIONAL)


@pytest.mark.parametrize("value", ["512", "65536"])
def test_segment_length_may_be_declared_anew_in_full_feature_phase(value: str) -> None:
    negotiator = target()
    negotiator.answer([("MaxRecvDataSegmentLength", "8192")], Phase.OPERATIONAL)
    for text in (value, "262144", "262144"):
        assert negotiator.answer([("MaxRecvDataSegmentLength", text)], Phase.FULL_FEATURE) == []
        assert negotiator.declared("MaxRecvDataSegmentLength") == int(text)


@pytest.mark.parametrize(
    ("pairs", "phase", "reason"),
    [
        ([("MaxBurstLength", "512")] * 2, Phase.OPERATIONAL, "twice"),
        ([("X-a", "1"), ("X-a", "1")], Phase.OPERATIONAL, "twice"),
        ([("HeaderDigest", "None")], Phase.SECURITY, "not allowed in the SECURITY"),
        ([("HeaderDigest", "None")], Phase.FULL_FEATURE, "not allowed in the FULL_FEATURE"),
        ([("InitiatorName", "iqn.x")], Phase.FULL_FEATURE, "not allowed"),
        ([("SendTargets", "All")], Phase.OPERATIONAL, "not allowed"),
        ([("AuthMethod", "None")], Phase.OPERATIONAL, "not allowed"),
        ([("TargetAlias", "a")], Phase.OPERATIONAL, "not for the INITIATOR"),
        ([("TargetPortalGroupTag", "1")], Phase.OPERATIONAL, "not for the INITIATOR"),
        ([("MaxRecvDataSegmentLength", "0")], Phase.OPERATIONAL, "not in 512"),
        ([("MaxRecvDataSegmentLength", "16777216")], Phase.OPERATIONAL, "not in 512"),
        ([("SessionType", "Party")], Phase.OPERATIONAL, "not one of"),
        ([("InitiatorAlias", "x" * 256)], Phase.OPERATIONAL, "longer than 255"),
        ([("MaxBurstLength", "Reject")], Phase.OPERATIONAL, "answers nothing"),
        ([("NoSuchKey", "NotUnderstood")], Phase.OPERATIONAL, "answers nothing"),
    ],
)
def test_what_an_initiator_may_not_say_is_refused(pairs: list[Pair], phase: Phase, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        target().answer(pairs, phase)


@pytest.mark.parametrize("pair", [("MaxBurstLength", "512"), ("DataDigest", "MD5"), ("OFMarker", "No"), ("X-a", "1")])
def test_negotiating_again_is_refused_whatever_the_outcome(pair: Pair) -> None:
    negotiator = target()
    negotiator.answer([pair], Phase.OPERATIONAL)
    with pytest.raises(RemoteProtocolError, match="again"):
        negotiator.answer([pair], Phase.OPERATIONAL)


def test_unknown_keys_of_full_feature_phase_are_not_remembered() -> None:
    negotiator = target()
    for _ in range(3):
        assert negotiator.answer([("X-a", "1")], Phase.FULL_FEATURE) == [("X-a", "NotUnderstood")]


def test_joining_connection_may_not_settle_what_holds_for_the_session() -> None:
    negotiator = target(leading=False)
    assert negotiator.answer([("HeaderDigest", "CRC32C,None")], Phase.OPERATIONAL) == [("HeaderDigest", "CRC32C")]
    with pytest.raises(RemoteProtocolError, match="leading connection"):
        negotiator.answer([("MaxBurstLength", "512")], Phase.OPERATIONAL)


@pytest.mark.parametrize(("name", "phase"), [("CHAP_N", Phase.SECURITY), ("SendTargets", Phase.FULL_FEATURE)])
def test_keys_of_other_owners_must_not_reach_the_negotiator(name: str, phase: Phase) -> None:
    with pytest.raises(LocalProtocolError, match="not for the negotiator"):
        target().answer([(name, "All")], phase)


def test_rejected_proposal_leaves_the_default() -> None:
    negotiator = target()
    negotiator.answer([("MaxBurstLength", "1")], Phase.OPERATIONAL)
    assert negotiator.outcome("MaxBurstLength") == 262144


# The originator.


def test_propose_offers_everything_once_and_only_in_its_phase() -> None:
    negotiator = initiator()
    assert negotiator.propose(Phase.SECURITY) == []
    assert dict(negotiator.propose(Phase.OPERATIONAL)) == INITIATOR_OFFERS
    assert negotiator.propose(Phase.OPERATIONAL) == []
    assert negotiator.announced("MaxRecvDataSegmentLength") == 262144


def test_propose_in_discovery_leaves_out_what_is_irrelevant() -> None:
    assert {name for name, _ in initiator(DISCOVERY).propose(Phase.OPERATIONAL)} == {
        "HeaderDigest",
        "DataDigest",
        "MaxRecvDataSegmentLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "ErrorRecoveryLevel",
    }


def test_propose_of_a_joining_connection_is_of_its_own_scope() -> None:
    assert {name for name, _ in initiator(leading=False).propose(Phase.OPERATIONAL)} == {
        "HeaderDigest",
        "DataDigest",
        "MaxRecvDataSegmentLength",
    }


def test_propose_does_not_repeat_what_the_peer_has_settled() -> None:
    negotiator = initiator()
    negotiator.answer([("MaxBurstLength", "65536")], Phase.OPERATIONAL)
    assert "MaxBurstLength" not in dict(negotiator.propose(Phase.OPERATIONAL))


def test_answers_become_the_outcome() -> None:
    negotiator = initiator()
    negotiator.propose(Phase.OPERATIONAL)
    answers = [("MaxBurstLength", "65536"), ("HeaderDigest", "CRC32C"), ("InitialR2T", "Yes"), ("ImmediateData", "No")]
    assert negotiator.answer(answers, Phase.OPERATIONAL) == []
    outcomes = [negotiator.outcome(name) for name, _ in answers]
    assert outcomes == [65536, "CRC32C", True, False]


@pytest.mark.parametrize("word", ["Reject", "Irrelevant", "NotUnderstood"])
def test_answer_that_is_no_value_leaves_the_default(word: str) -> None:
    negotiator = initiator()
    negotiator.propose(Phase.OPERATIONAL)
    negotiator.answer([("MaxOutstandingR2T", word), ("HeaderDigest", word)], Phase.OPERATIONAL)
    assert negotiator.outcome("MaxOutstandingR2T") == 1
    assert negotiator.outcome("HeaderDigest") == "None"


@pytest.mark.parametrize(
    ("offer", "answer", "unmet"),
    [
        ("CRC32C", "Reject", True),
        ("CRC32C", None, True),
        ("CRC32C", "CRC32C", False),
        ("CRC32C,None", "Reject", False),
        ("None,CRC32C", "CRC32C", False),
    ],
)
def test_digest_that_we_insist_on_is_told_when_it_did_not_come_about(
    offer: str, answer: str | None, unmet: bool
) -> None:
    negotiator = initiator(HeaderDigest=offer)
    negotiator.propose(Phase.OPERATIONAL)
    if answer is not None:
        negotiator.answer([("HeaderDigest", answer)], Phase.OPERATIONAL)
    assert negotiator.unmet == (["HeaderDigest"] if unmet else [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MaxBurstLength", "1048577"),
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "x"),
        ("DefaultTime2Wait", "1"),
        ("HeaderDigest", "MD5"),
        ("DataPDUInOrder", "No"),
        ("InitialR2T", "Perhaps"),
    ],
)
def test_answer_that_the_rule_does_not_admit_is_refused(name: str, text: str) -> None:
    negotiator = initiator()
    negotiator.propose(Phase.OPERATIONAL)
    with pytest.raises(RemoteProtocolError, match=name):
        negotiator.answer([(name, text)], Phase.OPERATIONAL)


def test_second_answer_is_taken_for_a_renegotiation() -> None:
    negotiator = initiator()
    negotiator.propose(Phase.OPERATIONAL)
    negotiator.answer([("MaxBurstLength", "65536")], Phase.OPERATIONAL)
    with pytest.raises(RemoteProtocolError, match="again"):
        negotiator.answer([("MaxBurstLength", "65536")], Phase.OPERATIONAL)


def test_booleans_that_decide_alone_need_no_answer() -> None:
    negotiator = initiator(ImmediateData="No", InitialR2T="Yes", DataPDUInOrder="No")
    negotiator.propose(Phase.OPERATIONAL)
    assert "DataPDUInOrder" in negotiator.waiting
    assert not negotiator.waiting & {"ImmediateData", "InitialR2T", "DataSequenceInOrder"}
    assert negotiator.outcome("ImmediateData") is False
    assert negotiator.outcome("InitialR2T") is True
    assert negotiator.outcome("DataPDUInOrder") is True  # no answer: the default


def test_announce_says_a_thing_once() -> None:
    negotiator = target()
    assert negotiator.announce("TargetAlias", "disk") == [("TargetAlias", "disk")]
    assert negotiator.announce("TargetAlias", "disk") == []
    assert negotiator.announced("TargetAlias") == "disk"
    assert negotiator.announced("TargetPortalGroupTag") is None


def test_outcome_of_a_key_without_value_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="has no value"):
        target().outcome("CHAP_N")


# Both.


def test_pair_with_default_offers_agrees_on_every_key() -> None:
    ours, theirs = initiator(), target()
    assert ours.answer(theirs.answer(ours.propose(Phase.OPERATIONAL), Phase.OPERATIONAL), Phase.OPERATIONAL) == []
    assert not ours.waiting
    for name in INITIATOR_OFFERS:
        if KEYS[name].rule.negotiated:
            assert ours.outcome(name) == theirs.outcome(name), name


def offers() -> st.SearchStrategy[dict[str, str]]:
    lengths = st.integers(512, 16777215).map(str)
    booleans = st.sampled_from(["Yes", "No"])
    lists = st.sampled_from(["None", "CRC32C,None", "None,CRC32C"])
    times = st.integers(0, 3600).map(str)
    return st.fixed_dictionaries(
        {
            "HeaderDigest": lists,
            "DataDigest": lists,
            "InitialR2T": booleans,
            "ImmediateData": booleans,
            "MaxBurstLength": lengths,
            "FirstBurstLength": lengths,
            "DefaultTime2Wait": times,
            "DefaultTime2Retain": times,
            "MaxOutstandingR2T": st.integers(1, 65535).map(str),
            "DataPDUInOrder": booleans,
            "ErrorRecoveryLevel": st.integers(0, 2).map(str),
        }
    )


@settings(deadline=None)
@given(offers(), offers())
def test_pair_with_any_offers_agrees_on_every_key(left: dict[str, str], right: dict[str, str]) -> None:
    ours, theirs = Negotiator(Role.INITIATOR, NORMAL, left), Negotiator(Role.TARGET, NORMAL, right)
    assert ours.answer(theirs.answer(ours.propose(Phase.OPERATIONAL), Phase.OPERATIONAL), Phase.OPERATIONAL) == []
    assert all(ours.outcome(name) == theirs.outcome(name) for name in left)
    assert theirs.outcome("FirstBurstLength") <= theirs.outcome("MaxBurstLength")


texts = st.tuples(
    st.sampled_from([*sorted(set(KEYS) - AUTHENTICATION_KEYS - {"SendTargets"}), "X-a", "Foo"]),
    st.sampled_from(["", "0", "1", "512", "0x", "Yes", "No", "None", "CRC32C,None", "Reject", "NotUnderstood", "iqn.x"])
    | st.text(max_size=20),
)
phases = st.sampled_from([Phase.SECURITY, Phase.OPERATIONAL, Phase.FULL_FEATURE])


@settings(deadline=None)
@given(st.sampled_from(Role), st.sampled_from([NORMAL, DISCOVERY]), st.lists(st.tuples(texts, phases), max_size=12))
def test_any_text_raises_only_remote_errors(role: Role, kind: str, said: list[tuple[Pair, Phase]]) -> None:
    negotiator = Negotiator(role, kind, INITIATOR_OFFERS)
    if role is Role.INITIATOR:
        negotiator.propose(Phase.OPERATIONAL)
    with contextlib.suppress(RemoteProtocolError):
        for pair, phase in said:
            negotiator.answer([pair], phase)
    for name in INITIATOR_OFFERS:
        if KEYS[name].rule.negotiated:
            negotiator.outcome(name)
