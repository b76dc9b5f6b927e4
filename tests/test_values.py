"""Values of keys: what each kind takes, and what it says of what it does not take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid import values
from iscsid.specs import PortalSpec


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("192.0.2.1", PortalSpec("192.0.2.1", 3260)),
        ("192.0.2.1:3261", PortalSpec("192.0.2.1", 3261)),
        ("0.0.0.0:0", PortalSpec("0.0.0.0", 0)),
        ("::1", PortalSpec("::1", 3260)),
        ("[::1]", PortalSpec("::1", 3260)),
        ("[2001:DB8:0::1]:65535", PortalSpec("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:3260", PortalSpec("fe80::1%eth0", 3260)),
        ("storage.example:3260", PortalSpec("storage.example", 3260)),
        ("localhost", PortalSpec("localhost", 3260)),
    ],
)
def test_portal_in_every_form_is_read(text: str, portal: PortalSpec) -> None:
    assert values.portal(text) == portal


@pytest.mark.parametrize(
    "text",
    ["", ":3260", "host:", "host:x", "host:65536", "host:-1", "host:٣", "[::1", "[::1]3260", "[::1]:", "[host]:1",
     "1.2.3.4.5", "1.2.3:3260", "256.1.1.1", "::g", "a b:1", "-a:1", "a..b", "a_b", "[]:1", "1:2:3:4"],
)  # fmt: skip
def test_portal_in_no_known_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        values.portal(text)


@given(st.text(max_size=30) | st.text(alphabet="[]:.0129af%x-", max_size=20))
def test_any_portal_is_read_or_refused_by_value_error(text: str) -> None:
    try:
        spec = values.portal(text)
    except ValueError:
        return
    assert values.portal(str(spec)) == spec


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (values.boolean, True, True),
        (values.integer(0, 5), 5, 5),
        (values.seconds(0.5, 10), 1, 1.0),
        (values.text(5), "iscsi", "iscsi"),
        (values.folder, "/srv//disks/", "/srv/disks"),
        (values.choice("info", "debug"), "info", "info"),
        (values.array(values.integer(0, 5)), [1, 2], (1, 2)),
        (values.block_size, "4 KiB", 4096),
        (values.block_size, 512, 512),
        (values.iscsi_name, "iqn.2026-11.org.example:A", "iqn.2026-11.org.example:a"),
        (values.network, "192.0.2.0/24", "192.0.2.0/24"),
    ],
)
def test_value_of_the_right_kind_is_read(read: values.Read, value: Any, expected: Any) -> None:
    assert read(value) == expected


@pytest.mark.parametrize(
    ("read", "value", "reason"),
    [
        (values.boolean, 1, "must be true or false, not a whole number"),
        (values.integer(0, 5), 6, "must be from 0 to 5, not 6"),
        (values.integer(minimum=3), 2, "must be at least 3, not 2"),
        (values.integer(), True, "must be a whole number, not a boolean"),
        (values.seconds(0.5, 10), float("nan"), "must be from 0.5 to 10, not nan"),
        (values.text(5), "ß" * 3, "has at most 5 bytes, this one has 6"),
        (values.text(5, printable_ascii=True), "ß", "may hold printable ASCII only"),
        (values.text(5), "a\nb", "may not hold control characters"),
        (values.folder, "srv", "must be an absolute path"),
        (values.runtime_folder, "/" + "x" * 100, "has at most 94 bytes"),
        (values.choice("info", "debug"), "inof", "info"),
        (values.array(values.boolean), "x", "must be"),
        (values.array(values.boolean, empty="names nobody"), [], "names nobody"),
        (values.block_size, 1000, "1,000"),
        (values.iscsi_name, "disk", "iqn."),
        (values.network, "192.0.2.1/33", "192.0.2.1/33"),
    ],
)
def test_value_of_another_kind_is_refused_with_the_reason(read: values.Read, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        read(value)
    assert reason in str(caught.value)
