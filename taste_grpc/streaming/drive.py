"""The driver of one stream: does at once whatever its work waits for."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import torch

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.speech_decoder.unit_sampler import choose_units
from taste_grpc.model.spoken_lm.generation import decode_step
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming.model_lock import model_lock
from taste_grpc.streaming.work import Emit, Slot, TextSlot, TextStep, Turn, UnitSlot, UnitStep, Want, Work

T = TypeVar("T")


def run_alone(model: TasteForCausalLM, work: Work[T]) -> T:
    """The result of `work`, which emits nothing. Blocks; closes `work` on errors."""
    pieces = _drive(model, work)
    try:
        next(pieces)
    except StopIteration as stopped:
        result: T = stopped.value
        return result
    raise RuntimeError("the work emits something: use emitted()")


def emitted(model: TasteForCausalLM, work: Work[None], abort: AbortCheck = never_abort) -> Generator[Any, None, None]:
    """What `work` emits, while it is done. `abort` is called before each piece; closing closes `work`."""
    yield from _drive(model, work, abort)


def _drive(model: TasteForCausalLM, work: Work[T], abort: AbortCheck = never_abort) -> Generator[Any, None, T]:
    """Runs each piece under the model's lock, in caches of one slot."""
    answer: Any = None
    try:
        while True:
            abort()
            with model_lock(model), torch.inference_mode():
                want = work.send(answer)
                answer = None if isinstance(want, Emit) else _answer(model, want)
            if isinstance(want, Emit):
                yield want.value
    except StopIteration as stopped:
        result: T = stopped.value
        return result
    finally:
        work.close()


def _answer(model: TasteForCausalLM, want: Want) -> Any:
    if isinstance(want, UnitStep):
        decoder = model.speech_decoder
        unit = torch.tensor([want.unit], device=model.device)
        return choose_units(decoder.step(unit, want.slot.cache, [want.slot.index]), [want.choice])[0]
    if isinstance(want, TextStep):
        return decode_step(model.spoken_lm, model.audio_tower.rvq, want.slot.cache, [want.generation])[0]
    if isinstance(want, UnitSlot):
        units = model.speech_decoder.new_cache(1, want.most)
        return Slot(units, 0, want.most, lambda: None)
    if isinstance(want, TextSlot):
        return Slot(model.spoken_lm.new_cache(slots=1, capacity=want.positions), 0, want.positions, lambda: None)
    assert isinstance(want, Turn)
    return None
