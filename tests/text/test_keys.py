"""text.keys: the table of RFC 7143 section 13, compared with the RFC's own numbers."""

from __future__ import annotations

import pytest

from iscsid.text import keys
from iscsid.text.keys import AUTHENTICATION_KEYS, KEYS, OFFERABLE, Phase, Role, Scope
from iscsid.text.rules import And, Choice, Fixed, Maximum, Minimum, Number, Or

# name: default, rule, lowest, highest, relevant in discovery. From sections 13.2 to 13.24.
NEGOTIATED = {
    "MaxConnections": ("1", Minimum, 1, 65535, False),
    "InitialR2T": ("Yes", Or, None, None, False),
    "ImmediateData": ("Yes", And, None, None, False),
    "MaxBurstLength": ("262144", Minimum, 512, 16777215, False),
    "FirstBurstLength": ("65536", Minimum, 512, 16777215, False),
    "DefaultTime2Wait": ("2", Maximum, 0, 3600, True),
    "DefaultTime2Retain": ("20", Minimum, 0, 3600, True),
    "MaxOutstandingR2T": ("1", Minimum, 1, 65535, False),
    "DataPDUInOrder": ("Yes", Or, None, None, False),
    "DataSequenceInOrder": ("Yes", Or, None, None, False),
    "ErrorRecoveryLevel": ("0", Minimum, 0, 2, True),
    "iSCSIProtocolLevel": ("1", Minimum, 0, 31, False),
    "TaskReporting": ("RFC3720", Choice, None, None, False),
}


@pytest.mark.parametrize("name", NEGOTIATED)
def test_negotiated_session_keys_are_as_the_rfc_has_them(name: str) -> None:
    default, rule, low, high, discovery = NEGOTIATED[name]
    key = KEYS[name]
    assert (key.default, type(key.rule), key.discovery) == (default, rule, discovery)
    assert key.leading
    assert key.scope is Scope.SESSION
    assert key.phases == Phase.OPERATIONAL
    if isinstance(key.rule, Number):
        assert (key.rule.low, key.rule.high) == (low, high)


@pytest.mark.parametrize("name", ["HeaderDigest", "DataDigest"])
def test_digests_are_a_matter_of_each_connection(name: str) -> None:
    key = KEYS[name]
    assert (key.scope, key.leading, key.default) == (Scope.CONNECTION, False, "None")


def test_max_recv_data_segment_length_is_declared_in_any_phase() -> None:
    key = KEYS["MaxRecvDataSegmentLength"]
    assert not key.rule.negotiated
    assert key.phases == Phase.ANY
    assert key.default == "8192"
    assert key.rule.value("512") == 512
    assert key.rule.value("16777215") == 16777215
    for text in ("511", "16777216", "0"):
        with pytest.raises(ValueError, match="not in"):
            key.rule.value(text)


@pytest.mark.parametrize(
    ("name", "senders"),
    [
        ("InitiatorName", Role.INITIATOR),
        ("InitiatorAlias", Role.INITIATOR),
        ("SessionType", Role.INITIATOR),
        ("SendTargets", Role.INITIATOR),
        ("TargetAlias", Role.TARGET),
        ("TargetAddress", Role.TARGET),
        ("TargetPortalGroupTag", Role.TARGET),
        ("TargetName", keys.BOTH),
        ("MaxBurstLength", keys.BOTH),
    ],
)
def test_senders_are_as_the_rfc_has_them(name: str, senders: Role) -> None:
    assert KEYS[name].senders == senders


@pytest.mark.parametrize(
    ("name", "answer"), [("OFMarker", "No"), ("IFMarker", "No"), ("OFMarkInt", "Reject"), ("IFMarkInt", "Reject")]
)
def test_obsolete_keys_have_the_answer_that_is_allowed(name: str, answer: str) -> None:
    rule = KEYS[name].rule
    assert isinstance(rule, Fixed)
    assert rule.answer == answer


def test_every_row_says_where_it_comes_from_and_is_found_by_its_name() -> None:
    assert all(key.section.startswith(("12.", "13.")) and KEYS[key.name] is key for key in KEYS.values())


def test_every_default_is_a_legal_value() -> None:
    for key in KEYS.values():
        if key.default is not None:
            key.rule.value(key.default)


def test_authentication_keys_live_in_the_security_phase_only() -> None:
    assert {"AuthMethod", "CHAP_A", "CHAP_C", "CHAP_I", "CHAP_N", "CHAP_R"} == AUTHENTICATION_KEYS
    assert all(KEYS[name].phases == Phase.SECURITY for name in AUTHENTICATION_KEYS)


@pytest.mark.parametrize("text", ["-1", "256", "x"])
def test_chap_identifier_is_a_byte(text: str) -> None:
    assert KEYS["CHAP_I"].rule.value("255") == 255
    with pytest.raises(ValueError, match="not"):
        KEYS["CHAP_I"].rule.value(text)


@pytest.mark.parametrize("name", ["InitiatorName", "TargetName"])
def test_node_names_are_printable_and_bounded(name: str) -> None:
    rule = KEYS[name].rule
    assert rule.value("iqn.2026-11.org.iscsid:disk0") == "iqn.2026-11.org.iscsid:disk0"
    assert rule.value("any name"[:3]) == "any"
    for text in ("", "a b", "a\nb", "a\x1b[0m", "x" * 224):
        with pytest.raises(ValueError, match=r"name|longer"):
            rule.value(text)


@pytest.mark.parametrize(("stage", "phase"), [(0, Phase.SECURITY), (1, Phase.OPERATIONAL), (3, Phase.FULL_FEATURE)])
def test_phase_of_a_stage_number(stage: int, phase: Phase) -> None:
    assert Phase.of(stage) is phase


def test_roles_have_each_other_as_peer() -> None:
    assert Role.INITIATOR.peer is Role.TARGET
    assert Role.TARGET.peer is Role.INITIATOR


@pytest.mark.parametrize("offers", [keys.TARGET_OFFERS, keys.INITIATOR_OFFERS])
def test_offers_of_ours_pass_their_own_check(offers: dict[str, str]) -> None:
    for name, text in offers.items():
        keys.check_offer(name, text)


def test_target_offers_name_every_key_that_can_be_offered() -> None:
    assert set(keys.TARGET_OFFERS) == OFFERABLE


def test_first_burst_fits_into_max_burst_in_our_offers() -> None:
    for offers in (keys.TARGET_OFFERS, keys.INITIATOR_OFFERS):
        assert int(offers["FirstBurstLength"]) <= int(offers["MaxBurstLength"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MaxBurstLength", "511"),
        ("MaxRecvDataSegmentLength", "16777216"),
        ("HeaderDigest", "MD5"),
        ("HeaderDigest", ""),
        ("InitialR2T", "perhaps"),
        ("ErrorRecoveryLevel", "3"),
        ("InitiatorName", "iqn.2026-11.org.iscsid:x"),
        ("AuthMethod", "None"),
        ("OFMarker", "No"),
        ("NoSuchKey", "1"),
    ],
)
def test_check_offer_refuses_what_cannot_be_offered(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        keys.check_offer(name, text)
