"""The embedded voice, in its process, heard by the embedded recogniser."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from taste_grpc.audio import resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError, SpeechError, UnsupportedByModelError
from taste_grpc.speech import (
    RECOGNISER_SAMPLE_RATE_HZ,
    EspeakVoice,
    PiperVoice,
    Voice,
    default_recogniser,
    default_voice,
    espeak,
    make_voice,
    piper,
)
from tests.support.word_error_rate import word_error_rate

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENTENCES = [
    "The train to the harbour leaves at seven in the evening.",
    "Please bring two bottles of water and a warm coat.",
    "My sister has been living in the city for ten years.",
    "What would you like to eat for dinner tonight?",
    "The weather will be sunny with a light wind tomorrow.",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def voice() -> AsyncIterator[PiperVoice]:
    voice = PiperVoice(deterministic=True)
    await voice.start()
    pids = voice.pids
    assert len(pids) == 1
    yield voice
    await voice.aclose()
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def pieces(voice: Voice, text: str) -> list[Float32Array]:
    return [piece async for piece in voice.speak(text)]


async def spoken(voice: Voice, text: str) -> Float32Array:
    return np.concatenate([np.zeros(0, np.float32), *await pieces(voice, text)])


async def test_what_it_says_is_understood(voice: PiperVoice) -> None:
    recogniser = default_recogniser()
    heard = []
    for sentence in SENTENCES:
        audio = resample(await spoken(voice, sentence), voice.sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ)
        heard.append(await asyncio.to_thread(recogniser.transcribe, audio))
    assert word_error_rate(SENTENCES, heard) <= 0.15, heard


async def test_each_sentence_is_a_piece(voice: PiperVoice) -> None:
    made = await pieces(voice, "One day. Two days! Three days?")
    assert len(made) == 3
    for piece in made:
        assert piece.dtype == np.float32
        assert 0.05 < np.abs(piece).max() <= 1.0
        assert 0.3 < len(piece) / voice.sample_rate_hz < 3.0


async def test_phrases_at_once_do_not_mix(voice: PiperVoice) -> None:
    texts = ["Yes.", "No, thank you.", "One day. Two days!"] * 2
    alone = {text: await spoken(voice, text) for text in set(texts)}
    together = await asyncio.gather(*(spoken(voice, text) for text in texts))
    for text, audio in zip(texts, together, strict=True):
        assert np.array_equal(audio, alone[text])


async def test_a_phrase_dropped_midway_leaves_the_next_alone(voice: PiperVoice) -> None:
    async with aclosing(voice.speak("One. Two. Three. Four.")) as dropped:
        first = await anext(dropped)
    assert np.array_equal((await pieces(voice, "One."))[0], first)


@pytest.mark.parametrize("text", ["", "  ", "...", "?!", "*", "\0", "\ud800"])
async def test_nothing_is_said_of_nothing(voice: PiperVoice, text: str) -> None:
    assert await pieces(voice, text) == []


@pytest.mark.parametrize(
    "text", ["😀", "你好，世界。", "مرحبا", "a\0b", "[[ not phonemes ]]", "x" * 300, "--help", "\ud800x"]
)
async def test_any_text_can_be_spoken(voice: PiperVoice, text: str) -> None:
    assert len(await spoken(voice, text)) > 2_000
    assert len(voice.pids) == 1


async def test_a_sentence_without_an_end_comes_in_pieces(voice: PiperVoice) -> None:
    made = await pieces(voice, "and so on " * 25)
    assert len(made) > 1
    assert max(len(piece) for piece in made) < 20 * voice.sample_rate_hz


async def test_its_process_has_neither_torch_nor_grpc(voice: PiperVoice) -> None:
    loaded = {Path(found.path).parts for found in psutil.Process(voice.pids[0]).memory_maps()}
    packages = {name for parts in loaded for name in parts}
    assert {"onnxruntime", "piper"} <= packages
    assert not {"torch", "grpc"} & packages


async def test_a_killed_process_costs_one_phrase(voice: PiperVoice) -> None:
    [pid] = voice.pids
    async with aclosing(voice.speak(f"{SENTENCES[0]} {SENTENCES[1]} {SENTENCES[2]}")) as speaking:
        await anext(speaking)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SpeechError, match="SIGKILL"):
            async for _ in speaking:
                pass
    assert len(await spoken(voice, "Still here.")) > 2_000
    assert voice.pids != [pid]


async def test_it_names_itself(voice: PiperVoice) -> None:
    assert voice.name.startswith("piper-tts 1.")
    assert voice.name.endswith(" en_US-joe-medium")
    assert voice.sample_rate_hz == 22_050


async def test_a_file_that_is_no_voice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "voice.onnx"
    with pytest.raises(UnsupportedByModelError, match=r"voice\.onnx\.json: No such file"):
        PiperVoice(path)
    config = tmp_path / "voice.onnx.json"
    config.write_text("{}")
    with pytest.raises(UnsupportedByModelError, match="no description of a Piper voice"):
        PiperVoice(path)
    config.write_text('{"audio": {"sample_rate": 16000}}')
    path.write_bytes(b"no network")
    voice = PiperVoice(path)
    try:
        with pytest.raises(UnsupportedByModelError, match=r"the voice voice cannot be used: .* does not start"):
            await voice.start()
    finally:
        await voice.aclose()


async def test_an_impossible_number_of_processes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="processes: must be at least 1, not 0"):
        PiperVoice(processes=0)


async def test_voices_by_name() -> None:
    assert isinstance(make_voice("piper"), PiperVoice)
    assert isinstance(default_voice(), PiperVoice)
    with pytest.raises(InvalidInputError, match="'joe' is not auto, piper or espeak"):
        make_voice("joe")  # type: ignore[arg-type]


async def test_without_piper_it_is_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piper, "find_spec", lambda name: None if name == "piper" else find_spec(name))
    with pytest.raises(UnsupportedByModelError, match=r"pip install 'taste-grpc\[voice\]'"):
        make_voice("piper")
    monkeypatch.setattr(espeak.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert isinstance(default_voice(), EspeakVoice)
    monkeypatch.setattr(espeak.shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedByModelError, match="apt-get install espeak-ng"):
        make_voice("espeak")
    with pytest.raises(UnsupportedByModelError, match=r"there is no voice: .*pip install .*; or .*apt-get install"):
        default_voice()
