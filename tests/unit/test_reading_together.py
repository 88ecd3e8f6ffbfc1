"""Prompts that wait at the same time are read together, and none of them notices."""

from __future__ import annotations

import pytest
import torch

from taste_grpc.model.layers.shapes import WHOLE, FixedShape, PieceSize
from taste_grpc.model.spoken_lm.generation import PromptReading, decode_step, text_prompt
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from tests.conftest import Loaded

PIECE = PieceSize(rows=16, layers=1)


def begun(tiny: Loaded, cache: KeyValueSlots, slot: int, length: int, piece: PieceSize = PIECE) -> PromptReading:
    """A prompt of `length` rows, of which nothing has been read."""
    lm = tiny.model.spoken_lm
    sets = tiny.processor.text_tokenizer.sets(lm.vocab_size)
    prompt = text_prompt(lm, [(17 * slot + 5 * place) % 200 for place in range(length)])
    draws = SeededDraws(slot, tiny.model.vq_dim)
    return PromptReading(lm, cache, slot, prompt, SamplingParams(text_top_p=0.0), sets, draws, piece)


def finish(reading: PromptReading) -> int:
    """Read on to the end; returns how often it took a piece further."""
    count = 1
    while not reading.advance():
        count += 1
    return count


def check(tiny: Loaded, reading: PromptReading, cache: KeyValueSlots, slot: int, length: int) -> None:
    """The state after the prompt, and the scores a step later, are those of the prompt read by itself."""
    own = tiny.model.spoken_lm.new_cache(slots=4, capacity=64)
    alone = begun(tiny, own, slot, length, WHOLE)
    finish(alone)
    assert cache.lengths[slot] == own.lengths[slot] == length
    torch.testing.assert_close(reading.generation.hidden, alone.generation.hidden, atol=1e-4, rtol=0)
    for _ in range(2):
        (got,) = decode_step(tiny.model.spoken_lm, tiny.model.audio_tower.rvq, cache, [reading.generation])
        (expected,) = decode_step(tiny.model.spoken_lm, tiny.model.audio_tower.rvq, own, [alone.generation])
        torch.testing.assert_close(got.text_logits, expected.text_logits, atol=1e-4, rtol=0)


@pytest.fixture
def cache(tiny: Loaded) -> KeyValueSlots:
    return tiny.model.spoken_lm.new_cache(slots=4, capacity=64)


@torch.inference_mode()
def test_what_fits_into_a_piece_is_read_with_the_first_of_them(tiny: Loaded, cache: KeyValueSlots) -> None:
    lengths = {0: 6, 1: 7, 2: 5, 3: 3}
    readings = {slot: begun(tiny, cache, slot, length) for slot, length in lengths.items()}
    layers = len(tiny.model.spoken_lm.llama.model.layers)
    assert finish(readings[0]) == layers
    assert cache.lengths == [6, 7, 0, 3]  # 6 + 7 + 3 rows; 5 more do not fit
    assert finish(readings[1]) == finish(readings[3]) == 1
    assert finish(readings[2]) == layers
    for slot, length in lengths.items():
        check(tiny, readings[slot], cache, slot, length)


@torch.inference_mode()
def test_each_turn_takes_all_of_them_further(tiny: Loaded, cache: KeyValueSlots) -> None:
    readings = {slot: begun(tiny, cache, slot, 5) for slot in range(3)}
    layers = len(tiny.model.spoken_lm.llama.model.layers)
    assert [readings[turn % 3].advance() for turn in range(layers)] == [False] * (layers - 1) + [True]
    for slot, reading in readings.items():
        assert reading.advance()
        check(tiny, reading, cache, slot, 5)


@torch.inference_mode()
def test_the_end_of_a_long_prompt_takes_others_along(tiny: Loaded, cache: KeyValueSlots) -> None:
    long = begun(tiny, cache, 0, 20)
    while cache.lengths[0] < 16:
        assert not long.advance()
    short = begun(tiny, cache, 1, 9)
    finish(long)
    assert short.advance()
    check(tiny, long, cache, 0, 20)
    check(tiny, short, cache, 1, 9)


@torch.inference_mode()
@pytest.mark.parametrize("taken_over", [False, True])
def test_one_that_is_given_up_leaves_the_others_and_its_slot_alone(
    tiny: Loaded, cache: KeyValueSlots, taken_over: bool
) -> None:
    readings = {slot: begun(tiny, cache, slot, 5) for slot in range(3)}
    assert not readings[0].advance()
    del readings[1]
    cache.reset(1)
    if taken_over:
        readings[1] = begun(tiny, cache, 1, 12)
        assert not readings[1].advance()
    finish(readings[0])
    if not taken_over:
        assert cache.lengths[1] == 0
        assert not cache.keys[:, 1].any()
    for slot, reading in readings.items():
        finish(reading)
        check(tiny, reading, cache, slot, 12 if slot == 1 else 5)


@torch.inference_mode()
def test_those_that_were_dropped_before_they_began_are_not_read(tiny: Loaded, cache: KeyValueSlots) -> None:
    first, second, third = (begun(tiny, cache, slot, 4) for slot in range(3))
    del second
    cache.reset(2)
    finish(first)
    assert cache.lengths == [4, 0, 0, 0]
    assert third.rows_left == 4


@torch.inference_mode()
def test_a_fixed_shape_reads_each_by_itself(tiny: Loaded) -> None:
    cache = tiny.model.spoken_lm.new_cache(slots=4, capacity=64, fixed=FixedShape(step_rows=4, piece_rows=16))
    first, second = (begun(tiny, cache, slot, 5) for slot in range(2))
    finish(first)
    assert second.rows_left == 5
