"""What all commands have in common on the screen: a console, tables without lines, sizes for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 240  # columns where nobody looks at a screen: a table in a pipe or a journal is not folded


def console(*, stderr: bool = False) -> Console:
    """Prints what it is given as it is: nothing in it is markup."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDE
    return made


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with these headings; ``right``: whose column is aligned to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(Text(column), justify="right" if column in right else "left", overflow="fold")
    return made


def size_text(size: float) -> str:
    """Bytes for people: 1536 is "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} PiB"
