"""Numbers on the command line that a message of the contract can hold; the server says which of them make sense."""

from __future__ import annotations

import typer


def int32(text: str) -> int:
    """A whole number that fits into 32 bits. Raises typer.BadParameter."""
    return _whole(text, -(2**31), 2**31 - 1)


def uint64(text: str) -> int:
    """A whole number from 0 up that fits into 64 bits. Raises typer.BadParameter."""
    return _whole(text, 0, 2**64 - 1)


def _whole(text: str, low: int, high: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = high + 1
    if not low <= number <= high:
        raise typer.BadParameter(f"{text!r} is no whole number from {low} to {high}.")
    return number
