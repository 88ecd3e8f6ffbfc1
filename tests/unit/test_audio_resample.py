"""One-shot and streaming change of rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.audio import StreamResampler, resample
from taste_grpc.errors import InvalidInputError

rates = st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000, 96000])


@given(rates, rates, st.lists(st.integers(0, 3000), max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_stream_gives_exactly_the_samples_of_one_call(
    from_hz: int, to_hz: int, chunk_sizes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    chunks = [rng.uniform(-1, 1, size).astype(np.float32) for size in chunk_sizes]
    stream = StreamResampler(from_hz, to_hz)
    streamed = np.concatenate([*(stream.push(chunk) for chunk in chunks), stream.finish()])
    whole = resample(np.concatenate([np.zeros(0, np.float32), *chunks]), from_hz, to_hz)
    assert len(streamed) == len(whole)
    np.testing.assert_allclose(streamed, whole, atol=1e-5)
    assert stream.state.emitted == len(whole)


@given(rates, rates, st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_another_one_goes_on_from_the_state_bit_for_bit(
    from_hz: int, to_hz: int, chunk_sizes: list[int], data: st.DataObject
) -> None:
    rng = np.random.default_rng(7)
    chunks = [rng.uniform(-1, 1, size).astype(np.float32) for size in chunk_sizes]
    one, moved = StreamResampler(from_hz, to_hz), StreamResampler(from_hz, to_hz)
    for chunk in chunks:
        if data.draw(st.booleans()):
            moved = StreamResampler(from_hz, to_hz, moved.state)
        np.testing.assert_array_equal(moved.push(chunk), one.push(chunk))


def test_the_history_does_not_grow() -> None:
    stream = StreamResampler(22050, 16000)
    lengths = []
    for _ in range(50):
        stream.push(np.zeros(2205, np.float32))
        lengths.append(len(stream.state.history))
    assert max(lengths[10:]) <= max(lengths[:10])


@given(rates, rates, st.integers(1, 5000))
@settings(deadline=None)
def test_length(from_hz: int, to_hz: int, samples: int) -> None:
    resampled = resample(np.zeros(samples, np.float32), from_hz, to_hz)
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - samples * to_hz / from_hz) <= 0.5


@pytest.mark.parametrize(("from_hz", "to_hz"), [(16000, 48000), (22050, 16000), (16000, 8000)])
def test_there_and_back_keeps_a_tone(from_hz: int, to_hz: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(from_hz) / from_hz).astype(np.float32)
    back = resample(resample(tone, from_hz, to_hz), to_hz, from_hz)
    inside = slice(from_hz // 10, -from_hz // 10)  # the ends ring: there is nothing beyond them
    np.testing.assert_allclose(back[inside], tone[inside], atol=1e-3)


def test_what_a_lower_rate_cannot_carry_is_removed() -> None:
    hiss = np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(hiss, 16000, 8000)[500:-500]).max() < 1e-3


def test_a_finished_stream_may_go_on_without_losing_or_repeating_samples() -> None:
    stream = StreamResampler(22050, 16000)
    parts = [stream.push(np.ones(3000, np.float32)), stream.finish(), stream.push(np.ones(3000, np.float32))]
    parts.append(stream.finish())
    assert sum(len(part) for part in parts) == len(resample(np.ones(6000, np.float32), 22050, 16000))


@pytest.mark.parametrize("rate_hz", [0, -16000])
def test_rates_must_be_positive(rate_hz: int) -> None:
    with pytest.raises(InvalidInputError, match="from_hz"):
        resample(np.zeros(10, np.float32), rate_hz, 16000)
    with pytest.raises(InvalidInputError, match="to_hz"):
        StreamResampler(16000, rate_hz)
