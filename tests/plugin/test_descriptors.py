"""Descriptors are found wherever they are in what a plugin has prepared, and renumbered."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsid.plugin import Descriptor
from iscsid.plugin.descriptors import found_in, pack, unpack
from iscsid.plugin.members import Member

OPTIONS = {
    "size": 7,
    "path": Path("/a"),
    "claim": Descriptor(5),
    "members": (Member("file", {"claim": Descriptor(9), "path": "x"}), Member("ram", {"memfd": Descriptor(5)})),
}


def test_descriptors_come_back_under_their_new_numbers() -> None:
    data, descriptors = pack(OPTIONS)
    assert descriptors == [5, 9]
    back = unpack(data, [105, 109])
    assert back["claim"] == 105 and type(back["claim"]) is Descriptor
    assert [member.options for member in back["members"]] == [{"claim": 109, "path": "x"}, {"memfd": 105}]
    assert (back["size"], back["path"]) == (7, Path("/a"))


def test_plain_number_is_none() -> None:
    assert pack({"size": 5, "five": True})[1] == []


def test_descriptor_that_did_not_come_is_an_error() -> None:
    with pytest.raises(IndexError):
        unpack(pack(OPTIONS)[0], [105])


def test_value_that_cannot_be_packed_has_none_and_hides_no_other() -> None:
    assert found_in(({"call": lambda: Descriptor(1)}, {"claim": Descriptor(3)}, {"again": Descriptor(3)})) == [3]
