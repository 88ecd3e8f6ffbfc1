"""The fallback voice, where the machine has espeak-ng."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import psutil
import pytest

from taste_grpc.audio import resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError, UnsupportedByModelError
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ, EspeakVoice, default_recogniser
from tests.support.word_error_rate import word_error_rate

pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not on the machine")

SENTENCES = ["The weather will be sunny tomorrow.", "Please bring two bottles of water."]


@pytest.fixture
def voice() -> EspeakVoice:
    return EspeakVoice()


async def spoken(voice: EspeakVoice, text: str) -> Float32Array:
    return np.concatenate([np.zeros(0, np.float32), *[piece async for piece in voice.speak(text)]])


def programs() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "espeak-ng"]


async def test_what_it_says_is_understood(voice: EspeakVoice) -> None:
    await voice.start()
    recogniser = default_recogniser()
    heard = []
    for audio in await asyncio.gather(*(spoken(voice, sentence) for sentence in SENTENCES)):
        audio = resample(audio, voice.sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ)
        heard.append(await asyncio.to_thread(recogniser.transcribe, audio))
    assert word_error_rate(SENTENCES, heard) <= 0.4, heard


async def test_text_is_never_an_option(voice: EspeakVoice) -> None:
    assert len(await spoken(voice, "--version")) > 10_000


@pytest.mark.parametrize("text", ["", "...", "\0"])
async def test_nothing_is_said_of_nothing(voice: EspeakVoice, text: str) -> None:
    assert len(await spoken(voice, text)) == 0


@pytest.mark.parametrize("text", ["😀", "你好，世界。", "[[ not phonemes ]]", "<speak>tag</speak>", "\ud800x"])
async def test_any_text_can_be_spoken(voice: EspeakVoice, text: str) -> None:
    assert len(await spoken(voice, text)) > 2_000


async def test_cancelling_ends_the_program(voice: EspeakVoice) -> None:
    speaking = asyncio.create_task(spoken(voice, "many words " * 20_000))
    while not programs():
        await asyncio.sleep(0.001)
    speaking.cancel()
    await asyncio.wait([speaking])
    assert speaking.cancelled()
    assert programs() == []


async def test_a_voice_that_is_not_there_is_refused_at_the_start() -> None:
    voice = EspeakVoice("xx-yy")
    with pytest.raises(UnsupportedByModelError, match=r"espeak-ng xx-yy cannot be used: .* voice does not exist"):
        await voice.start()
    with pytest.raises(SpeechError, match="does not exist"):
        await spoken(voice, "word")


async def test_a_closed_voice_is_silent(voice: EspeakVoice) -> None:
    await voice.aclose()
    with pytest.raises(SpeechError, match="has been closed"):
        await spoken(voice, "word")


def test_it_names_itself(voice: EspeakVoice) -> None:
    assert voice.name == "espeak-ng en-us"
