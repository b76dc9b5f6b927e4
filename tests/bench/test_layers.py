"""The bench of layers runs, and makes the right ratios. No test asserts a time."""

from __future__ import annotations

import layers
import pytest
from rich.console import Console

FOUND = {
    (back_end, operation, name): figures
    for back_end in layers.BACK_ENDS
    for operation in layers.OPERATIONS
    for name, figures in ((layers.BARE, [1e-6, 4e-6, 2e-6]), ("stats", [2e-6, 4e-6, 3e-6]))
}


def test_ratio_is_the_median_over_rounds_side_by_side() -> None:
    assert layers.ratio(FOUND, "ram", "read", "stats") == 1.5


def test_table_shows_times_and_ratios() -> None:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(layers.table(FOUND, [layers.BARE, "stats"]))
    text = console.export_text()
    assert "2.00  1.000×" in text
    assert "3.00  1.500×" in text


def test_stacks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SystemExit):
        layers.arguments(["--only", "stats,nothing"])
    with pytest.raises(SystemExit):
        layers.arguments(["--rounds", "0"])


def test_every_stack_goes_through_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main(["--rounds", "1", "--batches", "1"]) == 0
    answer = capsys.readouterr().out
    assert all(f" {name} " in answer for name in layers.STACKS)
