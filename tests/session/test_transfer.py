"""session.transfer. Invariants: what comes out of a plan is the data, once and in order, within both limits; what goes
into a transfer that keeps to the rules completes it; what does not raises TransferError and nothing else.
"""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.session.params import Parameters
from iscsid.session.transfer import DataInPlan, Grant, Segment, TransferError, WriteTransfer
from iscsid.wire.const import RESERVED_TAG


def parameters(*, segment: int = 1024, burst: int = 4096, first: int = 2048, r2ts: int = 1) -> Parameters:
    return Parameters(
        peer_max_recv_data_segment_length=segment,
        max_burst_length=burst,
        first_burst_length=first,
        max_outstanding_r2t=r2ts,
    )


def write(
    wanted: int, immediate: int = 0, *, more: bool = False, limit: int | None = None, burst: int = 4096, r2ts: int = 1
) -> WriteTransfer:
    chosen = parameters(burst=burst, r2ts=r2ts)
    return WriteTransfer(chosen, wanted, immediate, more, min(2048, wanted) if limit is None else limit)


def send(transfer: WriteTransfer, grant: Grant, size: int) -> None:
    """Send what ``grant`` asks for in PDUs of ``size`` bytes."""
    end = grant.offset + grant.length
    for data_sn, start in enumerate(range(grant.offset, end, size)):
        length = min(size, end - start)
        transfer.accept(grant.tag, data_sn, start, length, start + length == end)


# --- write: data that comes without being asked for -----------------------------------------------------------------


def test_write_whose_data_came_with_the_command_is_complete() -> None:
    transfer = write(1024, 1024)
    assert transfer.complete
    assert list(transfer.grants(count())) == []


def test_write_without_data_is_complete() -> None:
    assert write(0).complete


def test_write_of_nothing_waits_for_what_was_announced() -> None:
    transfer = write(0, more=True, limit=512)
    assert not transfer.complete
    transfer.accept(RESERVED_TAG, 0, 0, 512, True)
    assert transfer.complete
    assert list(transfer.grants(count())) == []


def test_unsolicited_data_follows_the_immediate_data() -> None:
    transfer = write(2048, 512, more=True)
    transfer.accept(RESERVED_TAG, 0, 512, 1024, False)
    assert not transfer.complete
    transfer.accept(RESERVED_TAG, 1, 1536, 512, True)
    assert transfer.complete
    assert transfer.received == 2048


def test_no_r2t_goes_out_while_unsolicited_data_is_to_come() -> None:
    transfer = write(8192, more=True)
    assert list(transfer.grants(count())) == []
    transfer.accept(RESERVED_TAG, 0, 0, 2048, True)
    assert list(transfer.grants(count(5))) == [Grant(5, 0, 2048, 4096)]


def test_unsolicited_data_may_end_early_and_the_rest_is_asked_for() -> None:
    transfer = write(4096, 256, more=True)
    transfer.accept(RESERVED_TAG, 0, 256, 256, True)
    assert list(transfer.grants(count(1))) == [Grant(1, 0, 512, 3584)]


def test_unsolicited_data_may_be_more_than_is_wanted() -> None:
    transfer = write(512, more=True, limit=1024)
    transfer.accept(RESERVED_TAG, 0, 0, 1024, True)
    assert transfer.complete


def test_final_bit_may_come_in_an_empty_pdu_of_its_own() -> None:
    transfer = write(1024, more=True)
    transfer.accept(RESERVED_TAG, 0, 0, 1024, False)
    transfer.accept(RESERVED_TAG, 1, 1024, 0, True)
    assert transfer.complete


# --- write: data that is asked for ----------------------------------------------------------------------------------


def test_grants_are_bursts_in_order_one_at_a_time() -> None:
    transfer = write(10000, 100)
    tags = count(7)
    asked = []
    while not transfer.complete:
        (grant,) = transfer.grants(tags)
        assert list(transfer.grants(tags)) == []  # MaxOutstandingR2T is 1
        asked.append(grant)
        send(transfer, grant, 1000)
    assert asked == [Grant(7, 0, 100, 4096), Grant(8, 1, 4196, 4096), Grant(9, 2, 8292, 1708)]


def test_as_many_grants_are_open_as_were_agreed() -> None:
    transfer = write(20000, r2ts=3)
    first = list(transfer.grants(count()))
    assert [grant.offset for grant in first] == [0, 4096, 8192]
    send(transfer, first[0], 4096)
    assert [grant.offset for grant in transfer.grants(count(3))] == [12288]
    assert list(transfer.grants(count(4))) == []


