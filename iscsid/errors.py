"""Every exception of iscsid.

    IscsidError
    ├── ConfigError             a configuration that is refused, with its problems
    ├── PluginError             a plugin that failed, with its name
    ├── ProtocolError           (abstract)
    │   ├── LocalProtocolError      our own code misused the protocol: a bug of ours
    │   └── RemoteProtocolError     the peer broke the protocol; the wire answer rides on it
    │       ├── LoginError              answered by a Login Response with its status
    │       └── RejectError             answered by a Reject PDU with its reason
    ├── ScsiError               a command that ends in CHECK CONDITION, with its reason
    ├── BlockError              a device that could not do what it was asked, with a code
    └── InitiatorError          what the initiator library tells its user
        ├── ConnectionFailed        the target cannot be reached, or was lost for too long
        │   └── LoginRefused            it can be reached, and says no
        ├── CommandTimeout          a command took too long and was aborted
        ├── CommandAborted          a command was aborted by task management or by the target
        ├── OutcomeUnknown          no answer came to a command that may not be repeated: it may have been done
        ├── Unsupported             the target does not have what this needs
        ├── ManagementFailed        a task management function was refused
        └── CommandFailed           a SCSI status other than GOOD
            ├── ReservationConflict     another initiator holds a reservation
            └── SenseError              CHECK CONDITION, with key, code and reason
                └── Miscompare              what was compared differs

Peer input raises RemoteProtocolError and nothing else. ``scsi`` turns BlockError and OSError into sense data by one
table; only ``wire`` numbers appear here, as plain ints, because this file lies below every room.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class IscsidError(Exception):
    """Root of the tree."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    ``where`` is the table (``target[0].lun[1]``), ``key`` the key in it ("" when the table itself is meant).
    """

    where: str
    key: str
    reason: str

    def __str__(self) -> str:
        place = ".".join(part for part in (self.where, self.key) if part)
        return f"{place}: {self.reason}" if place else self.reason


class ConfigError(IscsidError):
    """A configuration is refused; ``problems`` holds everything that was found, not only the first."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class PluginError(IscsidError):
    """A plugin failed to load, or failed in a hook."""

    def __init__(self, plugin: str, reason: str) -> None:
        self.plugin = plugin
        self.reason = reason
        super().__init__(f"plugin {plugin}: {reason}")


class ProtocolError(IscsidError):
    """Root of both protocol errors; never raised itself."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: the caller has a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol in a way that has no answer but closing the connection."""


