"""The contract of a device, for every layer over every back end.

The tests are those of test_contract.py, run on stacks over three back ends that differ in what layers care about. Over
all others, each stack has one test with the checks in ``SHORT``; with ISCSID_CONTRACT=all it has every check, too. What
is native under a layer is in truth.py.
"""

from __future__ import annotations

import inspect
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import test_contract
from media_kit import MAKERS, marks
from truth import A_PATH, EXPECTED, NOT_OVER_NULL, QUICK, SIZES, STACKS, TRUTH, UNDER, stacks

from iscsid.block.guard import Guarded
from iscsid.contract import CHECKS, Medium, NotApplicable, checks
from iscsid.plugin.manager import Plugins

ALL: Final = os.environ.get("ISCSID_CONTRACT") == "all"
SHORT: Final = (
    checks.facts_fit_together,
    checks.readonly_device_can_write_nothing,
    checks.absent_capability_is_refused,
    checks.first_and_last_block_are_reached,
    checks.buffer_at_any_address_is_good,
    checks.read_now_of_what_was_just_read_reads,
    checks.write_now_of_what_is_there_writes_or_refuses,
    checks.range_that_is_not_inside_is_refused_by_every_call,
    checks.fua_write_is_read_by_another_handle,
    checks.write_by_one_handle_is_read_by_the_other,
    checks.write_zeroes_zeroes_the_range_and_no_more,
    checks.discard_zeroes_the_range_where_it_says_so_and_never_more,
    checks.block_status_covers_the_range_and_never_calls_data_zero,
    checks.larger_logical_block_is_served,
    checks.data_outlives_every_handle,
    checks.close_gives_every_descriptor_back,
)


@pytest.fixture(params=[f"{stack}/{under}" for stack, under in stacks() if under in UNDER])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def medium(kind: str, make_stack: Callable[[str, str], Medium]) -> Medium:
    return make_stack(*kind.split("/"))


@pytest.fixture
def make_stack(stacked: Callable[..., Any], tmp_path: Path) -> Callable[[str, str], Medium]:
    """Makes a row of the table of stacks over a kind of back end."""

    def make(stack: str, under: str) -> Medium:
        layers = [
            (
                layer,
                {key: str(tmp_path / f"{layer}.{key}") if value is A_PATH else value for key, value in given.items()},
            )
            for layer, given in STACKS[stack]
        ]
        if stack == "crypt":
            key = Path(layers[0][1]["key_file"])
            key.write_bytes(bytes(range(64)))
            key.chmod(0o600)
        medium: Medium = stacked(under, layers)
        if stack == "partition":
            partition(medium)
        if stack == "crypt":
            guard = medium.open()
            guard.write_zeroes(0, 2 << 20)  # what was never written reads as noise
            guard.close()
        return medium

    return make


def partition(medium: Medium) -> None:
    """A GPT with one partition, from 1 MiB on (UEFI 2.10, tables 5.5 and 5.6)."""
    device = medium.plugins.open(medium.backend, medium.options, "worker")
    sector = device.block_size
    first, last = (1 << 20) // sector, (1 << 20) // sector + SIZES["partition"] // sector - 1
    entries = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, first, last, 0, b"").ljust(sector, b"\0")
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, 0, first, last, b"\3" * 16, 2, sector // 128, 128, zlib.crc32(entries)]
    header = struct.Struct("<8sIIIIQQQQ16sQIII")
    fields[3] = zlib.crc32(header.pack(*fields))
    guard = Guarded(device)
    guard.write(memoryview(header.pack(*fields).ljust(sector, b"\0") + entries), sector)
    guard.close()


globals().update(
    {name: test for name, test in vars(test_contract).items() if name.startswith("test_") and inspect.isfunction(test)}
)

REST = [
    pytest.param(stack, under, marks=marks(under), id=f"{stack}/{under}")
    for stack, under in stacks()
    if under not in UNDER
]


@pytest.mark.parametrize(("stack", "under"), REST)
def test_layer_keeps_the_contract_over_every_back_end(
    stack: str, under: str, make_stack: Callable[[str, str], Medium]
) -> None:
    medium = make_stack(stack, under)
    guard = medium.open()
    assert (guard.can, guard.inline) == (TRUTH[f"{stack}/{under}"], f"{stack}/{under}" in QUICK)
    medium.close_handles()
    for check in CHECKS if ALL else SHORT:
        try:
            check(medium)
        except NotApplicable:
            pass
        except BaseException as error:
            error.add_note(f"check: {check.__name__}")
            raise
        finally:
            medium.close_handles()


def test_every_layer_is_in_the_suite_and_every_back_end_under_it(plugins: Plugins) -> None:
    assert {layer for layers in STACKS.values() for layer, _ in layers} == set(plugins.layers)
    assert set(MAKERS) == set(EXPECTED)
    assert {MAKERS.__contains__(under) for under in UNDER} == {True}
    there = set(stacks())
    assert {(stack, under) for stack in STACKS for under in EXPECTED} - there == {(x, "null") for x in NOT_OVER_NULL}
    assert set(SHORT) <= set(CHECKS)
