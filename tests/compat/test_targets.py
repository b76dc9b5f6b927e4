"""targets(5): what every kind of line gives, and what is told of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.compat import targets
from iscsid.compat.targets import Device, Extent

SAMPLE = """\
# extents
extent0\t\t/tmp/iscsi-target0\t0\t100MB

# targets
target0\t\trw\textent0\t\t0.0.0.0/0
"""

RAID = """\
extent0 /srv/a 0 100m
extent1 /srv/b 512 100M
extent2 /srv/c 0 1GB
extent3 /dev/sdz 0 size
device0 RAID1 extent0 extent1
device1 raid0 device0 extent2
target0=iqn.2001-01.org.example:disk1 rw device1 10.4/16
lun1 ro extent3 any
"""


def told(text: str) -> list[str]:
    return [message.at("f") for message in targets.parse(text).messages]


def test_sample_of_the_original_gives_one_target() -> None:
    found = targets.parse(SAMPLE)
    assert found.messages == []
    target = found.targets["target0"]
    assert target.full_name() == "iqn.1994-04.org.netbsd.iscsi-target:target0"
    assert target.full_name("iqn.2026-11.org.example") == "iqn.2026-11.org.example:target0"
    assert not target.readonly
    assert target.storage == Extent("extent0", "/tmp/iscsi-target0", 0, 104857600)
    assert target.mask.allows("192.0.2.1")


def test_devices_are_made_of_extents_and_devices() -> None:
    found = targets.parse(RAID)
    assert found.messages == []
    first = found.targets["target0"]
    assert first.full_name() == "iqn.2001-01.org.example:disk1"
    assert isinstance(first.storage, Device)
    assert first.storage.level == 0
    mirror, last = first.storage.members
    assert isinstance(mirror, Device)
    assert (mirror.level, [member.name for member in mirror.members]) == (1, ["extent0", "extent1"])
    assert last == Extent("extent2", "/srv/c", 0, 1 << 30)


def test_lun_line_is_a_target_and_size_is_all_there_is() -> None:
    target = targets.parse(RAID).targets["lun1"]
    assert target.readonly
    assert target.storage == Extent("extent3", "/dev/sdz", 0, None)


def test_dump_prints_a_tree_with_a_tab_for_each_level() -> None:
    storage = targets.parse(RAID).targets["target0"].storage
    assert list(targets.dump(storage)) == [
        "\tdevice1:RAID0",
        "\t\tdevice0:RAID1",
        "\t\t\textent0:/srv/a:0:104857600",
        "\t\t\textent1:/srv/b:512:104857600",
        "\t\textent2:/srv/c:0:1073741824",
    ]


@pytest.mark.parametrize(
    ("length", "size"),
    [
        ("512", 512),
        ("100MB", 100 << 20),
        ("100M", 100 << 20),
        ("100m", 100 << 20),
        ("100megaparsecs", 100 << 20),
        ("4k", 4096),
        ("4KB", 4096),
        ("2g", 2 << 30),
        ("3TB", 3 << 40),
        ("700x", 700),
        ("size", None),
        ("SIZE", None),
    ],
)
def test_length_counts_the_first_letter_behind_the_digits(length: str, size: int | None) -> None:
    assert targets.parse(f"extent0 /x 0 {length}").extents["extent0"].length == size


def test_length_with_a_blank_before_the_unit_is_bytes() -> None:
    assert targets.parse("extent0 /x 0 100 MB").extents["extent0"].length == 100


@pytest.mark.parametrize(
    ("flags", "readonly"),
    [("ro", True), ("readonly", True), ("r", True), ("rw", False), ("RO", False), ("anything", False)],
)
def test_flags_are_read_only_in_three_spellings_only(flags: str, readonly: bool) -> None:
    assert targets.parse(f"extent0 /x 0 1m\ntarget0 {flags} extent0 any").targets["target0"].readonly is readonly


def test_old_form_of_three_columns_is_read_only_and_told() -> None:
    found = targets.parse("extent0 /x 0 1m\ndevice0 RAID0 extent0\ntarget0 device0 10.4.0.0/16")
    assert [message.at("f") for message in found.messages] == [
        'f:3: Warning: old 3 field "targets" entry, assuming read-only target'
    ]
    target = found.targets["target0"]
    assert target.readonly
    assert target.mask.allows("10.4.9.9")
    assert not target.mask.allows("10.5.9.9")


def test_lines_that_begin_with_another_word_are_ignored() -> None:
    assert told("volume0 /x\nTarget0 rw x any\n") == []


def test_one_extent_may_be_in_several_targets() -> None:
    found = targets.parse("extent0 /x 0 1m\ntarget0 rw extent0 any\ntarget1 ro extent0 any")
    assert found.messages == []
    assert list(found.targets) == ["target0", "target1"]


EXTENTS = "extent0 /a 0 1m\nextent1 /b 0 1m\nextent2 /c 0 2m\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EXTENTS + "extent0 /x 0 1m", "Error: attempt to re-define extent `extent0'"),
        (EXTENTS + "device0 RAID0 extent0\ndevice0 RAID0 extent1", "Error: attempt to re-define device `device0'"),
        (EXTENTS + "target0 rw extent0 any\ntarget0 rw extent1 any", "Error: attempt to re-define target `target0'"),
        (EXTENTS + "device0 RAID0 extent9", "Warning: no sub-device/extent `extent9'"),
        (EXTENTS + "device0 RAID0 device0", "Warning: no sub-device/extent `device0'"),
        (EXTENTS + "device0 RAID0 extent0\ndevice1 RAID0 extent0", "Error: extent `extent0' has already been used"),
        (
            EXTENTS + "device0 RAID0 extent0\ndevice1 RAID0 device0\ndevice2 RAID0 device0",
            "Error: device `device0' has already been used",
        ),
        (EXTENTS + "device0 RAID0 extent0 extent0", "Error: device `device0' has a member twice"),
        (EXTENTS + "device0 RAID1 extent0 extent2", "Error: extent `extent2' has size 2097152, not 1048576"),
        (EXTENTS + "device0 RAID1 extent0", "Error: device `device0' is RAID1, but has only 1 sub-devices/extents"),
        (EXTENTS + "device0 RAID5 extent0 extent1", "Error: device `device0' is RAID5; there are RAID0 and RAID1"),
        (EXTENTS + "target0 rw extent9 any", "Error: no extent or device found for `target0'"),
        (
            EXTENTS + "target0 rw extent0 ten/8",
            "Error: allow_netmask: can't interpret mask `ten/8' as an IPv4 address",
        ),
        (EXTENTS + "target0= rw extent0 any", "Error: target `target0' has no name behind its `='"),
        (EXTENTS + "target0 rw", "Error: target `target0' needs flags, an extent or device and a netmask"),
        (EXTENTS + "device0 RAID0", "Error: device `device0' needs a RAID level and a member"),
        ("extent0 /a 0", "Error: extent `extent0' needs a file, an offset and a length"),
        ("extent0 /a 1k 1m", "Error: extent `extent0' has offset `1k', which is no number of bytes"),
        ("extent0 /a -1 1m", "Error: extent `extent0' has offset `-1', which is no number of bytes"),
        ("extent0 /a 0 much", "Error: extent `extent0' has length `much', which is no number of bytes"),
        ("extent0 /a 0 0", "Error: extent `extent0' has length `0'"),
        ("extent0 /a 0 9999999999999999999T", "Error: extent `extent0' has length `9999999999999999999T'"),
    ],
)
def test_bad_line_is_told_with_its_number_and_skipped(text: str, message: str) -> None:
    assert told(text) == [f"f:{text.count(chr(10)) + 1}: {message}"]


def test_members_of_a_device_that_was_skipped_are_free() -> None:
    found = targets.parse(EXTENTS + "device0 RAID1 extent0 extent2\ndevice1 RAID1 extent0 extent1")
    assert len(found.messages) == 1
    assert list(found.devices) == ["device1"]


def test_devices_within_devices_have_a_limit() -> None:
    nest = "".join(f"device{n} RAID0 device{n - 1}\n" for n in range(1, targets.MAX_DEPTH + 1))
    assert told("extent0 /a 0 1m\ndevice0 RAID0 extent0\n" + nest) == [
        f"f:{targets.MAX_DEPTH + 2}: Error: device `device{targets.MAX_DEPTH}' has devices more than 16 deep"
    ]


def test_order_matters() -> None:
    assert told("target0 rw extent0 any\nextent0 /a 0 1m") == ["f:1: Error: no extent or device found for `target0'"]


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "targets"
    path.write_text(SAMPLE)
    assert list(targets.load(path).targets) == ["target0"]


WORDS = st.sampled_from(["extent0", "extent1", "device0", "target0", "lun=", "RAID1", "rw", "any", "0", "1m", "=", "x"])


@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8).map("\n".join))
def test_any_lines_give_targets_or_messages_and_nothing_else(text: str) -> None:
    found = targets.parse(text)
    assert all(target.storage.name in {**found.extents, **found.devices} for target in found.targets.values())
