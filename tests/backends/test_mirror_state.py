"""What a mirror remembers, and whose state file it takes for its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from iscsid_backends.mirror_state import HEADER, MAX_REGIONS, MirrorState, recorded_size, region_size

from iscsid.errors import BlockError, Fault

SIZE = 100 << 20
LEGS = ["file /a", "file /b"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.mark.parametrize("size", [512, 1 << 20, (1 << 40) - 512, 1 << 40, (1 << 40) + 512, 1 << 60])
def test_regions_are_few_and_large(size: int) -> None:
    region = region_size(size)
    assert region >= 16 << 20
    assert not region & (region - 1)
    assert -(-size // region) <= MAX_REGIONS


def test_new_state_distrusts_all_but_the_first_leg(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    assert [state.stale(region) for region in range(state.count)] == [2] * 7
    assert not state.any_stale(0)
    assert list(state.stale_regions(1)) == list(range(7))


def test_regions_of_a_range(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    assert state.regions(0, 512) == range(1)
    assert state.regions((16 << 20) - 512, 1024) == range(2)
    assert state.regions(SIZE - 512, 512) == range(6, 7)


def test_everything_is_remembered(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    for region in range(state.count):
        state.trust(1, region)
    assert state.intend(range(1, 3))
    state.distrust(0, [5])
    state.sync()
    state._map.close()
    again = MirrorState(path, SIZE, LEGS)
    assert again.intended() == [1, 2]
    assert list(again.stale_regions(0)) == [5]
    assert not again.any_stale(1)
    again.settle([1])
    assert again.intended() == [2]


def test_state_is_of_one_mirror_at_a_time(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    with pytest.raises(BlockError, match="is in use by another mirror") as caught:
        MirrorState(path, SIZE, LEGS)
    assert caught.value.fault is Fault.BUSY
    state.close()
    MirrorState(path, SIZE, LEGS).close()


def test_intent_whose_sync_failed_is_not_taken_for_noted(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    assert state.intend(range(1, 3))
    assert state.intend(range(1, 3))  # the sync between them raised
    state.sync()
    assert not state.intend(range(1, 3))
    state.settle([1])
    assert state.intend(range(1, 3))


def test_leg_of_another_name_is_distrusted(path: str) -> None:
    state = MirrorState(path, SIZE, LEGS)
    for region in range(state.count):
        state.trust(1, region)
    state.close()
    assert list(MirrorState(path, SIZE, ["file /new", "file /b"]).stale_regions(0)) == list(range(7))


@pytest.mark.parametrize("legs", [["file /b", "file /a"], ["file /c", "file /d"]])
def test_legs_that_all_changed_are_refused(path: str, legs: list[str]) -> None:
    MirrorState(path, SIZE, LEGS).close()
    with pytest.raises(BlockError, match="no leg is what it was: file /a, file /b"):
        MirrorState(path, SIZE, legs)


@pytest.mark.parametrize(("size", "legs"), [(SIZE + 512, LEGS), (SIZE * 2, LEGS), (SIZE, [*LEGS, "file /c"])])
def test_state_of_another_mirror_is_refused(path: str, size: int, legs: list[str]) -> None:
    MirrorState(path, SIZE, LEGS).close()
    with pytest.raises(BlockError, match="the state of a mirror of 104857600 bytes and 2 legs"):
        MirrorState(path, size, legs)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"x" * 5000, b'{"legs": [1]', b"\xff" * 4096])
def test_file_that_is_no_state_is_refused_and_left_alone(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(BlockError, match="not the state of a mirror"):
        MirrorState(path, SIZE, LEGS)
    assert Path(path).read_bytes() == content


def test_state_whose_making_was_interrupted_is_made_again(path: str) -> None:
    Path(path).write_bytes(bytes(HEADER + 7))
    assert MirrorState(path, SIZE, LEGS).any_stale(1)


def test_state_that_was_cut_is_refused(path: str) -> None:
    MirrorState(path, SIZE, LEGS).close()
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    with pytest.raises(BlockError):
        MirrorState(path, SIZE, LEGS)


def test_names_that_are_too_long_are_refused(path: str) -> None:
    with pytest.raises(BlockError, match="too long"):
        MirrorState(path, SIZE, ["a" * 3000, "b" * 3000])


def test_state_has_its_place_on_the_medium_before_it_is_mapped(path: str) -> None:
    MirrorState(path, 1 << 40, LEGS).close()
    assert os.stat(path).st_blocks * 512 >= HEADER + MAX_REGIONS


@pytest.mark.parametrize(("content", "size"), [(None, 0), (b"", 0), (b"[]", 0), (b'{"size": "x"}', 0)])
def test_recorded_size_of_what_is_no_state_is_none(path: str, content: bytes | None, size: int) -> None:
    if content is not None:
        Path(path).write_bytes(content)
    assert recorded_size(path) == size


def test_recorded_size_is_that_of_the_mirror(path: str) -> None:
    MirrorState(path, SIZE, LEGS).close()
    assert recorded_size(path) == SIZE


@pytest.mark.parametrize(
    ("up", "stale", "after"),
    [
        ([0, 1, 2], 0, 0b110),
        ([1, 2], 0, 0b101),
        ([0, 1, 2], 0b001, 0b101),
        ([0], 0b001, 0b001),  # nobody who is up has it: it stays with those that are not
        ([], 0, 0),
    ],
)
def test_region_in_flight_at_a_crash_is_that_of_the_first_leg_that_is_up_and_has_it(
    path: str, up: list[int], stale: int, after: int
) -> None:
    state = MirrorState(path, SIZE, [*LEGS, "file /c"])
    for leg in range(3):
        state.trust(leg, 3)
        if stale & 1 << leg:
            state.distrust(leg, [3])
    state.intend(range(3, 4))
    state.recover(up)
    assert state.stale(3) == after
    state.close()
