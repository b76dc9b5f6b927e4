"""A logical unit: CDB in, plan out.

``plan`` is the one function that every command passes, in the order of SAM-5: unit attention, reservation, operation
code, reserved bits, write protection, and then the handler, which checks range and length. What a unit can do is
resolved from the table once, when the unit is made, so that a command costs a list index and one mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from iscsid.block.device import Support
from iscsid.errors import ScsiError
from iscsid.scsi.commands import COMMANDS, Attention, Command, Feature, Handler
from iscsid.scsi.conflict import check
from iscsid.scsi.log import Figures
from iscsid.scsi.mode import ModeState, fitted
from iscsid.scsi.plan import Job, Plan, Write
from iscsid.scsi.ports import ACTIVE, ONE_GROUP, PortGroup, state_of
from iscsid.scsi.removable import FIXED, WHILE_STOPPED, Medium
from iscsid.scsi.reservation import EMPTY, Reservations, restriction
from iscsid.scsi.sanitize import ALLOWED, Gauge, LocalGauge, Sanitize, refusal
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

if TYPE_CHECKING:
    from iscsid.block.guard import Guarded
    from iscsid.scsi.copy_state import Copies

MAX_TRANSFER = 32 << 20  # bytes of one READ or WRITE: bounds what a command may make us hold
MAX_WRITE_SAME = 128 << 20  # bytes of one WRITE SAME: a second or two of a slow disk, since it cannot be interrupted
MAX_UNMAP_BLOCKS = 1 << 20  # of one UNMAP: cheap, but not free, on every medium; libiscsi calls more insane
MAX_UNMAP_DESCRIPTORS = 256
MIN_THRESHOLD_SET = 1 << 20  # bytes; a finer scale of how full the medium is would tell nobody more


class Nexus(Protocol):
    """What a command may ask about the I_T nexus that it came by."""

    @property
    def initiator_name(self) -> str:
        """The iSCSI name of the initiator."""

    @property
    def target_name(self) -> str:
        """The iSCSI name of the target."""

    @property
    def portal_group_tag(self) -> int:
        """The portal group: with the target name it is the SCSI target port (RFC 7143 section 4.4.1)."""

    @property
    def luns(self) -> Sequence[int]:
        """The logical unit numbers that this initiator may see, sorted."""

    @property
    def id(self) -> NexusId:
        """The I_T nexus, as the workers and the supervisor speak of it."""

    @property
    def restricted(self) -> bool:
        """Whether a reservation of another nexus, or the state of its target port, stands in the way of some commands
        (``LogicalUnit.restricts``)."""

    @property
    def attentions(self) -> MutableSequence[Reason] | None:
        """Unit attentions that wait for this nexus and this logical unit, oldest first; None or empty when none do."""

    @property
    def copies(self) -> Copies:
        """The third-party copies of this nexus and this logical unit."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the unit is, in INQUIRY and the vital product data; stable as long as the data on it is the same.

    ``name`` is the SCSI name string of the logical unit, such as ``iqn.2026-11.org.iscsid:disk0,L,0x0000000000000000``;
    ``target`` the name of the target that it is a unit of.
    """

    serial: str
    name: str
    vendor: str = "ISCSID"
    product: str = "VIRTUAL-DISK"
    revision: str = "0001"
    target: str = ""


@dataclass(frozen=True, slots=True)
class SharedState:
    """This worker's copy of what all workers share about the unit; replaced between two commands."""

    reservations: Reservations = EMPTY


_Entry = tuple[int, Handler]
Run = Callable[[memoryview], bytes | bytearray]


