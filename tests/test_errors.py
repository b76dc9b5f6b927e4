"""Each error carries what its reader needs: the operator a place and a reason, the peer a wire answer."""

from __future__ import annotations

import enum
import inspect

import pytest

from iscsid import errors
from iscsid.errors import (
    BlockError,
    ConfigError,
    Fault,
    IscsidError,
    LoginError,
    PluginError,
    Problem,
    ProtocolError,
    RejectError,
    RemoteProtocolError,
    ScsiError,
)


class Reason(enum.Enum):
    LBA_OUT_OF_RANGE = 1


def exceptions() -> list[type[Exception]]:
    return [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]


def test_every_exception_hangs_on_the_one_tree() -> None:
    assert all(issubclass(item, IscsidError) for item in exceptions())


def test_every_exception_is_drawn_in_the_docstring() -> None:
    drawing = errors.__doc__ or ""
    assert [item.__name__ for item in exceptions() if item.__name__ not in drawing] == []


def test_peer_errors_are_remote_protocol_errors() -> None:
    assert issubclass(LoginError, RemoteProtocolError)
    assert issubclass(RejectError, RemoteProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert not issubclass(errors.LocalProtocolError, RemoteProtocolError)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("target[0].lun[1]", "block_size", "is odd"), "target[0].lun[1].block_size: is odd"),
        (Problem("server", "", "must be a table"), "server: must be a table"),
        (Problem("", "sever", "unknown key"), "sever: unknown key"),
        (Problem("", "", "is not TOML"), "is not TOML"),
    ],
)
def test_problem_names_its_place(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_config_error_tells_every_problem_with_its_file() -> None:
    error = ConfigError("disk.toml", [Problem("server", "workers", "is odd"), Problem("", "", "is short")])
    assert str(error).splitlines() == ["disk.toml: server.workers: is odd", "disk.toml: is short"]
    assert len(error.problems) == 2


def test_plugin_error_names_the_plugin() -> None:
    error = PluginError("qcow2", "cannot be imported")
    assert str(error) == "plugin qcow2: cannot be imported"
    assert (error.plugin, error.reason) == ("qcow2", "cannot be imported")


def test_wire_answers_ride_on_the_errors() -> None:
    assert LoginError(0x0203, "no such target").status == 0x0203
    assert (RejectError(0x09, "bad field").reason, RejectError(0x09, "bad field").fatal) == (0x09, False)
    assert RejectError(0x02, "bad digest", fatal=True).fatal


def test_scsi_error_points_at_its_field() -> None:
    error = ScsiError(Reason.LBA_OUT_OF_RANGE, field=2, bit=7, information=4096)
    assert (error.reason, error.field, error.bit, error.in_data) == (Reason.LBA_OUT_OF_RANGE, 2, 7, False)
    assert error.information == 4096
    assert str(error) == "LBA_OUT_OF_RANGE"


@pytest.mark.parametrize("fault", Fault)
def test_block_error_without_words_says_what_its_fault_says(fault: Fault) -> None:
    assert str(BlockError(fault)) == fault.value
    assert str(BlockError(fault, "sector 7")) == "sector 7"
    assert BlockError(fault).fault is fault
