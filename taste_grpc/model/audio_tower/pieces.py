"""Long computations in pieces, so that something else can be computed in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Pieces: TypeAlias = Generator[None, None, T]
"""A computation that yields after each of its pieces and ends with a T. Nothing is shared with others but weights."""


def drain(pieces: Pieces[T]) -> T:
    """What `pieces` end with, all of them computed at once."""
    while True:
        try:
            next(pieces)
        except StopIteration as stopped:
            result: T = stopped.value
            return result


def row_spans(count: int, rows: int | None) -> list[slice]:
    """`count` rows in as few spans of at most `rows` as there can be, of about equal length; None makes one span.

    There is always one, empty when there are no rows.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}; at least 1 is expected")
    spans = 1 if rows is None else max(1, -(-count // rows))
    return [slice(count * k // spans, count * (k + 1) // spans) for k in range(spans)]