class LogicalUnit:
    """A direct access block device (SBC-3) over a guarded device.

    ``blocks``, ``shift`` (log2 of the block size), ``max_blocks`` (MAXIMUM TRANSFER LENGTH) and ``volatile`` (something
    is lost when the power fails before a flush) are what the handlers look at. ``port_groups`` are the target port
    groups that lead here; the tuple may be replaced between two commands. ``saved_mode_state`` is None where nothing of
    the mode pages can be saved. ``tally`` is what this worker's sessions have done with the unit, ``figures`` what all
    have, None where nobody knows. ``medium`` is that of the unit as the server begins. ``progress`` is where all
    workers read how far a sanitize operation is.
    """

    __slots__ = (
        "_dispatch",
        "_failure",
        "_ignores_attention",
        "_medium",
        "_mode_state",
        "_sanitize",
        "block_size",
        "blocks",
        "commands",
        "default_mode_state",
        "device",
        "features",
        "figures",
        "identity",
        "max_atomic_blocks",
        "max_blocks",
        "max_unmap_blocks",
        "max_unmap_descriptors",
        "max_write_same_blocks",
        "port_groups",
        "progress",
        "readonly",
        "saved_mode_state",
        "shift",
        "state",
        "tally",
        "threshold_exponent",
        "threshold_set",
        "volatile",
    )

    def __init__(
        self,
        device: Guarded,
        identity: Identity,
        port_groups: Sequence[PortGroup] = ONE_GROUP,
        figures: Callable[[], Figures] | None = None,
        medium: Medium = FIXED,
    ) -> None:
        self.device = device
        self.state = SharedState()
        self.identity = identity
        self.port_groups = tuple(port_groups)
        self.figures = figures
        self.tally = Figures()
        self.block_size = device.block_size
        self.blocks = device.size // device.block_size
        self.shift = device.block_size.bit_length() - 1
        self.readonly = device.can.write == Support.NONE
        self.volatile = device.can.flush != Support.NONE
        thin = device.can.discard != Support.NONE and not self.readonly
        erases = thin and device.can.block_status == Support.NATIVE
        conditions = (
            (Feature.DISK, True),
            (Feature.THIN, thin),
            (Feature.ERASE, erases),
            (Feature.REMOVABLE, medium.removable),
            (Feature.LOGGED, figures is not None),
        )
        self.features = frozenset(feature for feature, there in conditions if there)
        self.max_blocks = MAX_TRANSFER >> self.shift
        self.max_atomic_blocks = 0
        if device.inline and not self.volatile:  # memory: what may wait may have a disk, be there a flush or not
            self.features |= {Feature.ATOMIC}
            self.max_atomic_blocks = min(self.max_blocks, 0xFFFF)
        self.max_write_same_blocks = MAX_WRITE_SAME >> self.shift
        self.max_unmap_blocks = MAX_UNMAP_BLOCKS
        self.max_unmap_descriptors = MAX_UNMAP_DESCRIPTORS
        self.threshold_exponent = _threshold_exponent(self.blocks, self.shift)
        self.threshold_set = 1 << self.threshold_exponent + self.shift
        self.commands = tuple(
            _resolve(command, self.features) for command in COMMANDS if command.needs in self.features
        )
        self.progress: Gauge = LocalGauge()
        self._sanitize: Sanitize | None = None
        self._medium = medium
        self._failure: Reason | None = None
        self.default_mode_state = ModeState(wce=self.volatile)
        self.saved_mode_state: ModeState | None = None
        self.mode_state = self.default_mode_state
        self._ignores_attention = frozenset(
            command.opcode for command in self.commands if command.attention is not Attention.REPORTED
        )

    @property
    def mode_state(self) -> ModeState:
        """What the changeable bits of the mode pages are; a new one counts from the next command on."""
        return self._mode_state

    @mode_state.setter
    def mode_state(self, state: ModeState) -> None:
        self._mode_state = fitted(state, self)
        self._make_dispatch()

    @property
    def sanitize(self) -> Sanitize | None:
        """The sanitize operation that is under way or has failed; what it forbids is refused from the next command
        on."""
        return self._sanitize

    @sanitize.setter
    def sanitize(self, state: Sanitize | None) -> None:
        if state != self._sanitize:
            self._sanitize = state
            self._make_dispatch()

    @property
    def medium(self) -> Medium:
        """Whether the medium is there and started; what is not executed without is refused from the next command on."""
        return self._medium

    @medium.setter
    def medium(self, state: Medium) -> None:
        if state != self._medium:
            self._medium = state
            self._make_dispatch()

    @property
    def failure(self) -> Reason | None:
        """Why the server cannot use the medium at all; None: it can. What needs it is refused from the next command
        on."""
        return self._failure

    @failure.setter
    def failure(self, reason: Reason | None) -> None:
        if reason != self._failure:
            self._failure = reason
            self._make_dispatch()

    @property
    def hindrance(self) -> Reason | None:
        """Why the unit is not ready; None: it is."""
        return self._medium.hindrance or self._failure

    def executes(self, opcode: int) -> bool:
        """Whether some command with this operation code is executed in the state that the unit is in."""
        if self._sanitize is not None:
            return opcode in ALLOWED[self._sanitize.failed]
        return any(self._executes(command.name) for command in self.commands if command.opcode == opcode)

    def _executes(self, name: str) -> bool:
        return self._medium.executes(name) and (self._failure is None or name in WHILE_STOPPED)

    def _make_dispatch(self) -> None:
        state, sanitizing = self._mode_state, self._sanitize
        protected = self.readonly or state.swp
        self._dispatch = _dispatch(self._ready_commands(), protected, through=self.volatile and not state.wce)
        if sanitizing is not None:
            for command in self.commands:
                if command.opcode not in ALLOWED[sanitizing.failed]:
                    self._dispatch[command.opcode] = (0, _sanitizing)

    def _ready_commands(self) -> Sequence[Command]:
        """The commands, with a refusal, whatever the CDB says, in the place of what is not executed for now."""
        if self.hindrance is None:
            return self.commands
        return [
            command
            if self._executes(command.name)
            else dataclasses.replace(command, handler=_not_ready, writes=False, usage=b"\xff" * len(command.usage))
            for command in self.commands
        ]

    @property
    def thin(self) -> bool:
        """Whether logical block provisioning is offered: UNMAP, and WRITE SAME with its UNMAP bit."""
        return Feature.THIN in self.features

    @property
    def erases(self) -> bool:
        """Whether SANITIZE BLOCK ERASE is offered."""
        return Feature.ERASE in self.features

    @property
    def metered(self) -> bool:
        """Whether the device tells how full its medium is, so that there are resource counts and a threshold."""
        return self.thin and self.device.can.space is Support.NATIVE

    def restricts(self, nexus: NexusId) -> bool:
        """Whether a reservation of another nexus, or the state of its target port, stands in the way of some commands
        of ``nexus``."""
        if restriction(self.state.reservations, nexus) is not None:
            return True
        return state_of(self.port_groups, nexus.portal_group_tag) not in ACTIVE

    def plan(self, cdb: bytes, nexus: Nexus) -> Plan:
        """Return what the command wants done; ``cdb`` has at least 16 bytes, the unused ones of any value.

        Raises ScsiError when the command ends in CHECK CONDITION here.
        """
        if nexus.attentions and cdb[0] not in self._ignores_attention:
            raise ScsiError(nexus.attentions.pop(0))
        if nexus.restricted:
            _check_restrictions(self, cdb, nexus)
        forbidden, handler = self._dispatch[cdb[0]]
        if int.from_bytes(cdb, "little") & forbidden:
            raise _reserved_bit(cdb, forbidden)
        return handler(self, cdb, nexus)


