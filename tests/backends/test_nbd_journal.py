"""The journal: what is kept, in which order, until when."""

from __future__ import annotations

import pytest
from iscsid_backends import nbd_journal
from iscsid_backends.nbd_journal import Journal

WRITE, TRIM = 1, 4


def kept(journal: Journal) -> list[tuple[int, int, int, bytes]]:
    return [(entry.kind, entry.offset, entry.length, entry.data) for entry in journal.entries()]


def test_what_was_written_is_kept_in_order_until_it_is_forgotten() -> None:
    journal = Journal(100)
    journal.add(WRITE, 512, 2, 0, memoryview(b"ab"))
    journal.add(TRIM, 0, 1024, 0, None)
    mark = journal.mark()
    journal.add(WRITE, 0, 1, 1, memoryview(b"c"))
    assert kept(journal) == [(WRITE, 512, 2, b"ab"), (TRIM, 0, 1024, b""), (WRITE, 0, 1, b"c")]
    journal.forget(mark)
    assert kept(journal) == [(WRITE, 0, 1, b"c")]
    journal.forget(mark)
    journal.forget(journal.mark())
    assert kept(journal) == []


def test_data_is_a_copy() -> None:
    journal = Journal(100)
    data = bytearray(b"ab")
    journal.add(WRITE, 0, 2, 0, memoryview(data))
    data[:] = b"xx"
    assert kept(journal) == [(WRITE, 0, 2, b"ab")]


def test_journal_is_full_at_its_limit_and_not_after_a_flush() -> None:
    journal = Journal(4)
    assert not journal.full
    journal.add(WRITE, 0, 3, 0, memoryview(b"abc"))
    assert not journal.full
    journal.add(WRITE, 0, 3, 0, memoryview(b"abc"))
    assert journal.full
    journal.forget(journal.mark())
    assert not journal.full


def test_journal_without_room_holds_one_write() -> None:
    journal = Journal(0)
    assert not journal.full
    journal.add(WRITE, 0, 1, 0, memoryview(b"a"))
    assert journal.full


def test_requests_without_data_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_journal, "MAX_ENTRIES", 3)
    journal = Journal(1 << 20)
    for _ in range(3):
        assert not journal.full
        journal.add(TRIM, 0, 512, 0, None)
    assert journal.full
