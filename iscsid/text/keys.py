"""The table of text keys (RFC 7143 section 13): who may say each of them, when, and how it is settled.

Both roles work from this one table. A key that is not in it is answered with NotUnderstood.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from iscsid.text.codec import TEXT_LIMIT, parse_number
from iscsid.text.names import MAX_LENGTH
from iscsid.text.rules import (
    And,
    Choice,
    Declared,
    Fixed,
    Maximum,
    Minimum,
    Or,
    Rule,
    declared_choice,
    declared_number,
    declared_text,
)


class Role(enum.Flag):
    """The two ends of a session."""

    INITIATOR = enum.auto()
    TARGET = enum.auto()

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.TARGET if self is Role.INITIATOR else Role.INITIATOR


class Phase(enum.Flag):
    """Where in the life of a connection text is exchanged; ``of`` takes the CSG of a Login PDU."""

    SECURITY = 1 << 0
    OPERATIONAL = 1 << 1
    FULL_FEATURE = 1 << 3

    LOGIN = SECURITY | OPERATIONAL
    ANY = LOGIN | FULL_FEATURE

    @classmethod
    def of(cls, stage: int) -> Phase:
        """Return the phase for a stage number 0, 1 or 3 of RFC 7143 section 11.12.3."""
        return cls(1 << stage)


class Scope(enum.Enum):
    """What a settled value holds for."""

    SESSION = "SW"
    CONNECTION = "CO"


NORMAL: Final = "Normal"
DISCOVERY: Final = "Discovery"

# Answers that every key may get instead of a value; none of them can be proposed (section 6.2).
NOT_UNDERSTOOD: Final = "NotUnderstood"
IRRELEVANT: Final = "Irrelevant"
REJECT: Final = "Reject"
RESERVED_VALUES: Final = frozenset({NOT_UNDERSTOOD, IRRELEVANT, REJECT})

SEGMENT_LENGTH_LOW: Final = 512
LENGTH_HIGH: Final = (1 << 24) - 1
DEFAULT_SEGMENT_LENGTH: Final = 8192

BOTH = Role.INITIATOR | Role.TARGET


@dataclass(frozen=True, slots=True)
class Key:
    """One row. ``default`` is None where the RFC names none.

    ``leading``: only the first connection of a session may negotiate it. ``discovery``: it means something in a
    discovery session. ``repeats``: may come more than once. ``authentication``: belongs to the login's authenticator.
    """

    name: str
    section: str
    rule: Rule
    phases: Phase
    senders: Role = BOTH
    scope: Scope = Scope.SESSION
    default: str | None = None
    leading: bool = False
    discovery: bool = True
    repeats: bool = False
    authentication: bool = False


def _node_name(text: str) -> str:
    # Whether such a node exists is for the target to say, so a name of any form passes, but not one that would
    # break a log line or a list.
    if not text or not text.isprintable() or " " in text:
        raise ValueError("not a name")
    return text


def _chap_number(text: str) -> int:
    number = parse_number(text)
    if number > 255:
        raise ValueError("not a byte")
    return number


_NAME = Declared(_node_name, MAX_LENGTH)


def _login_key(name: str, section: str, rule: Rule, default: str, *, discovery: bool = False) -> Key:
    """A session-wide key negotiated by the leading connection in the operational stage: the most common kind."""
    return Key(name, section, rule, Phase.OPERATIONAL, default=default, leading=True, discovery=discovery)


def _digest(name: str) -> Key:
    rule = Choice("CRC32C", "None")
    return Key(name, "13.1", rule, Phase.OPERATIONAL, scope=Scope.CONNECTION, default="None")


def _authentication(name: str, rule: Rule, default: str | None = None) -> Key:
    return Key(name, "12.1", rule, Phase.SECURITY, scope=Scope.CONNECTION, default=default, authentication=True)


def _obsolete(name: str, answer: str) -> Key:
    # Section 13.25 allows No or Reject for the markers and only Reject for the intervals. No ends the matter for
    # initiators of RFC 3720, where Reject makes some give up.
    return Key(name, "13.25", Fixed(answer), Phase.OPERATIONAL, scope=Scope.CONNECTION)


_ROWS = (
    _authentication("AuthMethod", Choice("CHAP", "SRP", "KRB5", "None"), "None"),
    _authentication("CHAP_A", declared_text()),
    _authentication("CHAP_I", Declared(_chap_number)),
    _authentication("CHAP_C", declared_text(4096)),
    _authentication("CHAP_N", declared_text()),
    _authentication("CHAP_R", declared_text(4096)),
    _digest("HeaderDigest"),
    _digest("DataDigest"),
    _login_key("MaxConnections", "13.2", Minimum(1, 65535), "1"),
    Key("SendTargets", "13.3", declared_text(), Phase.FULL_FEATURE, Role.INITIATOR),
    Key("TargetName", "13.4", _NAME, Phase.ANY),
    Key("InitiatorName", "13.5", _NAME, Phase.LOGIN, Role.INITIATOR),
    Key("TargetAlias", "13.6", declared_text(), Phase.ANY, Role.TARGET),
    Key("InitiatorAlias", "13.7", declared_text(), Phase.ANY, Role.INITIATOR),
    Key("TargetAddress", "13.8", declared_text(), Phase.ANY, Role.TARGET, repeats=True),
    Key("TargetPortalGroupTag", "13.9", declared_number(0, 65535), Phase.LOGIN, Role.TARGET),
    _login_key("InitialR2T", "13.10", Or(), "Yes"),
    _login_key("ImmediateData", "13.11", And(), "Yes"),
    # Its own section does not call it Any-Stage, but initiators declare it in the security stage.
    Key(
        "MaxRecvDataSegmentLength",
        "13.12",
        declared_number(SEGMENT_LENGTH_LOW, LENGTH_HIGH),
        Phase.ANY,
        scope=Scope.CONNECTION,
        default=str(DEFAULT_SEGMENT_LENGTH),
    ),
    _login_key("MaxBurstLength", "13.13", Minimum(512, LENGTH_HIGH), "262144"),
    _login_key("FirstBurstLength", "13.14", Minimum(512, LENGTH_HIGH), "65536"),
    _login_key("DefaultTime2Wait", "13.15", Maximum(0, 3600), "2", discovery=True),
    _login_key("DefaultTime2Retain", "13.16", Minimum(0, 3600), "20", discovery=True),
    _login_key("MaxOutstandingR2T", "13.17", Minimum(1, 65535), "1"),
    _login_key("DataPDUInOrder", "13.18", Or(), "Yes"),
    _login_key("DataSequenceInOrder", "13.19", Or(), "Yes"),
    _login_key("ErrorRecoveryLevel", "13.20", Minimum(0, 2), "0", discovery=True),
    Key("SessionType", "13.21", declared_choice((NORMAL, DISCOVERY)), Phase.LOGIN, Role.INITIATOR, default=NORMAL),
    _login_key("TaskReporting", "13.23", Choice("RFC3720", "ResponseFence", "FastAbort"), "RFC3720"),
    _login_key("iSCSIProtocolLevel", "13.24", Minimum(0, 31), "1"),
    _obsolete("OFMarker", "No"),
    _obsolete("IFMarker", "No"),
    _obsolete("OFMarkInt", REJECT),
    _obsolete("IFMarkInt", REJECT),
    Key("X#NodeArchitecture", "13.26", declared_text(TEXT_LIMIT), Phase.LOGIN),
)

KEYS: Final[Mapping[str, Key]] = {key.name: key for key in _ROWS}
AUTHENTICATION_KEYS: Final = frozenset(key.name for key in _ROWS if key.authentication)

# What one side may be configured to offer: whatever is settled between the two, and the one length it declares.
OFFERABLE: Final = frozenset(
    key.name
    for key in _ROWS
    if (key.rule.negotiated and not isinstance(key.rule, Fixed) and not key.authentication)
    or key.name == "MaxRecvDataSegmentLength"
)

# Wait 2: an initiator that lost its session should not storm back. Retain 0: recovery level 0 keeps no task.
# FastAbort is left out: it needs the asynchronous message 5 and NOP exchange of section 4.2.3.4.
TARGET_OFFERS: Final[Mapping[str, str]] = {
    "HeaderDigest": "CRC32C,None",
    "DataDigest": "CRC32C,None",
    "MaxConnections": "1",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "1048576",
    "FirstBurstLength": "262144",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "MaxOutstandingR2T": "8",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
    "TaskReporting": "ResponseFence,RFC3720",
    "iSCSIProtocolLevel": "2",
}

# The two youngest keys are not offered: targets of RFC 3720 that stumble over them are still in use.
INITIATOR_OFFERS: Final[Mapping[str, str]] = {
    "HeaderDigest": "None,CRC32C",
    "DataDigest": "None,CRC32C",
    "MaxConnections": "1",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "1048576",
    "FirstBurstLength": "262144",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "MaxOutstandingR2T": "8",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
}


def check_offer(name: str, text: str) -> None:
    """Raise ValueError, with the reason, where a configuration may not have ``name`` offered as ``text``."""
    if name not in OFFERABLE:
        raise ValueError(f"{name} is not a key that can be offered")
    KEYS[name].rule.check_offer(text)