def _check_restrictions(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> None:
    """See ``conflict.check``; unknown commands pass, for they are refused next."""
    for command in lu.commands:
        if command.opcode == cdb[0] and command.service_action in (None, cdb[1] & 0x1F):
            check(lu.state.reservations, lu.port_groups, nexus.id, command, cdb)
            return


def _resolve(command: Command, features: frozenset[Feature]) -> Command:
    """Return the row as it holds on this unit: with the optional bits it has, and no optional ones left."""
    usage = bytearray(command.usage)
    for feature, byte, mask in command.optional:
        if feature in features:
            usage[byte] |= mask
    return dataclasses.replace(command, usage=bytes(usage), optional=())


def _threshold_exponent(blocks: int, shift: int) -> int:
    """Return log2 of a threshold set in blocks (SBC-3 6.6.5): 2^32 sets at most, and not 0, which means none."""
    return max(1, (MIN_THRESHOLD_SET >> shift).bit_length() - 1, (blocks - 1).bit_length() - 32)


_OPTIONAL_BITS = {row.name: sum(mask << 8 * byte for _, byte, mask in row.optional) for row in COMMANDS}


def _dispatch(commands: Sequence[Command], protected: bool, *, through: bool) -> list[_Entry]:
    """Return, for each operation code, the bits that must be 0 and the handler.

    What a mode page switches is in the table, so that it costs nothing where it is not switched: ``protected`` refuses
    every command that writes, ``through`` makes each put on the medium what it has written.
    """
    entries: list[_Entry] = [(0, _unsupported_operation_code)] * 256
    service_actions: dict[int, dict[int, _Entry]] = {}
    for command in commands:
        handler = command.handler
        if command.writes and protected:
            handler = _write_protected
        elif command.writes and through:
            handler = _written_through(handler)
        forbidden = command.forbidden()
        if handler is _write_protected:
            forbidden &= ~_OPTIONAL_BITS[command.name]  # what might be there without the protection is protected
        entry = (forbidden, handler)
        if command.service_action is None:
            entries[command.opcode] = entry
        else:
            service_actions.setdefault(command.opcode, {})[command.service_action] = entry
    for opcode, by_action in service_actions.items():
        entries[opcode] = (0, _by_service_action(by_action))
    return entries


def _by_service_action(entries: dict[int, _Entry]) -> Handler:
    def handler(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
        entry = entries.get(cdb[1] & 0x1F)
        if entry is None:
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)  # SPC-4 4.2.5.2
        forbidden, action = entry
        if int.from_bytes(cdb, "little") & forbidden:
            raise _reserved_bit(cdb, forbidden)
        return action(lu, cdb, nexus)

    return handler


def _unsupported_operation_code(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    raise ScsiError(Reason.INVALID_COMMAND_OPERATION_CODE, field=0, bit=7)


def _sanitizing(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    assert lu.sanitize is not None
    raise refusal(lu.sanitize, lu.progress.value)


def _not_ready(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    raise ScsiError(lu.hindrance or Reason.NOT_READY)  # the latter: it has just become ready, for another thread


def _write_protected(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    raise ScsiError(Reason.WRITE_PROTECTED)


def _written_through(handler: Handler) -> Handler:
    """WCE 0 (SBC-3 6.5.5): GOOD only when the data is on the medium, as with FUA, which not every command has."""

    def through(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
        plan = handler(lu, cdb, nexus)
        if isinstance(plan, Write):
            return Write(plan.offset, plan.length, True)
        if isinstance(plan, Job):
            plan.run = _and_flush(plan.run, lu.device)
        return plan

    return through


def _and_flush(run: Run, device: Guarded) -> Run:
    def run_and_flush(data: memoryview) -> bytes | bytearray:
        answer = run(data)
        device.flush()
        return answer

    return run_and_flush


def _reserved_bit(cdb: bytes, forbidden: int) -> ScsiError:
    """Point at the first byte with a bit that must be 0, and at the highest such bit of it (SPC-4 4.5.2.4.2)."""
    wrong = int.from_bytes(cdb, "little") & forbidden
    field = ((wrong & -wrong).bit_length() - 1) // 8
    bit = (wrong >> 8 * field & 0xFF).bit_length() - 1
    return ScsiError(Reason.INVALID_FIELD_IN_CDB, field=field, bit=bit)
