"""The shared machine: its caches' budget, its slots, and steps of few shapes against steps of any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.machine import MachineSettings, SharedMachine
from taste_grpc.errors import InvalidInputError
from taste_grpc.streaming import Answer, GenerateOptions, TASTESegment
from taste_grpc.streaming.work import Emit, TextSlot, TextStep, UnitSlot, Want
from tests.conftest import Loaded
from tests.support.speaking import Speech

SETTINGS = MachineSettings(text_slots=3, unit_slots=3, text_positions=256, cache_bytes=1 << 26)


def machine_of(loaded: Loaded, **changes: Any) -> SharedMachine:
    model = LoadedModel(loaded.model, loaded.processor, None, None)  # type: ignore[arg-type]  # info is not asked for
    with torch.inference_mode():
        return SharedMachine(model, replace(SETTINGS, **changes))


@torch.inference_mode()
def answers(loaded: Loaded, machine: SharedMachine, count: int) -> list[list[Any]]:
    """Ids and codes of several answers that step together."""
    works = []
    for number in range(count):
        ids = torch.tensor([list(range(40 + number, 60))])
        options = GenerateOptions(text_top_p=0.9, max_length=12 + number, extra_words=20, seed=number)
        segment = TASTESegment("user", "text", ids, None)
        options = replace(options, conversation_format="completion")
        works.append(Answer(loaded.model, loaded.processor, [segment], options).work())
    given: list[list[Any]] = [[] for _ in works]
    waiting: dict[int, Want | None] = dict.fromkeys(range(count))
    while waiting:
        steps = {index: want for index, want in waiting.items() if isinstance(want, TextStep)}
        results = dict(zip(steps, machine.text_steps(list(steps.values())) if steps else [], strict=True))
        for index, want in list(waiting.items()):
            if isinstance(want, Emit) and want.value.words:
                given[index].append(want.value.words)
            try:
                slot = machine.slot(want) if isinstance(want, TextSlot) else results.get(index)
                waiting[index] = works[index].send(slot)
            except StopIteration:
                del waiting[index]
    return given


@pytest.mark.parametrize("deterministic", [False, True])
def test_steps_of_few_shapes_give_the_same_answers(tiny: Loaded, deterministic: bool) -> None:
    dynamic, static = (machine_of(tiny, deterministic=deterministic, static_steps=static) for static in (False, True))
    with torch.inference_mode():
        static.warm_up()
    expected = answers(tiny, dynamic, 3)
    assert answers(tiny, static, 3) == expected
    assert all(expected)
    assert (static.text_calls, static.text_rows) == (dynamic.text_calls, dynamic.text_rows)
    assert static.text_calls < static.text_rows


@torch.inference_mode()
def test_steps_of_few_shapes_give_the_same_speech(tiny: Loaded) -> None:
    generator = tiny.processor.get_generator(tiny.model.device)
    pieces = []
    for static in (False, True):
        speech = Speech(tiny, generator, machine_of(tiny, static_steps=static))
        streams = [speech.stream(seed=seed) for seed in range(3)]
        words = speech.words([" good", " morning"])
        pieces.append(speech.together([stream.speak(words) for stream in streams]))
    for one, other in zip(*pieces, strict=True):
        assert one.units == other.units
        assert np.allclose(one.audio.samples, other.audio.samples, atol=1e-4)


@torch.inference_mode()
def test_slots_and_bytes_come_back(tiny: Loaded) -> None:
    machine = machine_of(tiny)
    held = [machine.slot(TextSlot(100)) for _ in range(3)]
    assert None not in held
    assert machine.slot(TextSlot(1)) is None
    assert machine.live_slots == 3
    assert machine.cache_bytes == machine.counters()["kv_bytes"] > 0
    units = machine.slot(UnitSlot(10, 10**9))
    assert units is not None
    assert units.positions == machine.unit_pool.capacity
    for slot in [*held, units]:
        assert slot is not None
        slot.release()
    assert (machine.live_slots, machine.cache_bytes) == (0, 0)
    with pytest.raises(RuntimeError, match="released before"):
        units.release()


@pytest.mark.parametrize(("want", "field"), [(TextSlot(257), "max_length"), (UnitSlot(4097, 5000), "segment")])
def test_more_than_a_slot_can_hold_is_refused(tiny: Loaded, want: TextSlot | UnitSlot, field: str) -> None:
    machine = machine_of(tiny)
    with pytest.raises(InvalidInputError, match="this server has") as caught:
        machine.slot(want)
    assert caught.value.field == field
    assert machine.live_slots == 0


def test_the_caches_keep_to_their_bytes(tiny: Loaded) -> None:
    machine = machine_of(tiny, text_slots=4, cache_bytes=1 << 20)
    assert 0 < machine.text_pool.capacity < 256
    slots = []
    while (slot := machine.slot(TextSlot(machine.text_pool.capacity))) is not None:
        slots.append(slot)
    assert slots
    assert machine.text_pool.bytes_reserved <= 1 << 19
