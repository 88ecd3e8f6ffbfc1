"""Microphone bytes to frames."""

from __future__ import annotations

import numpy as np
import pytest

from taste_grpc.audio import Encoding
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.ear import Ear, Frame
from taste_grpc.dialogue.pre_roll import PAD_MS, PreRoll
from taste_grpc.errors import InvalidInputError
from tests.support.scripted import FRAME_MS, FRAME_SAMPLES, LoudnessDetector


def ear(encoding: Encoding = Encoding.LINEAR16, rate_hz: int = 16_000, channels: int = 1) -> Ear:
    return Ear(encoding, rate_hz, channels, LoudnessDetector())


def tone(seconds: float, rate_hz: int, amplitude: float = 0.5) -> Float32Array:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def heard(frames: list[Frame]) -> Float32Array:
    return np.concatenate([frame.samples for frame in frames])


def pcm(samples: Float32Array, encoding: Encoding) -> bytes:
    if encoding is Encoding.LINEAR16:
        return np.round(samples * 32_767).astype("<i2").tobytes()
    return samples.astype("<f4").tobytes()


@pytest.mark.parametrize("encoding", [Encoding.LINEAR16, Encoding.FLOAT32LE])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_every_microphone_is_heard_as_it_is(encoding: Encoding, channels: int, rate_hz: int) -> None:
    samples = np.repeat(tone(1.0, rate_hz), channels)
    data, microphone = pcm(samples, encoding), ear(encoding, rate_hz, channels)
    frames: list[Frame] = []
    step = microphone.frame_bytes * rate_hz // 50
    for begin in range(0, len(data), step):
        microphone.check(data[begin : begin + step])
        frames += microphone.push(data[begin : begin + step])
    result = heard(frames)
    assert result.dtype == np.float32
    assert {len(frame.samples) for frame in frames} == {FRAME_SAMPLES}
    assert 16_000 - len(result) < FRAME_SAMPLES + 400  # the rest waits for its frame and in the resampler
    middle = slice(400, -400)
    assert np.abs(result[middle] - tone(1.0, 16_000)[: len(result)][middle]).max() < 0.01
    assert all(frame.is_speech for frame in frames)


def test_channels_are_averaged() -> None:
    left, right = np.full(FRAME_SAMPLES, 0.5, np.float32), np.full(FRAME_SAMPLES, -0.25, np.float32)
    data = np.stack([left, right], axis=1).astype("<f4").tobytes()
    (frame,) = ear(Encoding.FLOAT32LE, channels=2).push(data)
    assert np.allclose(frame.samples, 0.125)


def test_frames_do_not_depend_on_how_the_bytes_come() -> None:
    data = pcm(tone(0.5, 16_000), Encoding.LINEAR16)
    microphone = ear()
    whole = heard(ear().push(data))
    one_by_one = heard([frame for at in range(0, len(data), 2) for frame in microphone.push(data[at : at + 2])])
    assert np.array_equal(whole, one_by_one)


@pytest.mark.parametrize(
    ("encoding", "channels", "count"),
    [(Encoding.LINEAR16, 1, 3), (Encoding.LINEAR16, 2, 6), (Encoding.FLOAT32LE, 1, 6), (Encoding.FLOAT32LE, 2, 4)],
)
def test_half_a_frame_of_pcm_is_refused(encoding: Encoding, channels: int, count: int) -> None:
    with pytest.raises(InvalidInputError, match=f"audio: has {count} bytes"):
        ear(encoding, channels=channels).check(bytes(count))


def test_no_bytes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="has 0 bytes"):
        ear().check(b"")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_samples_that_are_no_numbers_are_silence(value: float) -> None:
    (frame,) = ear(Encoding.FLOAT32LE).push(np.full(FRAME_SAMPLES, value, "<f4").tobytes())
    assert frame.samples.tolist() == [0.0] * FRAME_SAMPLES
    assert not frame.is_speech


def test_samples_beyond_the_scale_are_clipped() -> None:
    (frame,) = ear(Encoding.FLOAT32LE).push(np.full(FRAME_SAMPLES, 1e30, "<f4").tobytes())
    assert set(frame.samples.tolist()) == {1.0}


def test_frames_know_their_length_in_time() -> None:
    assert ear().frame_ms == FRAME_MS


def frame() -> Frame:
    return Frame(np.zeros(FRAME_SAMPLES, np.float32), is_speech=False)


def test_the_last_moments_before_speech_are_kept() -> None:
    pre_roll, frames = PreRoll(), [frame() for _ in range(100)]
    for number, each in enumerate(frames):
        pre_roll.append(number * FRAME_MS, each, None)
    taken = pre_roll.take()
    assert taken == frames[-1 - int(PAD_MS / FRAME_MS) :]
    assert pre_roll.take() == []


def test_all_that_led_to_the_speech_under_way_is_kept_but_not_for_ever() -> None:
    pre_roll, frames = PreRoll(), [frame() for _ in range(400)]
    for number, each in enumerate(frames[:80]):
        pre_roll.append(number * FRAME_MS, each, 30 * FRAME_MS if number >= 30 else None)
    assert pre_roll.take() == frames[24:80]
    for number, each in enumerate(frames):
        pre_roll.append(number * FRAME_MS, each, 0.0)
    assert len(pre_roll.take()) == 5_000 // FRAME_MS + 1
