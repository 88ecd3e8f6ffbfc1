"""Work that is done in pieces, so that one driver can serve one stream and another many at once.

A piece of work is a generator. It computes what is its own, a bounded amount at a time, and yields a `Want` where
somebody else may go first or where several streams can share a network call. The driver sends the answer back in. Work
holds what it was given in `finally` blocks, so closing the generator frees it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from taste_grpc.model.layers.rel_pos_cache import RelPosCache
from taste_grpc.model.layers.shapes import WHOLE, PieceSize
from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice
from taste_grpc.model.spoken_lm.generation import Generation
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots

T = TypeVar("T")
P = TypeVar("P")
C = TypeVar("C", KeyValueSlots, RelPosCache)


@dataclass(frozen=True, slots=True)
class Turn:
    """A bounded piece is done; others may go first. Answered with None."""


@dataclass(frozen=True, slots=True)
class TextSlot:
    """A slot of the language model's cache for `positions`. Answered with a `Slot` of `KeyValueSlots`."""

    positions: int


@dataclass(frozen=True, slots=True)
class UnitSlot:
    """A slot of the speech decoder's cache for `most` positions, or for fewer, but not for less than `least`.

    Answered with a `Slot` of `RelPosCache`.
    """

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Slot(Generic[C]):
    """A place in a cache that is this work's own until `release` is called, once.

    Attributes:
        cache: where it is.
        index: which of its slots.
        positions: that may be used.
        release: gives it back.
        piece: the most that should be read into it before others get their turn.
    """

    cache: C
    index: int
    positions: int
    release: Callable[[], None]
    piece: PieceSize = WHOLE


@dataclass(frozen=True, slots=True)
class TextStep:
    """One decode step of the language model. Answered with a `StepResult`."""

    slot: Slot[KeyValueSlots]
    generation: Generation


@dataclass(frozen=True, slots=True)
class UnitStep:
    """Append `unit` to a slot of the speech decoder's cache and choose the next. Answered with that unit."""

    slot: Slot[RelPosCache]
    unit: int
    choice: UnitChoice


@dataclass(slots=True)  # not frozen, which makes it dearer: there is one for every value
class Emit:
    """Something for whoever asked for the work. Answered with None once there is room for it."""

    value: Any


Want: TypeAlias = Turn | TextSlot | UnitSlot | TextStep | UnitStep | Emit

Work: TypeAlias = Generator[Want, Any, T]
"""Work that ends with a T."""


def in_turns(pieces: Generator[P, None, T], done: Callable[[P], None] = lambda _: None) -> Work[T]:
    """A computation that yields after each of its pieces, as work: others may go first between them.

    `done` is called with what a piece yields, before the others' turn. Closing the work closes `pieces`.
    """
    try:
        while True:
            done(next(pieces))
            yield Turn()
    except StopIteration as stopped:
        result: T = stopped.value
        return result
    finally:
        pieces.close()
