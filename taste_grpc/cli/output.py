"""Tables on stdout, for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def show(*contents: RenderableType) -> None:
    """Write `contents` to stdout, as wide and as coloured as that is."""
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(*contents, sep="\n")
    # Not by the console itself, which ends the process when nobody reads.
    sys.stdout.write(captured.get())
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table of `rows` of plain text; the columns that `numbers` names are aligned to the right."""
    made = Table(show_header=bool(header))
    for name in header:
        made.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        made.add_row(*map(Text, row))
    return made
