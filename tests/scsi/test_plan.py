"""A plan is a record: it keeps what it was given and nothing else."""

from __future__ import annotations

import pytest

from iscsid.scsi.plan import DONE, Job, Read, Reply, Write


def test_reply_keeps_data() -> None:
    assert Reply(b"abc").data == b"abc"


def test_done_is_good_without_data() -> None:
    assert DONE.data == b""


def test_read_keeps_offset_and_length() -> None:
    plan = Read(4096, 512)
    assert (plan.offset, plan.length) == (4096, 512)


@pytest.mark.parametrize("fua", [False, True])
def test_write_keeps_offset_length_and_fua(fua: bool) -> None:
    plan = Write(4096, 512, fua)
    assert (plan.offset, plan.length, plan.fua) == (4096, 512, fua)


def test_job_without_more_wants_no_data_and_reads() -> None:
    job = Job(bytes)
    assert (job.parameter_length, job.cost, job.writes, job.exact) == (0, 0, False, False)


def test_job_runs_on_the_data_out() -> None:
    job = Job(bytes, 3, 512, writes=True, exact=True)
    assert job.run(memoryview(b"abc")) == b"abc"
    assert (job.parameter_length, job.cost, job.writes, job.exact) == (3, 512, True, True)


@pytest.mark.parametrize("plan", [Reply(b""), Read(0, 512), Write(0, 512, False), Job(bytes)])
def test_plan_has_slots_only(plan: object) -> None:
    assert not hasattr(plan, "__dict__")


def test_reply_and_job_end_in_good_unless_told_otherwise() -> None:
    assert (Reply(b"").status, Job(bytes).status) == (0x00, 0x00)
    assert (Reply(b"", 0x04).status, Job(bytes, status=0x04).status) == (0x04, 0x04)


def test_job_holds_no_range_unless_told_to() -> None:
    assert Job(bytes).exclusive is None
    assert Job(bytes, exclusive=(512, 1024)).exclusive == (512, 1024)
