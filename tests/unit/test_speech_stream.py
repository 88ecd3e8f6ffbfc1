"""Speech that grows chunk by chunk: resuming, look-ahead, chunks of any size, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.resume import MAX_STATE_BYTES, ResumeState
from taste_grpc.engine.resume_check import check_state
from taste_grpc.errors import CallAbortedError, InvalidInputError
from taste_grpc.model.speech_decoder.decoder import length_rule
from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.model.voice_generator.mel_stream import MelState, MelWindowing, extend_mel, finish_mel
from taste_grpc.streaming.speech_stream import MAX_CHUNK_TOKENS, SpeechPiece, SpeechStream
from taste_grpc.streaming.work import Slot, Turn, UnitSlot, UnitStep, Work
from tests.conftest import Loaded
from tests.support.speaking import (
    CHUNKS,
    NATIVE_HZ,
    SPEAKER,
    Speech,
    answer,
    machine,
    packed,
    result,
    unpacked,
    with_one_step,
)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def voice_generator(tiny: Loaded) -> VoiceGenerator:
    """One Euler step instead of ten: what is tested here does not depend on how many there are."""
    return with_one_step(tiny.processor.get_generator("cpu"))


@pytest.fixture(scope="module")
def speech(tiny: Loaded, voice_generator: VoiceGenerator) -> Speech:
    return Speech(tiny, voice_generator, machine(tiny, deterministic=False))


@pytest.fixture(scope="module", params=["default", "deterministic"])
def either(request: pytest.FixtureRequest, tiny: Loaded, voice_generator: VoiceGenerator) -> Speech:
    return Speech(tiny, voice_generator, machine(tiny, deterministic=request.param == "deterministic"))


def same(one: SpeechPiece, other: SpeechPiece) -> bool:
    return (
        np.array_equal(one.audio.samples, other.audio.samples)
        and one.first_sample == other.first_sample
        and one.units == other.units
    )


def joined(pieces: Sequence[SpeechPiece]) -> np.ndarray:
    """The audio of all pieces, which must follow one another without a gap."""
    position = 0
    for piece in pieces:
        assert piece.first_sample == position
        position += len(piece.audio.samples)
    return np.concatenate([piece.audio.samples for piece in pieces])


def units_of(pieces: Sequence[SpeechPiece]) -> int:
    return sum(len(piece.units) for piece in pieces)


# --- resuming


def test_it_goes_on_from_any_border_to_the_bit(either: Speech) -> None:
    rate_hz = 24_000
    stream = either.stream(sample_rate_hz=rate_hz)
    spoken, states, snapshots = [], [packed(stream)], [stream.snapshot()]
    for chunk in either.chunks():
        spoken.append(either.run(stream.speak(chunk)))
        states.append(packed(stream))
        snapshots.append(stream.snapshot())
    rest = either.run(stream.finish())
    assert units_of(spoken) > 50
    for border, (state, snapshot) in enumerate(zip(states, snapshots, strict=True)):
        for kept in (unpacked(state), snapshot):
            again = either.stream(kept, sample_rate_hz=rate_hz)
            if border == len(spoken):
                assert same(either.run(again.finish()), rest)
            else:
                assert same(either.run(again.speak(either.chunks()[border])), spoken[border])
                assert packed(again) == states[border + 1]


def test_a_packed_state_is_itself_when_it_is_packed_again(speech: Speech) -> None:
    stream = speech.stream()
    speech.run(stream.speak(speech.chunks()[0]))
    again = speech.stream(unpacked(packed(stream)))
    assert packed(again) == packed(stream)


def test_a_snapshot_does_not_change_with_its_stream(speech: Speech) -> None:
    stream = speech.stream(chunk_units=30)
    speech.run(stream.speak(speech.chunks()[0]))
    snapshot = stream.snapshot()
    before = ResumeState.of(snapshot, stream.voice, "this model").pack()
    speech.run(stream.speak(speech.chunks()[1]))
    assert ResumeState.of(snapshot, stream.voice, "this model").pack() == before != packed(stream)


def test_company_changes_no_bit(tiny: Loaded, voice_generator: VoiceGenerator) -> None:
    speech = Speech(tiny, voice_generator, machine(tiny, deterministic=True))

    def speaking(stream: SpeechStream) -> Iterator[Work[SpeechPiece]]:
        yield from (stream.speak(chunk) for chunk in speech.chunks())
        yield stream.finish()

    alone = [speech.run(work) for work in speaking(speech.stream())]
    others = [speech.stream(seed=seed, sample_rate_hz=8_000) for seed in (8, 9)]
    late = iter([others[0].speak(speech.words([" what", " else"])), others[1].speak(speech.chunks()[2])])
    together = [
        speech.together([work, other] if other is not None else [work])[0]
        for work, other in zip(speaking(speech.stream()), [next(late), None, next(late), None, None], strict=True)
    ]
    for one, other in zip(alone, together, strict=True):
        assert same(one, other)


def test_a_state_does_not_grow(speech: Speech) -> None:
    stream = speech.stream(chunk_units=30)
    sizes = []
    for index in range(7):
        speech.run(stream.speak(speech.words([" one", " two", " three"], index)))
        sizes.append(len(packed(stream)))
    assert sizes[-1] < 1.05 * sizes[3]
    assert sizes[-1] < MAX_STATE_BYTES


# --- chunks of any size


@pytest.mark.parametrize(
    ("chunk_units", "rate_hz"), [(1, 16_000), (1, 44_100), (5, 8_000), (5, 12_345), (23, 16_000), (23, NATIVE_HZ)]
)
def test_single_words_lose_and_repeat_nothing(speech: Speech, chunk_units: int, rate_hz: int) -> None:
    """What comes out is what the vocoder makes in one go of the very mel that was made in chunks."""
    stream = speech.stream(chunk_units=chunk_units, sample_rate_hz=rate_hz)
    said = [speech.run(stream.speak(speech.words([word], index))) for index, word in enumerate(CHUNKS[2] * 2)]
    pieces = [*said, speech.run(stream.finish())]
    audio = joined(pieces)
    assert units_of(pieces) == 8 * chunk_units
    assert len(audio) == speech.samples(8 * chunk_units, rate_hz)
    expected = resample(in_one_go(speech, mel_of(speech, said)).numpy(), NATIVE_HZ, rate_hz)
    assert np.abs(audio - np.clip(expected, -1, 1)).max() < 1e-3


def mel_of(speech: Speech, said: Sequence[SpeechPiece]) -> Tensor:
    flow = speech.generator.flow
    state, mels = MelState.empty(flow.config.mel_bins), []
    for piece in said:
        mels.append(result(extend_mel(flow, state, list(piece.units), SPEAKER, 7, MelWindowing())))
    return torch.cat([*mels, finish_mel(state)], dim=2)


def in_one_go(speech: Speech, mel: Tensor) -> Tensor:
    vocoder = speech.generator.hift
    source, _ = vocoder.source(vocoder.f0(mel), seed=7)
    return vocoder.decode(mel, source)[0]


def test_a_phrase_may_become_no_unit_at_all(speech: Speech) -> None:
    """A decoder may find that the units before were enough: nothing is lost, and the speech goes on."""
    decoder, stream = speech.loaded.model.speech_decoder, speech.stream(chunk_units=60)
    first, second, third, _ = speech.chunks()
    said = [speech.run(stream.speak(first))]
    stream.chunk_units = None
    bias = decoder.llm_decoder.bias
    kept = bias.clone()
    try:
        bias[decoder.end_of_speech] = 100.0  # it ends as soon as it may
        said.append(speech.run(stream.speak(second)))
    finally:
        bias.copy_(kept)
    assert said[1].units == ()
    assert said[1].audio.samples.size == 0
    assert [chunk.units for chunk in stream.state.window] == [said[0].units, ()]
    stream.chunk_units = 40
    again = speech.stream(unpacked(packed(stream)), chunk_units=40)
    said.append(speech.run(stream.speak(third)))
    assert same(speech.run(again.speak(third)), said[2])
    said.append(speech.run(stream.finish()))
    assert len(joined(said)) == speech.samples(100)


def test_a_first_phrase_of_no_unit_leaves_nothing_to_finish(speech: Speech) -> None:
    stream = speech.stream(chunk_units=0)
    assert speech.run(stream.speak(speech.chunks()[0])).audio.samples.size == 0
    assert speech.run(stream.finish()).audio.samples.size == 0
    stream.chunk_units = 30
    pieces = [speech.run(stream.speak(speech.chunks()[1])), speech.run(stream.finish())]
    assert len(joined(pieces)) == speech.samples(30)


def test_after_its_end_speech_may_go_on_without_losing_or_repeating_a_sample(speech: Speech) -> None:
    stream = speech.stream(chunk_units=33, sample_rate_hz=24_000)
    pieces = []
    for chunk in speech.chunks():
        pieces += [speech.run(stream.speak(chunk)), speech.run(stream.finish())]
        assert len(joined(pieces)) == speech.samples(units_of(pieces), 24_000)
        again = speech.stream(unpacked(packed(stream)), chunk_units=33, sample_rate_hz=24_000)
        assert packed(again) == packed(stream)
        stream = again
    assert speech.run(stream.finish()).audio.samples.size == 0


def test_what_cannot_be_spoken_changes_nothing(speech: Speech) -> None:
    stream = speech.stream(chunk_units=20)
    speech.run(stream.speak(speech.chunks()[0]))
    before = packed(stream)
    for words in (speech.words([]), speech.words([" word"] * (MAX_CHUNK_TOKENS + 1))):
        with pytest.raises(InvalidInputError) as refused:
            speech.run(stream.speak(words))
        assert refused.value.field == "text_ids"
    assert packed(stream) == before


# --- look-ahead


def test_words_ahead_are_shown_and_their_share_is_thrown_away(speech: Speech) -> None:
    now, ahead = speech.words([" good", " morning"]), speech.words([" little", " robot"], 1)
    shown = speech.stream(chunk_units=40)
    piece = speech.run(shown.speak(now, ahead))
    both = speech.run(speech.stream(chunk_units=40).speak(now + ahead))
    spoken, seen = len(now.tokens.ids), len(ahead.tokens.ids)
    assert piece.units == both.units[: round(40 * spoken / (spoken + seen))]
    assert [chunk.words for chunk in shown.state.window] == [now]
    assert shown.state.unit_count == len(piece.units)
    pieces = [piece, speech.run(shown.speak(ahead)), speech.run(shown.finish())]
    assert len(joined(pieces)) == speech.samples(units_of(pieces))


def test_no_words_ahead_are_none(speech: Speech) -> None:
    chunk = speech.chunks()[0]
    assert same(
        speech.run(speech.stream().speak(chunk, speech.words([]))), speech.run(speech.stream().speak(chunk, None))
    )


# --- what it costs


def test_a_chunk_costs_what_the_chunk_before_it_did(speech: Speech) -> None:
    stream, costs = speech.stream(chunk_units=128), []
    before = replace(stream.counters)
    for index in range(5):
        speech.run(stream.speak(speech.words([" one", " two", " three"], index)))
        after = replace(stream.counters)
        costs.append({name: getattr(after, name) - getattr(before, name) for name in vars(after)})
        before = after
    # 128 units are 220.5 frames, so every other chunk has one more
    assert costs[1] == costs[3]
    assert costs[2] == costs[4]
    assert all(costs[4].values())


def test_a_window_has_whole_chunks_and_no_more_than_it_needs(speech: Speech) -> None:
    stream = speech.stream(chunk_units=40, window_units=100)
    for index in range(5):
        speech.run(stream.speak(speech.words([f" {index}"], index)))
    assert [len(chunk.units) for chunk in stream.state.window] == [40, 40, 40]


def test_a_chunk_out_of_proportion_does_not_silence_those_after_it(speech: Speech) -> None:
    """The length rule counts the window's units: more of them than its words may have would leave room for none."""
    stream = speech.stream(chunk_units=200)
    first, second, *_ = speech.chunks()
    speech.run(stream.speak(first))
    speech.run(stream.speak(speech.words([" oh"])))
    units = sum(len(chunk.units) for chunk in stream.state.window)
    tokens = sum(len(chunk.words.tokens.ids) for chunk in stream.state.window)
    assert units <= length_rule(tokens + 3)[1]
    info = SimpleNamespace(vq_dim=4, codebook_size=32)
    loaded = LoadedModel(speech.loaded.model, speech.loaded.processor, None, info)  # type: ignore[arg-type]
    check_state(loaded, unpacked(packed(stream)), stream.voice.sample_rate_hz, stream.windowing)
    stream.chunk_units = None
    assert speech.run(stream.speak(second)).units


