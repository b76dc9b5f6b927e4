"""What a login has settled, with the RFC's names: all that the full feature phase needs to know of the negotiation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iscsid.text.keys import DEFAULT_SEGMENT_LENGTH, DISCOVERY, NORMAL, Role
from iscsid.text.negotiate import Negotiator

_NEGOTIATED = {
    "MaxConnections": "max_connections",
    "InitialR2T": "initial_r2t",
    "ImmediateData": "immediate_data",
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "DefaultTime2Wait": "default_time2wait",
    "DefaultTime2Retain": "default_time2retain",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "DataPDUInOrder": "data_pdu_in_order",
    "DataSequenceInOrder": "data_sequence_in_order",
    "ErrorRecoveryLevel": "error_recovery_level",
    "TaskReporting": "task_reporting",
    "iSCSIProtocolLevel": "protocol_level",
}
_DECLARED = {
    "InitiatorName": "initiator_name",
    "InitiatorAlias": "initiator_alias",
    "TargetName": "target_name",
    "TargetAlias": "target_alias",
    "TargetPortalGroupTag": "target_portal_group_tag",
}


@dataclass(slots=True, kw_only=True)
class Parameters:
    """Defaults are the RFC's. Lengths in bytes, times in seconds.

    ``max_recv_data_segment_length`` is what we declared and must take, ``peer_max_recv_data_segment_length`` what the
    peer takes. ``target_name`` is "" in a discovery session.
    """

    session_type: str = NORMAL
    initiator_name: str = ""
    initiator_alias: str = ""
    target_name: str = ""
    target_alias: str = ""
    target_portal_group_tag: int = 1
    isid: int = 0
    tsih: int = 0
    cid: int = 0
    header_digest: bool = False
    data_digest: bool = False
    max_recv_data_segment_length: int = DEFAULT_SEGMENT_LENGTH
    peer_max_recv_data_segment_length: int = DEFAULT_SEGMENT_LENGTH
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    task_reporting: str = "RFC3720"
    protocol_level: int = 1

    @property
    def discovery(self) -> bool:
        """Whether this is a discovery session, which has no logical units and no SCSI command."""
        return self.session_type == DISCOVERY

    def declared_again(self, negotiator: Negotiator) -> None:
        """Take over the lengths, which either side may declare anew in the full feature phase (section 13.12)."""
        ours = negotiator.announced("MaxRecvDataSegmentLength")
        theirs = negotiator.declared("MaxRecvDataSegmentLength")
        self.max_recv_data_segment_length = DEFAULT_SEGMENT_LENGTH if ours is None else int(ours)
        self.peer_max_recv_data_segment_length = DEFAULT_SEGMENT_LENGTH if theirs is None else int(theirs)


def settled(negotiator: Negotiator, *, isid: int, tsih: int, cid: int) -> Parameters:
    """Return the outcome of a login."""
    values: dict[str, Any] = {field: negotiator.outcome(name) for name, field in _NEGOTIATED.items()}
    for name, field in _DECLARED.items():
        for value in (negotiator.declared(name), negotiator.announced(name)):
            if value is not None:
                values[field] = value
    parameters = Parameters(
        session_type=negotiator.session_type,
        isid=isid,
        tsih=tsih,
        cid=cid,
        header_digest=negotiator.outcome("HeaderDigest") == "CRC32C",
        data_digest=negotiator.outcome("DataDigest") == "CRC32C",
        **values,
    )
    parameters.declared_again(negotiator)
    if negotiator.role is Role.INITIATOR:
        # A target may answer the two so that they do not fit (section 13.14). Sending less is always right; expecting
        # less would not be, so the target's side keeps what it has agreed to.
        parameters.first_burst_length = min(parameters.first_burst_length, parameters.max_burst_length)
    return parameters
