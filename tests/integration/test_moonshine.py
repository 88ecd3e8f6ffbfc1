"""The embedded recogniser on a real recording."""

from __future__ import annotations

import asyncio
import threading
from importlib.util import find_spec

import numpy as np
import pytest

from taste_grpc.audio import Encoding, decode_clip, resample
from taste_grpc.errors import UnsupportedByModelError
from taste_grpc.speech import (
    RECOGNISER_SAMPLE_RATE_HZ,
    Recogniser,
    RecogniserPool,
    default_recogniser,
    moonshine,
    sample_recordings,
)


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
    assert heard == [
        "ever",
        "tried",
        "ever",
        "failed",
        "no",
        "matter",
        "try",
        "again",
        "fail",
        "again",
        "fail",
        "better",
    ]


def test_the_recordings_are_there() -> None:
    assert {"beckett", "two_cities"} <= sample_recordings().keys()


@pytest.mark.parametrize("seconds", [0.02, 1.0])
def test_silence_is_no_text(recogniser: Recogniser, seconds: float) -> None:
    assert recogniser.transcribe(np.zeros(int(16_000 * seconds), np.float32)) == ""


def test_a_clip_does_not_hear_the_one_before(recogniser: Recogniser, beckett: np.ndarray) -> None:
    recogniser.transcribe(beckett[: int(2.4 * 16_000)])  # ends within a word
    assert recogniser.transcribe(np.zeros(16_000, np.float32)) == ""
    assert words(recogniser.transcribe(beckett)) == words(default_recogniser().transcribe(beckett))


def test_noise_is_no_text(recogniser: Recogniser) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.05, 3 * 16_000).astype(np.float32)
    assert recogniser.transcribe(noise) == ""


def test_words_on_both_sides_of_a_long_silence(recogniser: Recogniser, beckett: np.ndarray) -> None:
    tried, matter = beckett[: int(1.6 * 16_000)], beckett[int(3.2 * 16_000) : int(4.5 * 16_000)]
    clip = np.concatenate([np.zeros(32_000, np.float32), tried, np.zeros(80_000, np.float32), matter])
    assert words(recogniser.transcribe(clip)) == ["ever", "tried", "no", "matter"]


def test_only_english_is_known(recogniser: Recogniser, beckett: np.ndarray) -> None:
    assert recogniser.languages == {"en"}
    assert words(recogniser.transcribe(beckett[: 3 * 16_000], "en-GB"))[:2] == ["ever", "tried"]
    with pytest.raises(UnsupportedByModelError, match="'de-DE'; it knows en"):
        recogniser.transcribe(beckett, "de-DE")


async def test_two_conversations_at_once(beckett: np.ndarray) -> None:
    pool = RecogniserPool(default_recogniser, 2)
    await pool.start()
    try:
        halves = beckett[: int(4.6 * 16_000)], beckett[int(4.6 * 16_000) :]
        asked = [pool.transcribe(half, urgent=bool(index % 2)) for index in range(2) for half in halves]
        heard = [words(text) for text in await asyncio.gather(*asked)]
    finally:
        await pool.aclose()
    assert heard[:2] == heard[2:]
    assert heard[0] == ["ever", "tried", "ever", "failed", "no", "matter"]
    assert heard[1][:2] == ["try", "again"]


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