class LoginError(RemoteProtocolError):
    """The login fails; ``status`` is Status-Class << 8 | Status-Detail (RFC 7143 section 11.13.5)."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class RejectError(RemoteProtocolError):
    """The PDU is answered by a Reject with ``reason`` (RFC 7143 section 11.17.1).

    ``fatal`` tells that the connection cannot go on after the Reject was sent.
    """

    def __init__(self, reason: int, message: str, *, fatal: bool = False) -> None:
        self.reason = reason
        self.fatal = fatal
        super().__init__(message)


class ScsiError(IscsidError):
    """A command ends in CHECK CONDITION; ``reason`` is a member of ``scsi.sense.Reason``.

    Or it ends in another status without sense data, RESERVATION CONFLICT: then ``reason`` is the ``scsi.const.Status``.

    ``field`` and ``bit`` point at the byte (and its highest wrong bit) of the CDB, or of the parameter list where
    ``in_data``, for the sense-key specific bytes (SPC-4 4.5.2.4.2). ``information`` is the INFORMATION field: an LBA,
    or the offset of a miscompare. ``segment`` is the number, from 0 on, of the segment descriptor at which a copy was
    aborted; ``field`` counts from its first byte then (SPC-4 4.5.2.4.5). ``progress`` is the PROGRESS INDICATION, in
    65536ths (SPC-4 4.5.2.4.4).
    """

    def __init__(
        self,
        reason: enum.Enum,
        *,
        field: int | None = None,
        bit: int | None = None,
        in_data: bool = False,
        information: int | None = None,
        segment: int | None = None,
        progress: int | None = None,
    ) -> None:
        self.reason = reason
        self.field = field
        self.bit = bit
        self.in_data = in_data
        self.information = information
        self.segment = segment
        self.progress = progress
        super().__init__(reason.name)


class Fault(enum.Enum):
    """Why a device could not do what it was asked: the closed list a back end chooses from."""

    READ_ERROR = "the medium could not be read"
    WRITE_ERROR = "the medium could not be written"
    OUT_OF_RANGE = "beyond the end of the device"
    NO_SPACE = "no space left for the write"
    READ_ONLY = "the device may not be written"
    NOT_READY = "the device is not ready"
    NO_MEDIUM = "there is no medium"
    BUSY = "busy: try again later"
    NO_RESOURCES = "out of memory, files or threads: try again later"
    UNSUPPORTED = "the device cannot do this"
    INVALID = "an argument is not acceptable"
    MISCOMPARE = "the data differ"
    CANCELLED = "the operation was cancelled"
    INTERNAL = "the device failed"


class BlockError(IscsidError):
    """A device could not do what it was asked.

    ``at``, of a read: the device that knows, and the offset in it, in bytes, of the first block that cannot be read.
    ``block`` is that block, in the blocks of the logical unit, where the guard has found it.
    """

    def __init__(self, fault: Fault, message: str = "", *, at: tuple[object, int] | None = None) -> None:
        self.fault = fault
        self.at = at
        self.block: int | None = None
        super().__init__(message or fault.value)


class InitiatorError(IscsidError):
    """The initiator library could not do what its user asked."""


class ConnectionFailed(InitiatorError):
    """The target cannot be reached, broke the protocol, or was lost and did not come back in time."""


class LoginRefused(ConnectionFailed):
    """The target refused the login; ``status`` is Status-Class << 8 | Status-Detail (RFC 7143 section 11.13.5)."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class CommandTimeout(InitiatorError):
    """A command took longer than its time-out. It was aborted; a write may have been done in part."""


class CommandAborted(InitiatorError):
    """A command was aborted: by ABORT TASK, by a reset, or because its session was closed."""


class OutcomeUnknown(InitiatorError):
    """No answer came, in time or before the connection broke, to a command that changes something each time it is done.

    Whether the target did it nobody can tell from here: look (READ KEYS, READ), then decide.
    """


class Unsupported(InitiatorError):
    """The target does not offer what this needs."""


class ManagementFailed(InitiatorError):
    """A task management function was not performed; ``response`` is the target's (RFC 7143 section 11.6.1)."""

    def __init__(self, response: int, message: str) -> None:
        self.response = response
        super().__init__(message)


class CommandFailed(InitiatorError):
    """A command ended with another status than GOOD; ``status`` is the number of SAM-5 5.3.1."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class ReservationConflict(CommandFailed):
    """Another initiator's reservation forbids the command."""


class SenseError(CommandFailed):
    """A command ended in CHECK CONDITION.

    ``key``, ``asc`` and ``ascq`` are the sense data's numbers, ``text`` their meaning in words, ``reason`` the name by
    which iscsid itself knows the case, "" for others. ``field`` and ``bit`` point at the wrong byte of the CDB, or of
    the parameter list where ``in_data``; ``information`` is the INFORMATION field. Each is None where nothing is said.
    """

    def __init__(
        self,
        key: int,
        asc: int,
        ascq: int,
        text: str,
        *,
        reason: str = "",
        field: int | None = None,
        bit: int | None = None,
        in_data: bool = False,
        information: int | None = None,
        sense: bytes = b"",
    ) -> None:
        self.key = key
        self.asc = asc
        self.ascq = ascq
        self.text = text
        self.reason = reason
        self.field = field
        self.bit = bit
        self.in_data = in_data
        self.information = information
        self.sense = sense
        super().__init__(0x02, text)


class Miscompare(SenseError):
    """What was compared differs; ``information`` is the offset in bytes of the first difference, where it is told."""
