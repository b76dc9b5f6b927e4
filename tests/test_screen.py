"""What all commands have in common on the screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from iscsid import screen


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (10 << 40, "10 TiB"), (1 << 60, "1024 PiB")],
)
def test_size_is_told_in_its_unit(size: int, text: str) -> None:
    assert screen.size_text(size) == text


def test_console_that_is_no_terminal_is_wide_enough_for_every_table() -> None:
    assert screen.console().width == screen.WIDE
    assert screen.console(stderr=True).stderr


def test_table_aligns_the_columns_that_are_named() -> None:
    table = screen.table("NAME", "SIZE", right=("SIZE",))
    table.add_row("[x]", "1")
    output = io.StringIO()
    Console(file=output, width=40, markup=False).print(table)
    assert output.getvalue().split("\n")[:2] == ["NAME   SIZE", "[x]       1"]
