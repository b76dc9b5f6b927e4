"""A session against a model: whatever was agreed on and however calls overtake each other, the bytes are right."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from target_rig import DEVICES, GOOD, Nowait, Outcome, Session, pattern

from iscsid.target import data_in, data_out
from iscsid.wire.const import WRITE
from iscsid.wire.pdu import TaskManagementRequest

BLOCKS = 256  # of the medium
SLOTS = 8  # stretches of it; commands that are under way at once each have one of their own
SLOT = BLOCKS // SLOTS

lengths = st.sampled_from([512, 1000, 4096, 10000, 65536])
yes_or_no = st.sampled_from(["Yes", "No"])
digest = st.sampled_from(["None", "CRC32C"])


class AgainstModel(RuleBasedStateMachine):
    """Reads and writes of a few slots; in a slot one command is under way at a time, so its outcome is certain."""

    @initialize(
        kind=st.sampled_from(sorted(DEVICES)),
        block_size=st.sampled_from([512, 4096]),
        offers=st.fixed_dictionaries(
            {
                "MaxRecvDataSegmentLength": lengths.map(str),
                "MaxBurstLength": lengths.map(str),
                "FirstBurstLength": st.just("512") | lengths.map(str),
                "InitialR2T": yes_or_no,
                "ImmediateData": yes_or_no,
                "MaxOutstandingR2T": st.sampled_from(["1", "2", "8"]),
                "HeaderDigest": digest,
                "DataDigest": digest,
            }
        ),
        segment=lengths,
        chunk=st.sampled_from([0, 0, 10000]),
        limit=st.sampled_from([4096, 64 << 20]),
    )
    def log_in(self, kind: str, block_size: int, offers: dict[str, str], segment: int, chunk: int, limit: int) -> None:
        burst = int(offers["MaxBurstLength"])
        offers["FirstBurstLength"] = str(min(burst, int(offers["FirstBurstLength"])))
        self.limits = (data_out.GATHER_LIMIT, data_in.QUEUE_LIMIT, data_in.PIECE, data_in.MAX_PIECES)
        data_out.GATHER_LIMIT = limit
        if limit < 1 << 20:
            data_in.QUEUE_LIMIT, data_in.PIECE, data_in.MAX_PIECES = 16384, 16384, 2
        device = DEVICES[kind](BLOCKS * block_size, block_size)
        self.block_size = block_size
        self.model = bytearray(device.content)
        self.stalls = 0
        if isinstance(device, Nowait):
            device.at_hand = self._at_hand
        target_offers = {"MaxRecvDataSegmentLength": str(segment)}
        self.session = Session(device, offers, chunk=chunk, target_offers=target_offers, queue_depth=SLOTS + 1)
        self.free = set(range(SLOTS))
        self.reading: dict[int, tuple[int, bytes]] = {}  # by tag: slot and what has to come
        self.writing: dict[int, tuple[int, int, bytes]] = {}  # by tag: slot, offset and data
        self.aborting: dict[int, int] = {}  # by tag: slot
        self.tag = 0

    def _at_hand(self, offset: int) -> bool:
        self.stalls += 1
        return self.stalls % 3 != 0

    def _begin(self, data: st.DataObject) -> tuple[int, int, int]:
        slot = data.draw(st.sampled_from(sorted(self.free)))
        self.free.remove(slot)
        start = data.draw(st.integers(0, SLOT - 1))
        blocks = data.draw(st.integers(1, min(SLOT - start, data.draw(st.sampled_from([1, 8, SLOT])))))
        self.tag += 1
        return slot, slot * SLOT + start, blocks

    @precondition(lambda self: self.free)
    @rule(data=st.data(), fua=st.booleans())
    def read(self, data: st.DataObject, fua: bool) -> None:
        slot, lba, blocks = self._begin(data)
        length = blocks * self.block_size
        expected = data.draw(st.sampled_from([length, length, length, length - 100, length + 100]))
        self.session.read(self.tag, lba, blocks, expected, fua=fua)
        start = lba * self.block_size
        self.reading[self.tag] = slot, bytes(self.model[start : start + min(length, expected)])

    @precondition(lambda self: self.free)
    @rule(data=st.data(), fua=st.booleans(), size=lengths)
    def write(self, data: st.DataObject, fua: bool, size: int) -> None:
        slot, lba, blocks = self._begin(data)
        content = pattern(blocks * self.block_size, self.tag)
        session, tag, agreed = self.session, self.tag, self.session.parameters
        most = min(len(content), agreed.first_burst_length)
        immediate = 0
        if agreed.immediate_data:
            longest = min(most, agreed.peer_max_recv_data_segment_length)
            immediate = data.draw(st.sampled_from([0, 1, longest // 2, longest]))
        self.writing[tag] = slot, lba * self.block_size, content
        if not agreed.initial_r2t and immediate < most and data.draw(st.booleans()):
            session.write(tag, lba, content, immediate=immediate, fua=fua, flags=int(WRITE))
            size = min(size, agreed.peer_max_recv_data_segment_length)
            session.unsolicited(tag, immediate, data.draw(st.integers(immediate + 1, most)), size=size)
        else:
            session.write(tag, lba, content, immediate=immediate, fua=fua)

    @rule(size=lengths)
    def answer_an_r2t(self, size: int) -> None:
        session = self.session
        if session.r2ts:
            # Of one task in order; tasks may overtake each other.
            r2t = next(r2t for r2t in session.r2ts if r2t.initiator_task_tag == session.r2ts[-1].initiator_task_tag)
            session.r2ts.remove(r2t)
            size = min(size, session.parameters.peer_max_recv_data_segment_length)
            session.answer_r2t(r2t, session.data_out[r2t.initiator_task_tag], size=size)

    @rule(data=st.data())
    def finish_a_call(self, data: st.DataObject) -> None:
        pool = self.session.pool
        if pool.calls:
            pool.finish(data.draw(st.integers(0, len(pool.calls) - 1)))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if not (self.reading or self.writing):
            return
        tag = data.draw(st.sampled_from([*self.reading, *self.writing]))
        self._hear()
        if tag in self.reading:
            self.aborting[tag] = self.reading.pop(tag)[0]
        elif tag in self.writing:
            self.aborting[tag] = self.writing.pop(tag)[0]
        else:
            return
        self.session.r2ts = [r2t for r2t in self.session.r2ts if r2t.initiator_task_tag != tag]
        self.session.send(TaskManagementRequest(function=1, initiator_task_tag=10**6 + tag, referenced_task_tag=tag))

    @rule()
    def hear(self) -> None:
        self._hear()

    def _hear(self) -> None:
        others = self.session.hear()
        for pdu in others:
            self._aborted(pdu)
        for tag, outcome in list(self.session.outcomes.items()):
            if outcome.status != -1:
                self._ended(tag, self.session.outcomes.pop(tag))

    def _aborted(self, pdu: Any) -> None:
        """A slot of which a write was aborted holds what the medium says it does."""
        tag = pdu.initiator_task_tag - 10**6
        slot = self.aborting.pop(tag)
        assert pdu.response == 0
        self.session.outcomes.pop(tag, None)
        stretch = slice(slot * SLOT * self.block_size, (slot + 1) * SLOT * self.block_size)
        self.model[stretch] = self.session.device.content[stretch]
        self.free.add(slot)

    def _ended(self, tag: int, outcome: Outcome) -> None:
        assert outcome.status == GOOD, outcome
        if tag in self.reading:
            slot, content = self.reading.pop(tag)
            assert outcome.data == content
        else:
            slot, start, content = self.writing.pop(tag)
            self.model[start : start + len(content)] = content
            stretch = slice(start, start + len(content))
            assert self.session.device.content[stretch] == content
        self.free.add(slot)

    @invariant()
    def window_counts_the_tasks(self) -> None:
        if hasattr(self, "session"):
            window = self.session.connection.window
            assert window.active == len(self.session.engine.tasks) <= SLOTS
            assert window.ahead == window.size - window.active - 1

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        try:
            while self.reading or self.writing or self.aborting:
                before = len(self.free)
                calls = len(self.session.pool.calls) + len(self.session.r2ts)
                self.answer_an_r2t(4096)
                if self.session.pool.calls:
                    self.session.pool.finish()
                self._hear()
                assert len(self.free) > before or calls or self.session.r2ts, "nothing moves any more"
            assert self.session.device.content == self.model
            self.session.assert_idle()
        finally:
            data_out.GATHER_LIMIT, data_in.QUEUE_LIMIT, data_in.PIECE, data_in.MAX_PIECES = self.limits


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
