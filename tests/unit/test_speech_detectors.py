"""Voice-activity detectors on a real recording, on silence, and on noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.turn_taking import SpeechBegan, SpeechEnded, TurnTaking
from taste_grpc.errors import InvalidInputError
from taste_grpc.speech import SileroDetector, SpeechDetector, SpeechFrames, WebRtcDetector, sample_recordings

RATE_HZ = 16_000
MAKERS: list[Callable[[], SpeechDetector]] = [SileroDetector, WebRtcDetector]


@pytest.fixture(scope="module")
def recording() -> Float32Array:
    """Six short sentences with pauses between them, 10 s."""
    samples, rate_hz = soundfile.read(sample_recordings()["beckett"], dtype="float32")
    assert rate_hz == RATE_HZ
    return samples


def decisions(detector: SpeechDetector, samples: Float32Array, piece: int = 137) -> list[bool]:
    frames = SpeechFrames(detector.frame_samples)
    pieces = [samples[at : at + piece] for at in range(0, len(samples), piece)]
    return [detector.is_speech(frame) for part in pieces for frame in frames.push(part)]


@pytest.mark.parametrize("make", MAKERS)
def test_speech_is_heard_where_it_is_loud_and_not_in_silence(
    make: Callable[[], SpeechDetector], recording: Float32Array
) -> None:
    detector = make()
    found = np.asarray(decisions(detector, recording))
    frames = recording[: len(found) * detector.frame_samples].reshape(len(found), -1)
    loudness = np.sqrt((frames**2).mean(1))
    assert found[loudness > 0.25 * loudness.max()].mean() > 0.9
    detector.reset()
    assert not any(decisions(detector, np.zeros(2 * RATE_HZ, np.float32)))


def test_the_default_is_not_taken_in_by_noise() -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(2 * RATE_HZ).astype(np.float32)
    assert not any(decisions(SileroDetector(), noise))


@pytest.mark.parametrize("make", MAKERS)
def test_a_detector_that_was_reset_decides_as_a_new_one(
    make: Callable[[], SpeechDetector], recording: Float32Array
) -> None:
    detector = make()
    first = decisions(detector, recording)
    detector.reset()
    assert decisions(detector, recording) == first == decisions(make(), recording)


@pytest.mark.parametrize("make", MAKERS)
def test_a_frame_of_another_length_is_refused(make: Callable[[], SpeechDetector]) -> None:
    detector = make()
    for length in (0, detector.frame_samples - 1, detector.frame_samples + 1):
        with pytest.raises(InvalidInputError, match="frame"):
            detector.is_speech(np.zeros(length, np.float32))


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="mode"):
        WebRtcDetector(4)


@pytest.mark.parametrize("piece", [1, 160, 512, 700, 5000])
def test_frames_are_the_audio_whatever_pieces_it_comes_in(piece: int) -> None:
    samples = np.arange(5000, dtype=np.float32)
    frames = SpeechFrames(512)
    found = [frame for at in range(0, 5000, piece) for frame in frames.push(samples[at : at + piece])]
    assert {len(frame) for frame in found} == {512}
    assert (np.concatenate(found) == samples[: 9 * 512]).all()


def test_the_turns_of_a_recording(recording: Float32Array) -> None:
    """Each sentence after a pause of 0.7 s is a turn of its own."""
    detector, taking = SileroDetector(), TurnTaking()
    frame_ms = 1000 * detector.frame_samples / RATE_HZ
    given = [taking.push(speech, frame_ms) for speech in decisions(detector, recording)]
    events = [event for event in given if event is not None]
    assert [type(event) for event in events] == [SpeechBegan, SpeechEnded] * (len(events) // 2)
    assert len(events) >= 6
    places = [event.at_ms for event in events]
    assert places == sorted(places)
    assert places[0] == pytest.approx(350, abs=100)
