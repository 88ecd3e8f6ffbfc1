"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from taste_grpc.cli.failure import INTERRUPTED

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (those of the process when None) ask for, and return its exit status.

    0 is success, 1 failure, 2 wrong usage, 130 an end by Ctrl-C, 141 one because nobody read the output.
    """
    try:
        _fill_gaps()
        from taste_grpc.cli.command_line import run

        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fill_gaps() -> None:
    """Open the null device in place of standard streams that whoever started the process has closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
