"""How large the pieces of model work are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FixedShape:
    """Shapes that never change, so that a call's numbers do not depend on its company.

    A processor adds up a product of 3 rows in another order than one of 4. When every step and every piece has the
    same number of rows, and attention sees a call's own rows only, what else runs at the time makes no difference to
    a single bit.

    Attributes:
        step_rows: rows of every decode step; those nobody uses are zeros.
        piece_rows: rows of every piece of a prompt; pieces begin at multiples of it, the last one is filled up.
    """

    step_rows: int
    piece_rows: int

    def __post_init__(self) -> None:
        if self.step_rows < 1 or self.piece_rows < 1:
            raise ValueError(f"{self.step_rows} rows a step and {self.piece_rows} a piece; at least 1 is expected")


@dataclass(frozen=True)
class PieceSize:
    """The most a piece of prompt reading may do before others get their turn.

    Attributes:
        rows: rows of the prompt read together; None is all of it. A cache with a fixed shape has its own.
        layers: layers the rows are taken through in one go; None is all of them.
    """

    rows: int | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("layers", self.layers)):
            if value is not None and value < 1:
                raise ValueError(f"a piece of {value} {name}; at least 1 is expected")


WHOLE = PieceSize()
"""Everything in one piece."""
