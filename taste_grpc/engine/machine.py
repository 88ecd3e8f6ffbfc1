"""What the calls of an engine share: the networks' steps, and the caches they step over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.slots import Reservation, SlotPool
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.layers.graphed_step import GraphedStep
from taste_grpc.model.layers.rel_pos_static import graphed_row_step
from taste_grpc.model.layers.shapes import FixedShape, PieceSize
from taste_grpc.model.layers.slot_storage import SlotStorage
from taste_grpc.model.spoken_lm.generation import StepResult, decode_step
from taste_grpc.model.spoken_lm.static_step import graphed_text_step
from taste_grpc.streaming.work import Slot, TextSlot, TextStep, UnitSlot, UnitStep

_BLOCK = 64
_UNIT_POSITIONS = 4096  # of one chunk: its window, its words and a minute of speech
_CPU_ROWS = 64
_CPU_PIECE = PieceSize(_CPU_ROWS, layers=1)  # many rows cost a processor as much as several steps
_CUDA_PIECE = PieceSize(256)  # a GPU is hardly busy with fewer


@dataclass(frozen=True)
class MachineSettings:
    """How much of what a machine holds.

    Attributes:
        text_slots: answers under way at once.
        unit_slots: chunks of speech under way at once.
        text_positions: prompt and answer of one call together, at most.
        cache_bytes: of keys and values of both networks together.
        deterministic: a call gives the same to the bit whatever runs beside it.
        piece: the most of a prompt that is read before others get their turn; None takes what suits the device.
        static_steps: steps take one of a few shapes, which on CUDA are recorded as graphs; None: on CUDA only.
    """

    text_slots: int
    unit_slots: int
    text_positions: int
    cache_bytes: int
    deterministic: bool = False
    piece: PieceSize | None = None
    static_steps: bool | None = None


class SharedMachine:
    """The networks of one model with caches for several calls. To be used on the model thread only."""

    def __init__(self, loaded: LoadedModel, settings: MachineSettings) -> None:
        self._lm, self._decoder = loaded.model.spoken_lm, loaded.model.speech_decoder
        self._codebooks = loaded.model.audio_tower.rvq
        on_cuda = loaded.model.device.type == "cuda"
        self._piece = settings.piece or (_CUDA_PIECE if on_cuda else _CPU_PIECE)
        half = settings.cache_bytes // 2
        piece_rows = self._piece.rows or _CPU_ROWS
        text = FixedShape(settings.text_slots, piece_rows) if settings.deterministic else None
        units = FixedShape(settings.unit_slots, piece_rows) if settings.deterministic else None
        text_bytes = _position_bytes(lambda capacity: self._lm.new_cache(slots=1, capacity=capacity))
        unit_bytes = _position_bytes(lambda capacity: self._decoder.new_cache(1, capacity))
        room = int(self._lm.llama.config.max_position_embeddings)
        text_room = _room(min(settings.text_positions, room), settings.text_slots, text_bytes, half)
        unit_room = _room(_UNIT_POSITIONS, settings.unit_slots, unit_bytes, half)
        self._text_cache = self._lm.new_cache(slots=settings.text_slots, capacity=text_room, fixed=text)
        self._unit_cache = self._decoder.new_cache(settings.unit_slots, unit_room, fixed=units)
        self.text_pool = SlotPool(settings.text_slots, text_room, text_bytes, half, _BLOCK)
        self.unit_pool = SlotPool(settings.unit_slots, unit_room, unit_bytes, half, _BLOCK)
        self._text_step: GraphedStep | None = None
        self._unit_step: GraphedStep | None = None
        if on_cuda if settings.static_steps is None else settings.static_steps:
            self._text_step = graphed_text_step(self._lm, self._text_cache)
            self._unit_step = graphed_row_step(self._decoder.llm, self._unit_cache)
        self.reset_counters()

    def warm_up(self) -> None:
        """Record the graphs of all shapes, where there are any, so that no call waits for one."""
        for step in (self._text_step, self._unit_step):
            if step is not None:
                step.warm_up()

    def reset_counters(self) -> None:
        """Count from zero: what was done so far was a warm-up."""
        self.text_rows = self.unit_rows = self.text_calls = self.unit_calls = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that calls have reserved now."""
        return self.text_pool.bytes_reserved + self.unit_pool.bytes_reserved

    @property
    def live_slots(self) -> int:
        """Slots that calls hold now."""
        return self.text_pool.live + self.unit_pool.live

    def counters(self) -> dict[str, int]:
        """What was done since the start, and what is held now."""
        return {
            "text_calls": self.text_calls,
            "unit_calls": self.unit_calls,
            "unit_rows": self.unit_rows,
            "kv_bytes": self.cache_bytes,
            "live_slots": self.live_slots,
        }

    def synchronize(self) -> None:
        """Return when everything that was asked of the device is done."""
        if self._text_cache.device.type == "cuda":
            torch.cuda.current_stream(self._text_cache.device).synchronize()

    def text_steps(self, wants: Sequence[TextStep]) -> Sequence[StepResult]:
        """One step of the language model for all of `wants`."""
        self.text_rows += len(wants)
        self.text_calls += 1
        generations = [want.generation for want in wants]
        return decode_step(self._lm, self._codebooks, self._text_cache, generations, forward=self._text_step)

    def unit_steps(self, wants: Sequence[UnitStep]) -> Sequence[int]:
        """One step of the speech decoder for all of `wants`."""
        self.unit_rows += len(wants)
        self.unit_calls += 1
        return self._decoder.next_units(
            [want.unit for want in wants],
            [want.choice for want in wants],
            self._unit_cache,
            [want.slot.index for want in wants],
            forward=self._unit_step,
        )

    def slot(self, want: TextSlot | UnitSlot) -> Slot[Any] | None:
        """A place in a cache; None while none is free. Raises InvalidInputError for more than there can ever be."""
        if isinstance(want, TextSlot):
            positions, pool = want.positions, self.text_pool
            if positions > pool.capacity:
                raise InvalidInputError(
                    "max_length",
                    f"and the conversation take {positions} positions; this server has {pool.capacity} for each call",
                )
        else:
            positions, pool = min(want.most, self.unit_pool.capacity), self.unit_pool
            if want.least > pool.capacity:
                raise InvalidInputError(
                    "segment", f"takes {want.least} positions to speak; this server has {pool.capacity} for each call"
                )
        reservation = pool.reserve(positions)
        if reservation is None:
            return None
        cache = self._text_cache if pool is self.text_pool else self._unit_cache
        return Slot(cache, reservation.slot, positions, partial(_give_back, cache, reservation), self._piece)


def _give_back(cache: Any, reservation: Reservation) -> None:
    cache.reset(reservation.slot)
    reservation.release()


def _position_bytes(new_cache: Callable[[int], SlotStorage]) -> int:
    """What a position of a slot costs, by the difference that some of them make."""
    return (new_cache(2 * _BLOCK).nbytes - new_cache(_BLOCK).nbytes) // _BLOCK


def _room(wanted: int, slots: int, bytes_per_position: int, budget_bytes: int) -> int:
    """Positions of a slot: as many as wanted, or as the budget allows for each."""
    affordable = budget_bytes // (slots * bytes_per_position)
    return max(_BLOCK, min(wanted, affordable) // _BLOCK * _BLOCK)