def test_data_sn_begins_anew_with_every_r2t() -> None:
    transfer = write(8192, r2ts=2)
    for grant in list(transfer.grants(count())):
        send(transfer, grant, 512)
    assert transfer.complete


def test_stop_asks_for_no_more_and_waits_for_what_was_granted() -> None:
    transfer = write(20000, r2ts=2)
    grants = list(transfer.grants(count()))
    transfer.stop()
    send(transfer, grants[0], 4096)
    assert list(transfer.grants(count())) == []
    assert not transfer.complete
    send(transfer, grants[1], 4096)
    assert transfer.complete


def test_stop_while_unsolicited_data_comes_waits_for_its_end() -> None:
    transfer = write(20000, more=True)
    transfer.accept(RESERVED_TAG, 0, 0, 1024, False)
    transfer.stop()
    assert not transfer.complete
    transfer.accept(RESERVED_TAG, 1, 1024, 1024, True)
    assert transfer.complete
    assert list(transfer.grants(count())) == []


# --- write: an initiator that does not keep to the rules ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "data_sn", "offset", "length", "final", "says"),
    [
        (5, 0, 512, 512, True, "target transfer tag"),
        (RESERVED_TAG, 1, 512, 512, True, "DataSN"),
        (RESERVED_TAG, 0, 0, 512, True, "buffer offset"),
        (RESERVED_TAG, 0, 1024, 512, True, "buffer offset"),
        (RESERVED_TAG, 0, 512, 1537, True, "ends at 2048"),
        (RESERVED_TAG, 0, 512, 0xFFFFFF, False, "ends at 2048"),
    ],
)
def test_unsolicited_pdu_out_of_sequence_is_an_error(
    tag: int, data_sn: int, offset: int, length: int, final: bool, says: str
) -> None:
    transfer = write(8192, 512, more=True)
    with pytest.raises(TransferError, match=says):
        transfer.accept(tag, data_sn, offset, length, final)
    assert transfer.received == 512


@pytest.mark.parametrize(
    ("tag", "data_sn", "offset", "length", "final", "says"),
    [
        (RESERVED_TAG, 0, 0, 4096, True, "target transfer tag"),
        (4, 0, 0, 4096, True, "target transfer tag"),  # that of the next R2T
        (3, 0, 4096, 4096, True, "buffer offset"),
        (3, 0, 0, 4097, True, "ends at 4096"),
        (3, 0, 0, 4095, True, "short of 4096"),
        (3, 0, 0, 0, True, "short of 4096"),
        (3, 0, 0, 4096, False, "no F bit"),
    ],
)
def test_solicited_pdu_out_of_sequence_is_an_error(
    tag: int, data_sn: int, offset: int, length: int, final: bool, says: str
) -> None:
    transfer = write(8192, r2ts=2)
    assert [grant.tag for grant in transfer.grants(count(3))] == [3, 4]
    with pytest.raises(TransferError, match=says):
        transfer.accept(tag, data_sn, offset, length, final)


@pytest.mark.parametrize("length", [0, 1, 512])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("immediate", [0, 512])
def test_data_before_any_r2t_is_an_error(immediate: int, length: int, final: bool) -> None:
    transfer = write(8192, immediate)
    with pytest.raises(TransferError):
        transfer.accept(RESERVED_TAG, 0, immediate, length, final)


def test_data_between_the_unsolicited_and_the_first_r2t_is_an_error() -> None:
    transfer = write(8192, more=True)
    transfer.accept(RESERVED_TAG, 0, 0, 1024, True)
    with pytest.raises(TransferError, match="asked for"):
        transfer.accept(RESERVED_TAG, 0, 1024, 1024, True)


def test_data_after_the_last_burst_is_an_error() -> None:
    transfer = write(4096)
    (grant,) = transfer.grants(count())
    send(transfer, grant, 4096)
    with pytest.raises(TransferError, match="asked for"):
        transfer.accept(grant.tag, 0, 4096, 0, True)


