"""Specs are frozen, comparable records that can be sent to another process."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from iscsid.specs import LayerSpec, LunSpec, PortalSpec, ServerSpec, TargetSpec

LUN = LunSpec(3, "file", {"path": "/srv/disk"}, block_size=4096, layers=(LayerSpec("rate", {"iops": 5000}),))
SERVER = ServerSpec(
    targets=(TargetSpec("iqn.2026-11.org.iscsid:disk0", (LUN,), parameters={"MaxBurstLength": "65536"}),)
)


@pytest.mark.parametrize(
    ("portal", "text"),
    [
        (PortalSpec("192.0.2.1"), "192.0.2.1:3260"),
        (PortalSpec("2001:db8::1", 3261), "[2001:db8::1]:3261"),
        (PortalSpec("storage.example", 0), "storage.example:0"),
    ],
)
def test_portal_is_written_as_in_a_target_address(portal: PortalSpec, text: str) -> None:
    assert str(portal) == text


@pytest.mark.parametrize("spec", [LUN, SERVER, SERVER.targets[0], PortalSpec("::"), LUN.layers[0]])
def test_spec_is_the_same_in_another_process(spec: object) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("spec", [LUN, SERVER, SERVER.targets[0], PortalSpec("::"), LUN.layers[0]])
def test_spec_cannot_be_changed(spec: object) -> None:
    name = dataclasses.fields(spec)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, name, None)


def test_default_server_listens_on_both_families_of_the_registered_port() -> None:
    assert [str(portal) for portal in ServerSpec().portals] == ["0.0.0.0:3260", "[::]:3260"]


def test_default_folders_are_not_those_of_open_iscsi() -> None:
    spec = ServerSpec()
    assert {spec.runtime_dir, spec.state_dir}.isdisjoint({"/run/iscsid", "/run/iscsi", "/var/lib/iscsi", "/etc/iscsi"})


def test_default_inquiry_strings_fit_their_fields() -> None:
    assert len(LUN.vendor) <= 8
    assert len(LUN.product) <= 16


def test_limits_leave_room_for_every_host() -> None:
    spec = ServerSpec()
    assert spec.max_pending_logins_per_host < spec.max_pending_logins
    assert 0 < spec.max_sessions <= 65535
