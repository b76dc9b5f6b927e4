"""session.params: from a negotiation to the numbers that the full feature phase goes by."""

from __future__ import annotations

import dataclasses

import pytest

from iscsid.session.params import Parameters, settled
from iscsid.text.codec import Pair
from iscsid.text.keys import DISCOVERY, INITIATOR_OFFERS, KEYS, NORMAL, TARGET_OFFERS, Phase, Role
from iscsid.text.negotiate import Negotiator


def outcome(*pairs: Pair, session_type: str = NORMAL) -> Parameters:
    negotiator = Negotiator(Role.TARGET, session_type, TARGET_OFFERS)
    negotiator.answer(pairs, Phase.OPERATIONAL)
    return settled(negotiator, isid=1, tsih=2, cid=3)


def test_parameters_of_nothing_negotiated_are_the_defaults() -> None:
    assert outcome() == Parameters(isid=1, tsih=2, cid=3)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("MaxConnections", "max_connections"),
        ("InitialR2T", "initial_r2t"),
        ("ImmediateData", "immediate_data"),
        ("MaxBurstLength", "max_burst_length"),
        ("FirstBurstLength", "first_burst_length"),
        ("DefaultTime2Wait", "default_time2wait"),
        ("DefaultTime2Retain", "default_time2retain"),
        ("MaxOutstandingR2T", "max_outstanding_r2t"),
        ("DataPDUInOrder", "data_pdu_in_order"),
        ("DataSequenceInOrder", "data_sequence_in_order"),
        ("ErrorRecoveryLevel", "error_recovery_level"),
        ("TaskReporting", "task_reporting"),
        ("iSCSIProtocolLevel", "protocol_level"),
        ("MaxRecvDataSegmentLength", "max_recv_data_segment_length"),
        ("MaxRecvDataSegmentLength", "peer_max_recv_data_segment_length"),
    ],
)
def test_default_of_a_field_is_that_of_its_key(name: str, field: str) -> None:
    fields = {item.name: item.default for item in dataclasses.fields(Parameters)}
    key = KEYS[name]
    assert key.default is not None
    assert fields[field] == key.rule.value(key.default)


def test_negotiated_values_arrive_typed() -> None:
    parameters = outcome(
        ("HeaderDigest", "CRC32C,None"),
        ("DataDigest", "None"),
        ("InitialR2T", "No"),
        ("ImmediateData", "No"),
        ("MaxBurstLength", "0x40000"),
        ("FirstBurstLength", "4096"),
        ("MaxOutstandingR2T", "4"),
        ("iSCSIProtocolLevel", "2"),
        ("TaskReporting", "ResponseFence"),
    )
    assert parameters.header_digest is True
    assert parameters.data_digest is False
    assert parameters.initial_r2t is False
    assert parameters.immediate_data is False
    assert parameters.max_burst_length == 262144
    assert parameters.first_burst_length == 4096
    assert parameters.max_outstanding_r2t == 4
    assert parameters.protocol_level == 2
    assert parameters.task_reporting == "ResponseFence"


def test_declared_values_arrive_from_either_side() -> None:
    negotiator = Negotiator(Role.TARGET, NORMAL, TARGET_OFFERS)
    negotiator.announce("TargetAlias", "disk")
    negotiator.announce("TargetPortalGroupTag", "7")
    negotiator.announce("MaxRecvDataSegmentLength", "262144")
    said = [("InitiatorName", "iqn.i"), ("InitiatorAlias", "host"), ("TargetName", "iqn.t")]
    negotiator.answer([*said, ("MaxRecvDataSegmentLength", "65536")], Phase.OPERATIONAL)
    parameters = settled(negotiator, isid=0, tsih=1, cid=0)
    assert (parameters.initiator_name, parameters.initiator_alias) == ("iqn.i", "host")
    assert (parameters.target_name, parameters.target_alias) == ("iqn.t", "disk")
    assert parameters.target_portal_group_tag == 7
    assert parameters.max_recv_data_segment_length == 262144
    assert parameters.peer_max_recv_data_segment_length == 65536


def test_discovery_is_known_by_the_session_type() -> None:
    assert outcome(session_type=DISCOVERY).discovery
    assert not outcome().discovery


def test_length_declared_again_is_taken_over() -> None:
    negotiator = Negotiator(Role.TARGET, NORMAL, TARGET_OFFERS)
    parameters = settled(negotiator, isid=0, tsih=1, cid=0)
    negotiator.answer([("MaxRecvDataSegmentLength", "1024")], Phase.FULL_FEATURE)
    assert parameters.peer_max_recv_data_segment_length == 8192
    parameters.declared_again(negotiator)
    assert parameters.peer_max_recv_data_segment_length == 1024
    assert parameters.max_recv_data_segment_length == 8192


def test_initiator_sends_no_more_unsolicited_than_a_burst() -> None:
    negotiator = Negotiator(Role.INITIATOR, NORMAL, INITIATOR_OFFERS)
    negotiator.propose(Phase.OPERATIONAL)
    negotiator.answer([("MaxBurstLength", "65536"), ("FirstBurstLength", "131072")], Phase.OPERATIONAL)
    assert settled(negotiator, isid=0, tsih=1, cid=0).first_burst_length == 65536


def test_target_keeps_to_a_first_burst_that_it_agreed_to() -> None:
    negotiator = Negotiator(Role.TARGET, NORMAL, TARGET_OFFERS)
    negotiator.answer([("FirstBurstLength", "131072")], Phase.OPERATIONAL)
    negotiator.answer([("MaxBurstLength", "65536")], Phase.OPERATIONAL)
    assert settled(negotiator, isid=0, tsih=1, cid=0).first_burst_length == 131072
