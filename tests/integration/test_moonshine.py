"""The embedded recogniser on a real recording."""

from __future__ import annotations

import threading
from importlib.util import find_spec

import numpy as np
import pytest

from taste_grpc.audio import Encoding, decode_clip, resample
from taste_grpc.errors import UnsupportedByModelError
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ, Recogniser, default_recogniser, moonshine, sample_recordings


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return default_recogniser()


@pytest.fixture(scope="module")
def beckett() -> np.ndarray:
    """Ten seconds of a human voice."""
    clip = decode_clip(sample_recordings()["beckett"].read_bytes(), Encoding.WAV)
    return resample(clip.samples, clip.sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ)


def words(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


def test_a_real_recording_is_understood(recogniser: Recogniser, beckett: np.ndarray) -> None:
    heard = words(recogniser.transcribe(beckett))
    assert heard[:6] == ["ever", "tried", "ever", "failed", "no", "matter"]
    assert heard[-1] == "better"
    assert 11 <= len(heard) <= 13


def test_the_recordings_are_there() -> None:
    assert {"beckett", "two_cities"} <= sample_recordings().keys()


@pytest.mark.parametrize("seconds", [0.02, 1.0])
def test_silence_is_no_text(recogniser: Recogniser, seconds: float) -> None:
    assert recogniser.transcribe(np.zeros(int(16_000 * seconds), np.float32)) == ""


def test_another_thread_may_use_it(recogniser: Recogniser, beckett: np.ndarray) -> None:
    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.append(recogniser.transcribe(beckett[: 3 * 16_000])))
    thread.start()
    thread.join(30)
    assert words(heard[0])[:2] == ["ever", "tried"]


def test_it_names_itself(recogniser: Recogniser) -> None:
    assert recogniser.name == "moonshine-voice 0.0.49 tiny-en"


def test_a_missing_package_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moonshine, "find_spec", lambda name: None if name == "moonshine_voice" else find_spec(name))
    for call in (default_recogniser, sample_recordings):
        with pytest.raises(UnsupportedByModelError, match=r"pip install 'taste-grpc\[embedded\]'"):
            call()