# --- write: any that keeps to the rules, and any that does not ------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_transfer_that_keeps_to_the_rules_completes(data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, 20000), "wanted")
    first = data.draw(st.integers(1, 4096), "first burst")
    limit = min(first, wanted)
    immediate = data.draw(st.integers(0, limit), "immediate")
    more = data.draw(st.booleans(), "more")
    burst = data.draw(st.integers(512, 8192), "burst")
    r2ts = data.draw(st.integers(1, 4), "r2ts")
    transfer = WriteTransfer(parameters(burst=burst, r2ts=r2ts), wanted, immediate, more, limit)
    taken = immediate
    if more:
        pieces = data.draw(st.lists(st.integers(0, limit - immediate), max_size=4), "unsolicited")
        for data_sn, length in enumerate([*pieces, 0]):
            length = min(length, limit - taken)
            transfer.accept(RESERVED_TAG, data_sn, taken, length, data_sn == len(pieces))
            taken += length
    open_grants: deque[Grant] = deque()
    tags, r2t_sn = count(), 0
    while not transfer.complete:
        for grant in transfer.grants(tags):
            assert grant.r2t_sn == r2t_sn
            assert 0 < grant.length <= burst
            r2t_sn += 1
            open_grants.append(grant)
        assert 0 < len(open_grants) <= r2ts
        grant = open_grants.popleft()
        assert grant.offset == taken
        send(transfer, grant, data.draw(st.integers(1 + grant.length // 8, 8192), "pdu"))
        taken += grant.length
    assert taken == transfer.received == wanted
    assert not open_grants
    assert list(transfer.grants(tags)) == []


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 6000),
    st.integers(0, 2048),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([RESERVED_TAG, 0, 1, 2]),
            st.integers(0, 2),
            st.sampled_from([0, 512, 1024, 2048, 4096, 0xFFFFFFFF]),
            st.sampled_from([0, 512, 1024, 2048, 0xFFFFFF]),
            st.booleans(),
        ),
        max_size=20,
    ),
    st.integers(0, 20),
)
def test_any_data_out_is_taken_within_bounds_or_refused(
    wanted: int, immediate: int, more: bool, pdus: list[tuple[int, int, int, int, bool]], grant_at: int
) -> None:
    transfer = write(wanted, immediate, more=more, limit=max(immediate, min(2048, wanted)))
    tags = count()
    for number, pdu in enumerate(pdus):
        if number >= grant_at:
            list(transfer.grants(tags))
        try:
            transfer.accept(*pdu)
        except TransferError:
            break
        assert transfer.received <= max(wanted, 2048, immediate)


# --- data-in --------------------------------------------------------------------------------------------------------


def cut(plan: DataInPlan) -> list[Segment]:
    segments = []
    while length := plan.next_length():
        segments.append(plan.take(length))
    return segments


def test_short_data_goes_in_one_pdu() -> None:
    assert cut(DataInPlan(parameters(), 1000)) == [Segment(0, 1000, 0, True, True)]


def test_data_is_cut_into_pdus_and_bursts() -> None:
    assert cut(DataInPlan(parameters(segment=1000, burst=2500), 6000)) == [
        Segment(0, 1000, 0, False, False),
        Segment(1000, 1000, 1, False, False),
        Segment(2000, 500, 2, True, False),
        Segment(2500, 1000, 3, False, False),
        Segment(3500, 1000, 4, False, False),
        Segment(4500, 500, 5, True, False),
        Segment(5000, 1000, 6, True, True),
    ]


def test_data_that_ends_with_a_burst_has_one_last_pdu() -> None:
    assert [segment[3:] for segment in cut(DataInPlan(parameters(), 8192))] == [
        *[(False, False)] * 3,
        (True, False),
        *[(False, False)] * 3,
        (True, True),
    ]


def test_less_at_hand_makes_a_shorter_pdu() -> None:
    plan = DataInPlan(parameters(), 1024)
    assert plan.take(512) == Segment(0, 512, 0, False, False)
    assert plan.next_length() == 512
    assert plan.take(9999) == Segment(512, 512, 1, True, True)
    assert plan.next_length() == 0


def test_plan_of_nothing_has_no_pdu() -> None:
    assert DataInPlan(parameters(), 0).next_length() == 0


def test_segment_smaller_limit_of_burst_counts() -> None:
    segments = cut(DataInPlan(parameters(segment=8192, burst=512), 1024))
    assert [(segment.length, segment.final) for segment in segments] == [(512, True), (512, True)]


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 100_000),
    segment=st.integers(512, 20_000),
    burst=st.integers(512, 40_000),
    at_hand=st.lists(st.integers(1, 30_000), max_size=20),
)
def test_any_plan_sends_everything_once_within_the_limits(
    length: int, segment: int, burst: int, at_hand: list[int]
) -> None:
    plan = DataInPlan(parameters(segment=segment, burst=burst), length)
    segments = []
    while plan.next_length():
        segments.append(plan.take(at_hand.pop() if at_hand else plan.next_length()))
    assert [one.data_sn for one in segments] == list(range(len(segments)))
    offset = in_burst = 0
    for one in segments:
        assert one.offset == offset
        assert 0 < one.length <= segment
        offset += one.length
        in_burst += one.length
        assert in_burst <= burst
        assert one.last == (offset == length)
        assert one.final == (in_burst == burst or one.last)
        if one.final:
            in_burst = 0
    assert offset == length
