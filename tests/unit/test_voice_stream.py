"""Mel and waveform made in chunks, against the same made in one go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.model.voice_generator.mel_stream import MelState, MelWindowing, extend_mel, fade_in, finish_mel
from taste_grpc.model.voice_generator.wave_stream import PIECE_FRAMES, WaveState, extend_wave
from tests.conftest import Loaded
from tests.support.speaking import golden_tolerance, result, with_one_step

SEED = 5


@pytest.fixture(scope="module")
def generator(tiny: Loaded) -> VoiceGenerator:
    return tiny.processor.get_generator("cpu")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def quick(generator: VoiceGenerator) -> VoiceGenerator:
    """With one Euler step, where only the number of frames matters."""
    return with_one_step(generator)


@pytest.fixture(scope="module")
def mel(generator: VoiceGenerator) -> Tensor:
    """230 frames as the flow makes them."""
    with torch.inference_mode():
        units = [(7 * index) % generator.config.flow.vocab_size for index in range(230)]
        return generator.flow.mel(torch.tensor([units]), speaker(), seed=SEED)[:, :, :230]


@pytest.fixture(scope="module")
def whole(generator: VoiceGenerator, mel: Tensor) -> Tensor:
    """Their waveform, made in one go."""
    with torch.inference_mode():
        vocoder = generator.hift
        source, _ = vocoder.source(vocoder.f0(mel), seed=SEED)
        return vocoder.decode(mel, source)[0]


def speaker() -> Tensor:
    return torch.randn(1, 192, generator=torch.Generator().manual_seed(1))


def in_chunks(generator: VoiceGenerator, mel: Tensor, sizes: list[int]) -> Tensor:
    state = WaveState.empty(mel.shape[1])
    waves, start = [], 0
    for size in [*sizes, mel.shape[2]]:
        stop = min(start + size, mel.shape[2])
        last = stop == mel.shape[2]
        waves.append(result(extend_wave(generator.hift, state, mel[:, :, start:stop], SEED, last=last)))
        start = stop
        if last:
            break
    return torch.cat(waves)


# --- the vocoder


def assert_same(parts: Tensor, whole: Tensor) -> None:
    assert parts.shape == whole.shape
    greatest, _ = golden_tolerance("vocoder.waveform_given_source")
    assert float((parts - whole).abs().max()) <= greatest


@pytest.mark.parametrize("sizes", [[1] * 60, [PIECE_FRAMES, 1, 95], [16, 17], []])
def test_a_waveform_in_chunks_is_the_waveform_in_one_go(
    generator: VoiceGenerator, mel: Tensor, whole: Tensor, sizes: list[int]
) -> None:
    assert_same(in_chunks(generator, mel, sizes), whole)


@given(sizes=st.lists(st.integers(0, 90), max_size=6))
@settings(max_examples=5, deadline=None)
def test_chunks_of_any_size_are_the_waveform_in_one_go(
    generator: VoiceGenerator, mel: Tensor, whole: Tensor, sizes: list[int]
) -> None:
    assert_same(in_chunks(generator, mel, sizes), whole)


def test_less_context_than_the_vocoder_says_would_be_heard(
    generator: VoiceGenerator, mel: Tensor, whole: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context is not larger than it has to be by much: a few frames less, and the joins break."""
    needed = generator.hift.config.context_frames
    monkeypatch.setattr(type(generator.hift.config), "context_frames", property(lambda _: needed - 4))
    greatest, _ = golden_tolerance("vocoder.waveform_given_source")
    assert float((in_chunks(generator, mel, [80, 80]) - whole).abs().max()) > greatest


def test_what_the_vocoder_keeps_does_not_grow(generator: VoiceGenerator, mel: Tensor) -> None:
    state, kept = WaveState.empty(mel.shape[1]), []
    for _ in range(6):
        result(extend_wave(generator.hift, state, mel[:, :, :60], SEED))
        kept.append((state.mel.shape[1], state.f0.shape[0]))
    assert len(set(kept[1:])) == 1
    assert kept[-1][0] < PIECE_FRAMES


def test_frames_come_out_as_soon_as_their_context_is_there(generator: VoiceGenerator, mel: Tensor) -> None:
    config = generator.hift.config
    wave = result(extend_wave(generator.hift, WaveState.empty(mel.shape[1]), mel[:, :, :100], SEED))
    held = config.context_frames + config.f0_context_frames
    assert len(wave) == (100 - held) * config.samples_per_frame


# --- the flow


def mel_in_chunks(
    generator: VoiceGenerator, units: list[int], size: int, windowing: MelWindowing
) -> tuple[Tensor, list[int]]:
    """The mel, and the frames at which windows join."""
    state, mels, joins = MelState.empty(generator.config.flow.mel_bins), [], []
    for start in range(0, len(units), size):
        chunk = units[start : start + size]
        mels.append(result(extend_mel(generator.flow, state, chunk, speaker(), SEED, windowing)))
        joins.append(state.frame_count)
    mels.append(finish_mel(state))
    return torch.cat(mels, dim=2), joins[:-1]


@pytest.mark.parametrize("size", [60, 100])
def test_at_joins_the_mel_is_as_near_to_the_whole_as_elsewhere(generator: VoiceGenerator, size: int) -> None:
    config, windowing = generator.config.flow, MelWindowing()
    rng = np.random.default_rng(size)
    units = rng.integers(0, config.vocab_size, 4 * size).tolist()
    whole = generator.flow.mel(torch.tensor([units]), speaker(), seed=SEED)
    mel, joins = mel_in_chunks(generator, units, size, windowing)
    assert mel.shape == whole.shape
    assert len(joins) == 3
    difference = (mel - whole).abs().mean(dim=(0, 1))
    reach = round(0.020 * config.sampling_rate_hz / config.hop_samples)
    for extent in (0, windowing.fade_frames):  # where the later window begins, and all along the fade
        near = torch.zeros(len(difference), dtype=torch.bool)
        for join in joins:
            near[join - reach : join + extent + reach + 1] = True
        assert float(difference[near].mean()) <= 1.5 * float(difference[~near].mean())


def test_windows_are_faded_into_each_other() -> None:
    earlier, later = torch.zeros(2, 16), torch.ones(2, 30)
    fade_in(later, earlier, 8)
    steps = later[0].diff()
    assert float(later[0, 0]) < 0.02
    assert bool((steps >= 0).all())
    assert float(steps.max()) < 0.2
    assert bool((later[:, 8:] == 1).all())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=5, deadline=None)
def test_chunks_of_any_size_have_the_frames_of_the_whole(quick: VoiceGenerator, sizes: list[int]) -> None:
    flow = quick.flow
    state = MelState.empty(flow.config.mel_bins)
    frames = total = 0
    for size in sizes:
        units = [(3 * index) % flow.config.vocab_size for index in range(total, total + size)]
        frames += result(extend_mel(flow, state, units, speaker(), SEED, MelWindowing())).shape[2]
        total += size
    frames += finish_mel(state).shape[2]
    assert frames == flow.config.frames(total)


def test_the_window_of_a_chunk_does_not_grow(quick: VoiceGenerator) -> None:
    flow = quick.flow
    state, entered = MelState.empty(flow.config.mel_bins), []
    for _ in range(7):
        entered.append(list(extend_mel(flow, state, [1] * 128, speaker(), SEED, MelWindowing())))
    assert entered[2] == entered[4] == entered[6]
    assert len({len(calls) for calls in entered}) == 1
