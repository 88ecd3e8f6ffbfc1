"""Many calls at once: what a call gets does not depend on who else is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.errors import CallAbortedError
from taste_grpc.model.layers.shapes import WHOLE, FixedShape, PieceSize
from taste_grpc.model.speech_decoder.decoder import SpeechDecoder, SpeechDecoderConfig
from taste_grpc.model.speech_decoder.unit_reading import UnitReading
from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice, UnitSampler, choose_units
from taste_grpc.model.spoken_lm.generation import (
    Generation,
    Prompt,
    PromptReading,
    StepResult,
    audio_prompt,
    decode_step,
    instruct_prompt,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from tests.conftest import Loaded

CALLS, CAPACITY, STEPS = 16, 96, 12
FIXED = FixedShape(step_rows=CALLS, piece_rows=8)
MARGIN = 1e-3


@dataclass
class Call:
    """One call of a schedule: when it comes, what it asks for, when it is cancelled, when its reader is slow."""

    joins: int
    length: int
    kind: str
    seed: int
    top_p: float
    temperature: float
    penalty: float
    stays: int
    skips: frozenset[int]

    def prompt(self, loaded: Loaded) -> Prompt:
        lm, rvq = loaded.model.spoken_lm, loaded.model.audio_tower.rvq
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(20, 300, (self.length,), generator=generator).tolist()
        words = (torch.rand(self.length, generator=generator) < 0.6).cumsum(0).tolist()
        codes = torch.randint(0, 32, (self.length, loaded.model.vq_dim), generator=generator)
        if self.kind == "zero":
            return zero_prompt(lm)
        if self.kind == "text":
            return text_prompt(lm, ids)
        if self.kind == "audio":
            return audio_prompt(lm, rvq, ids, words, codes)
        return instruct_prompt(lm, rvq, ids[:3], ids, words, codes, ids[-2:])

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            text_top_p=self.top_p,
            text_temperature=self.temperature,
            repetition_penalty=self.penalty,
            extra_words=4,
            max_length=self.stays,
        )

    def reading(self, loaded: Loaded, cache: KeyValueSlots, slot: int, piece: PieceSize = WHOLE) -> PromptReading:
        lm = loaded.model.spoken_lm
        sets = loaded.processor.text_tokenizer.sets(lm.vocab_size)
        draws = SeededDraws(self.seed, loaded.model.vq_dim)
        return PromptReading(lm, cache, slot, self.prompt(loaded), self.params, sets, draws, piece)


@dataclass
class Outcome:
    """Everything a call got, number by number."""

    steps: list[StepResult] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    def add(self, result: StepResult, generation: Generation) -> None:
        self.steps.append(result)
        self.hidden.append(generation.hidden.clone())

    def begins_like(self, other: Outcome) -> bool:
        pairs = list(zip(self.steps, other.steps, strict=False))
        return (
            len(self.steps) <= len(other.steps)
            and all(a.sampled == b.sampled and a.word_id == b.word_id for a, b in pairs)
            and all(torch.equal(a.text_logits, b.text_logits) for a, b in pairs)
            and all(torch.equal(a.latent, b.latent) for a, b in pairs)
            and all(torch.equal(a, b) for a, b in zip(self.hidden, other.hidden, strict=False))
        )


calls = st.builds(
    Call,
    joins=st.integers(0, 8),
    length=st.integers(4, 40),
    kind=st.sampled_from(["zero", "text", "audio", "instruct"]),
    seed=st.integers(0, 2**40),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    temperature=st.sampled_from([0.5, 1.0]),
    penalty=st.sampled_from([1.0, 1.3]),
    stays=st.integers(1, STEPS),
    skips=st.frozensets(st.integers(0, 30), max_size=6),
)


def alone(loaded: Loaded, call: Call, fixed: FixedShape | None) -> Outcome:
    """A call by itself, in a cache of its own."""
    model = loaded.model
    cache = model.spoken_lm.new_cache(slots=1, capacity=CAPACITY, fixed=fixed)
    reading, outcome = call.reading(loaded, cache, 0), Outcome()
    while not reading.advance():
        pass
    while not reading.generation.done:
        (result,) = decode_step(model.spoken_lm, model.audio_tower.rvq, cache, [reading.generation])
        outcome.add(result, reading.generation)
    return outcome


def together(
    loaded: Loaded, schedule: Sequence[Call], cancelled: Sequence[int], fixed: FixedShape | None, piece: PieceSize
) -> list[Outcome]:
    """All calls of a schedule in one cache: one step for those who talk, one piece of one prompt in between."""
    model = loaded.model
    cache = model.spoken_lm.new_cache(slots=len(schedule), capacity=CAPACITY, fixed=fixed)
    outcomes = [Outcome() for _ in schedule]
    slots = list(range(len(schedule)))
    waiting = sorted(range(len(schedule)), key=lambda k: schedule[k].joins)
    readings: dict[int, PromptReading] = {}
    talking: dict[int, Generation] = {}
    for tick in range(3000):
        while waiting and schedule[waiting[0]].joins <= tick:
            k = waiting.pop(0)
            readings[k] = schedule[k].reading(loaded, cache, slots.pop(), piece)
        if readings:
            k = list(readings)[tick % len(readings)]
            if readings[k].advance():
                talking[k] = readings.pop(k).generation
        stepped = {k: generation for k, generation in talking.items() if tick not in schedule[k].skips}
        if stepped:
            results = decode_step(model.spoken_lm, model.audio_tower.rvq, cache, list(stepped.values()))
            for (k, generation), result in zip(stepped.items(), results, strict=True):
                outcomes[k].add(result, generation)
        for k, generation in list(talking.items()):
            if generation.done or len(outcomes[k].steps) >= cancelled[k]:
                slots.insert(0, talking.pop(k).slot)
        if not waiting and not readings and not talking:
            return outcomes
    raise AssertionError("the schedule does not end")


@torch.inference_mode()
@settings(deadline=None, max_examples=8)
@given(
    st.lists(calls, min_size=2, max_size=CALLS),
    st.lists(st.integers(1, 30), min_size=CALLS, max_size=CALLS),
    st.sampled_from([None, 1]),
)
def test_fixed_shapes_give_every_call_the_same_bits_in_any_company(
    tiny: Loaded, schedule: list[Call], cancelled: list[int], layers: int | None
) -> None:
    outcomes = together(tiny, schedule, cancelled, FIXED, PieceSize(layers=layers))
    for call, outcome, limit in zip(schedule, outcomes, cancelled, strict=False):
        expected = alone(tiny, call, FIXED)
        assert outcome.begins_like(expected)
        assert len(outcome.steps) == min(limit, len(expected.steps))


@torch.inference_mode()
@settings(deadline=None, max_examples=8)
@given(st.lists(calls, min_size=4, max_size=4))
def test_a_full_batch_has_the_same_bits_too(tiny: Loaded, schedule: list[Call]) -> None:
    """Nothing of a step may have the number of calls, or of words that begin, for its number of rows."""
    full = FixedShape(step_rows=len(schedule), piece_rows=8)
    for call in schedule:
        call.joins, call.skips = 0, frozenset()
    for call, outcome in zip(schedule, together(tiny, schedule, [1000] * 4, full, WHOLE), strict=True):
        assert outcome.begins_like(alone(tiny, call, full))


def is_close_call(step: StepResult, loaded: Loaded) -> bool:
    """Whether another id was about as good."""
    banned = loaded.processor.text_tokenizer.sets(loaded.model.spoken_lm.vocab_size).banned
    best = step.text_logits.masked_fill(banned, -1e5).topk(2).values
    return float(best[0] - best[1]) <= MARGIN


@torch.inference_mode()
@settings(deadline=None, max_examples=8)
@given(st.lists(calls, min_size=2, max_size=CALLS), st.sampled_from([(None, None), (5, None), (16, 1), (1, 2)]))
def test_free_shapes_give_every_call_what_it_gets_alone_but_for_rounding(
    tiny: Loaded, schedule: list[Call], piece: tuple[int | None, int | None]
) -> None:
    for call in schedule:
        call.top_p = 0.0  # so that the margin of a decision is a difference of scores
    outcomes = together(tiny, schedule, [1000] * len(schedule), None, PieceSize(*piece))
    for call, outcome in zip(schedule, outcomes, strict=True):
        for got, expected in zip(outcome.steps, alone(tiny, call, None).steps, strict=False):
            assert (got.text_logits - expected.text_logits).abs().max() < 1e-4
            if got.sampled != expected.sampled:
                assert is_close_call(expected, tiny)
                break


@torch.inference_mode()
def test_fixed_shapes_differ_from_free_ones_by_rounding_only(tiny: Loaded) -> None:
    call = Call(0, 30, "audio", 4, 0.9, 1.0, 1.3, 12, frozenset())
    fixed, free = alone(tiny, call, FIXED), alone(tiny, call, None)
    assert [step.sampled for step in fixed.steps] == [step.sampled for step in free.steps]
    for a, b in zip(fixed.steps, free.steps, strict=True):
        assert (a.text_logits - b.text_logits).abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("threads", [2, 3])
def test_fixed_shapes_hold_on_several_threads(tiny: Loaded, threads: int) -> None:
    schedule = [Call(k, 7 + 2 * k, "audio", k, 0.9, 1.0, 1.0, 6, frozenset({k})) for k in range(6)]
    torch.set_num_threads(threads)
    try:
        outcomes = together(tiny, schedule, [100] * 6, FIXED, WHOLE)
        assert all(
            outcome.begins_like(alone(tiny, call, FIXED)) for call, outcome in zip(schedule, outcomes, strict=True)
        )
    finally:
        torch.set_num_threads(1)


@torch.inference_mode()
def test_more_calls_than_rows_are_a_mistake_of_the_caller(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    cache = lm.new_cache(slots=2, capacity=8, fixed=FixedShape(1, 4))
    with pytest.raises(ValueError, match="2 rows do not fit into a pass of 1"):
        lm.step(torch.zeros(1, lm.hidden_dim), cache, [0, 1])


# --- reading in pieces


@torch.inference_mode()
def test_a_piece_is_no_larger_than_asked_for(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    call = Call(0, 20, "audio", 1, 0.0, 1.0, 1.0, 4, frozenset())
    cache = lm.new_cache(slots=1, capacity=CAPACITY)
    reading = call.reading(tiny, cache, 0, PieceSize(rows=8, layers=1))
    seen = []
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1

    while not reading.advance(counted):
        seen.append((cache.lengths[0], count, reading.rows_left))
        count = 0
    layers = len(lm.llama.model.layers)
    assert [length for length, _, _ in seen] == [
        8 * (done // layers) for done in range(1, 3 * layers)
    ]  # 21 rows: 8, 8, 5
    assert {layers_done for _, layers_done, _ in seen} == {1}
    assert [left for _, _, left in seen] == [21 - length for length, _, _ in seen]
    assert reading.rows_left == 0
    assert reading.advance()


@torch.inference_mode()
def test_a_reading_that_was_stopped_can_go_on_or_be_dropped(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    call = Call(0, 20, "text", 1, 0.0, 1.0, 1.0, 4, frozenset())
    cache = lm.new_cache(slots=1, capacity=CAPACITY)
    reading = call.reading(tiny, cache, 0, PieceSize(rows=8))
    reading.advance()
    with pytest.raises(RuntimeError, match="not been read to its end"):
        _ = reading.generation

    def stop() -> None:
        raise CallAbortedError("enough")

    with pytest.raises(CallAbortedError):
        reading.advance(stop)
    while not reading.advance():
        pass
    whole = call.reading(tiny, lm.new_cache(slots=1, capacity=CAPACITY), 0)
    whole.advance()
    torch.testing.assert_close(reading.generation.hidden, whole.generation.hidden, atol=1e-4, rtol=1e-4)
    again = call.reading(tiny, cache, 0)  # empties the slot
    again.advance()
    assert torch.equal(again.generation.hidden, whole.generation.hidden)


# --- speech units

UNITS = {
    "audio_encoder_input_size": 12,
    "encoder__attention_heads": 2,
    "encoder__input_layer": "linear",
    "encoder__linear_units": 24,
    "encoder__num_blocks": 1,
    "encoder_input_size": 8,
    "llm__attention_heads": 2,
    "llm__input_layer": "linear_legacy",
    "llm__linear_units": 40,
    "llm__num_blocks": 2,
    "llm_input_size": 16,
    "llm_output_size": 16,
    "speech_token_size": 40,
    "spk_embed_dim": 5,
    "text_token_size": 30,
}


@pytest.fixture(scope="module")
def decoder() -> SpeechDecoder:
    torch.manual_seed(3)
    return SpeechDecoder(SpeechDecoderConfig.from_published({"speech_decoder_config": UNITS}, None)).eval()


@dataclass
class Stream:
    """One run of units of a schedule."""

    joins: int
    rows: int
    seed: int
    greedy: bool
    steps: int

    def prompt(self) -> Tensor:
        return torch.randn(self.rows, 16, generator=torch.Generator().manual_seed(self.seed))

    def choice(self, index: int) -> UnitChoice:
        return UnitChoice(UnitSampler(self.seed, self.greedy), index, 40 if index < 3 else None)


@dataclass
class Spoken:
    """Units and log-probabilities of a stream."""

    units: list[int] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)

    def add(self, log_probs: Tensor, choice: UnitChoice) -> None:
        self.log_probs.append(log_probs.clone())
        self.units += choose_units(log_probs[None], [choice])


def units_alone(decoder: SpeechDecoder, stream: Stream, fixed: FixedShape | None) -> Spoken:
    cache, spoken = decoder.new_cache(1, CAPACITY, fixed=fixed), Spoken()
    spoken.add(decoder.prefill(stream.prompt()[None], [stream.rows], cache, [0])[0], stream.choice(0))
    for index in range(1, stream.steps):
        given = torch.tensor([spoken.units[-1] % 40])
        spoken.add(decoder.step(given, cache, [0])[0], stream.choice(index))
    return spoken


def units_together(
    decoder: SpeechDecoder, schedule: Sequence[Stream], fixed: FixedShape | None, piece: PieceSize
) -> list[Spoken]:
    cache = decoder.new_cache(len(schedule), CAPACITY, fixed=fixed)
    spoken = [Spoken() for _ in schedule]
    slots = list(range(len(schedule)))
    readings: dict[int, tuple[int, UnitReading]] = {}
    talking: dict[int, int] = {}
    left = set(range(len(schedule)))
    for tick in range(3000):
        for k in [k for k in left if schedule[k].joins == tick]:
            slot = slots.pop()
            readings[k] = slot, UnitReading(decoder, schedule[k].prompt(), cache, slot, piece)
        for k, (slot, reading) in list(readings.items())[: 1 + tick % 2]:
            if reading.advance():
                spoken[k].add(reading.log_probs[0], schedule[k].choice(0))
                talking[k] = slot
                del readings[k]
        going = [k for k in talking if len(spoken[k].units) < schedule[k].steps]
        if going:
            units = torch.tensor([spoken[k].units[-1] % 40 for k in going])
            for k, row in zip(going, decoder.step(units, cache, [talking[k] for k in going]), strict=True):
                spoken[k].add(row, schedule[k].choice(len(spoken[k].units)))
        for k in [k for k in talking if len(spoken[k].units) >= schedule[k].steps]:
            cache.reset(talking[k])
            slots.insert(0, talking.pop(k))
            left.discard(k)
        if not left:
            return spoken
    raise AssertionError("the schedule does not end")


streams = st.builds(
    Stream,
    joins=st.integers(0, 10),
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    greedy=st.booleans(),
    steps=st.integers(1, 20),
)


@settings(deadline=None, max_examples=8)
@given(st.lists(streams, min_size=2, max_size=CALLS), st.sampled_from([None, 1]))
def test_fixed_shapes_give_every_stream_the_same_units_in_any_company(
    decoder: SpeechDecoder, schedule: list[Stream], layers: int | None
) -> None:
    outcomes = units_together(decoder, schedule, FIXED, PieceSize(layers=layers))
    for stream, spoken in zip(schedule, outcomes, strict=True):
        expected = units_alone(decoder, stream, FIXED)
        assert spoken.units == expected.units
        assert all(torch.equal(a, b) for a, b in zip(spoken.log_probs, expected.log_probs, strict=True))


@settings(deadline=None, max_examples=8)
@given(st.lists(streams, min_size=2, max_size=CALLS), st.sampled_from([(None, None), (7, 1), (1, None)]))
def test_free_shapes_give_every_stream_its_units_but_for_rounding(
    decoder: SpeechDecoder, schedule: list[Stream], piece: tuple[int | None, int | None]
) -> None:
    outcomes = units_together(decoder, schedule, None, PieceSize(*piece))
    for stream, spoken in zip(schedule, outcomes, strict=True):
        expected = units_alone(decoder, stream, None)
        for got, wanted in zip(spoken.log_probs, expected.log_probs, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        assert spoken.units == expected.units


def test_units_of_several_streams_come_from_one_forward(decoder: SpeechDecoder) -> None:
    cache = decoder.new_cache(3, CAPACITY)
    prompts = [Stream(0, rows, rows, False, 1) for rows in (3, 9, 5)]
    for slot, stream in enumerate(prompts):
        decoder.prefill(stream.prompt()[None], [stream.rows], cache, [slot])
    widths = []
    hook = decoder.llm.encoders[0].register_forward_hook(lambda *_: None)
    real = decoder.llm.encoders[0].extend
    hook.remove()

    def counted(x: Tensor, attend: object) -> Tensor:
        widths.append(len(x))
        return real(x, attend)

    decoder.llm.encoders[0].extend = counted
    try:
        units = decoder.next_units([1, 2, 3], [stream.choice(5) for stream in prompts], cache, [0, 1, 2])
    finally:
        del decoder.llm.encoders[0].extend
    assert widths == [3]
    assert cache.lengths == [4, 10, 6]
    assert all(0 <= unit <= 40 for unit in units)