def test_others_get_their_turn_while_a_long_window_is_read(speech: Speech) -> None:
    stream = speech.stream(chunk_units=120)
    speech.run(stream.speak(speech.words([" word"] * 40)))
    work, wants = stream.speak(speech.words([" word"] * 40)), []
    want = next(work)
    while not isinstance(want, UnitStep):
        wants.append(want)
        want = work.send(answer(speech.machine, want))
    work.close()
    rows = 3 + 80 + 120
    reserved = next(index for index, given in enumerate(wants) if isinstance(given, UnitSlot))
    assert len(wants[reserved + 1 :]) == -(-rows // 32)  # a turn for each piece of the cache's 32 rows
    assert sum(isinstance(given, Turn) for given in wants[:reserved]) >= 2  # and between the encoders of words


def test_work_that_is_dropped_anywhere_leaves_no_slot_behind(speech: Speech) -> None:
    held = []
    for steps in itertools.count():
        work = speech.stream(chunk_units=3).speak(speech.chunks()[0])
        try:
            want: Any = next(work)
            for _ in range(steps):
                want = work.send(answer(speech.machine, want))
        except StopIteration:
            break
        held.append(speech.machine.live_slots)
        work.close()
        assert speech.machine.live_slots == 0
        assert speech.machine.cache_bytes == 0
    assert set(held) == {0, 1}


def test_an_abort_ends_the_work_and_frees_its_slot(speech: Speech) -> None:
    calls = 0

    def abort() -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise CallAbortedError("enough")

    with pytest.raises(CallAbortedError):
        speech.run(speech.stream(abort=abort).speak(speech.chunks()[0]))
    assert calls == 9
    assert speech.machine.live_slots == 0


def test_a_slot_is_one_call_s_own(speech: Speech) -> None:
    """Two streams that step together hold different slots of one cache."""
    first, second = (speech.stream(seed=seed, chunk_units=20).speak(speech.chunks()[0]) for seed in (1, 2))
    given: list[Slot[Any]] = []
    for work in (first, second):
        want = next(work)
        while not isinstance(want, UnitSlot):
            want = next(work)
        slot = speech.machine.slot(want)
        assert slot is not None
        given.append(slot)
        work.send(slot)
    assert given[0].cache is given[1].cache
    assert given[0].index != given[1].index
    for work in (first, second):
        work.close()
    assert speech.machine.live_slots == 0


def test_units_are_drawn_by_their_place_in_the_utterance(speech: Speech) -> None:
    stream, places = speech.stream(chunk_units=5), []
    for chunk in speech.chunks()[:2]:
        work = stream.speak(chunk)
        try:
            want = next(work)
            while True:
                if isinstance(want, UnitStep):
                    places.append(want.choice.unit_index)
                want = work.send(answer(speech.machine, want))
        except StopIteration:
            pass
    assert places == [1, 2, 3, 4, 6, 7, 8, 9]  # units 0 and 5 come from reading what was before them
