"""Replies of a tiny Voxtral through transformers' own classes."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import soundfile
import torch
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor
from transformers.utils import logging as transformers_logging

from taste_grpc.audio import Waveform, encode_wav
from taste_grpc.dialogue import ReplyChunk, ReplyModel, VoxtralModel, voxtral
from taste_grpc.errors import CheckpointError, InvalidInputError, NotInitialisedError, UnsupportedByModelError
from taste_grpc.speech import sample_recordings
from tests.support.live_server import until
from tests.support.tiny_voxtral import write_tiny_voxtral

SAMPLES, _ = soundfile.read(sample_recordings()["beckett"], dtype="float32", frames=48_000)
FALLBACK = "Sorry, I didn't understand that."
LONG = 4_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.disable_progress_bar()
    yield write_tiny_voxtral(tmp_path_factory.mktemp("voxtral") / "tiny-voxtral")
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> Any:
    return VoxtralForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return VoxtralProcessor.from_pretrained(checkpoint)


@pytest_asyncio.fixture
async def model(network: Any, processor: Any) -> AsyncIterator[ReplyModel]:
    model = VoxtralModel(network, processor)
    yield model
    await model.aclose()
    assert answering() == 0


def answering() -> int:
    return sum(thread.name == "voxtral" for thread in threading.enumerate())


def tasks() -> set[str]:
    gc.collect()
    return {task.get_name() for task in asyncio.all_tasks() if not task.done()}


async def ask(model: ReplyModel, audio: Any = SAMPLES, **arguments: Any) -> list[ReplyChunk]:
    return [chunk async for chunk in model.process_realtime_chunk_streaming(audio, "q-1", **arguments)]


def text_of(chunks: list[ReplyChunk]) -> str:
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.success for chunk in chunks), chunks[-1].error
    return "".join(chunk.text for chunk in chunks)


def at_once(network: Any, processor: Any, inputs: Any, **options: Any) -> str:
    ids = network.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True))


def transcription(processor: Any) -> Any:
    return processor.apply_transcription_request(
        audio=[SAMPLES], model_id="any", sampling_rate=16_000, format=["WAV"], language=None
    )


def conversation(processor: Any, directory: Path, *more: dict[str, str]) -> Any:
    path = directory / "question.wav"
    path.write_bytes(encode_wav(Waveform(SAMPLES, 16_000)))
    content = [{"type": "audio", "path": str(path)}, *more]
    return processor.apply_chat_template([{"role": "user", "content": content}])


async def test_the_chunks_are_what_the_network_says_at_once(
    network: Any, processor: Any, model: ReplyModel, tmp_path: Path
) -> None:
    greedy = {"max_new_tokens": 60, "do_sample": False}
    chunks = []
    async for chunk in model.process_realtime_chunk_streaming(
        SAMPLES, "q-1", mode="conversation", max_new_tokens=60, temperature=0
    ):
        chunks.append(chunk)
    answer = text_of(chunks)
    assert answer == at_once(network, processor, conversation(processor, tmp_path), **greedy)
    assert len(chunks) > 3
    assert all(1 <= len(chunk.text.split()) <= 4 for chunk in chunks[:-1])
    written = text_of(await ask(model, mode="transcription", max_new_tokens=60, temperature=0))
    assert written == at_once(network, processor, transcription(processor), **greedy)
    assert written != answer


async def test_instructions_stand_beside_the_question(
    network: Any, processor: Any, model: ReplyModel, tmp_path: Path
) -> None:
    instructions = {"type": "text", "text": "Answer in one word."}
    inputs = conversation(processor, tmp_path, instructions)
    told = text_of(await ask(model, system_prompt="Answer in one word.", temperature=0, max_new_tokens=20))
    assert told == at_once(network, processor, inputs, max_new_tokens=20, do_sample=False)
    assert told != text_of(await ask(model, temperature=0, max_new_tokens=20))


async def test_sampling_is_that_of_the_request(network: Any, processor: Any, model: ReplyModel) -> None:
    torch.manual_seed(5)
    said = text_of(await ask(model, mode="transcription", temperature=1.3, top_p=0.8, max_new_tokens=30))
    torch.manual_seed(5)
    options = {"do_sample": True, "temperature": 1.3, "top_p": 0.8, "top_k": 0, "max_new_tokens": 30}
    assert said == at_once(network, processor, transcription(processor), **options)
    greedy = text_of(await ask(model, mode="transcription", temperature=0, max_new_tokens=30))
    assert text_of(await ask(model, mode="transcription", top_p=0, max_new_tokens=30)) == greedy != said


async def test_a_checkpoint_is_loaded_from_its_directory(
    network: Any, processor: Any, model: ReplyModel, checkpoint: Path
) -> None:
    loaded = VoxtralModel(checkpoint, device="cpu", dtype="float32")
    with pytest.raises(RuntimeError, match="is not initialised: await its initialize"):
        await ask(loaded)
    await loaded.initialize()
    await loaded.initialize()
    assert loaded.is_initialised
    expected = await ask(model, temperature=0, max_new_tokens=8)
    assert text_of(await ask(loaded, temperature=0, max_new_tokens=8)) == text_of(expected)
    await loaded.aclose()
    with pytest.raises(NotInitialisedError):
        await ask(loaded)


async def test_tensor_array_file_and_clip_are_the_same_question(model: ReplyModel, tmp_path: Path) -> None:
    clip = Waveform(SAMPLES, 16_000)
    path = tmp_path / "question.wav"
    path.write_bytes(encode_wav(clip))
    sources = [SAMPLES, torch.from_numpy(SAMPLES)[None], path, str(path), path.read_bytes(), clip]
    said = [text_of(await ask(model, source, temperature=0, max_new_tokens=6)) for source in sources]
    assert said == [said[0]] * len(sources)
    assert said[0]


async def test_silence_asks_nothing_of_the_network(model: ReplyModel, network: Any) -> None:
    calls = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(1))
    (chunk,) = await ask(model, np.zeros(16_000, np.float32))
    assert (chunk.success, chunk.is_final, chunk.error) == (False, True, "no speech was heard")
    assert calls == []
    await ask(model, max_new_tokens=3)
    hook.remove()
    assert calls


async def test_what_cannot_be_is_refused(model: ReplyModel) -> None:
    with pytest.raises(InvalidInputError, match="mode: is 'chat'"):
        await ask(model, mode="chat")
    with pytest.raises(InvalidInputError, match="at most 30 s"):
        await ask(model, np.tile(SAMPLES, 11))


async def test_thirty_seconds_are_no_more_than_a_network_takes(model: ReplyModel) -> None:
    assert text_of(await ask(model, np.tile(SAMPLES, 10), max_new_tokens=4, temperature=0))


# --- endings --------------------------------------------------------------------------------------------


async def test_a_network_that_fails(model: ReplyModel, network: Any) -> None:
    steps = []

    def fail(*_: object) -> None:
        steps.append(1)
        if len(steps) > 30:
            raise RuntimeError("out of memory on the device")

    hook = network.lm_head.register_forward_pre_hook(fail)
    *before, last = await ask(model, temperature=0)
    hook.remove()
    assert len(before) >= 1
    assert (last.success, last.text, last.is_final) == (False, FALLBACK, True)
    assert last.error == "RuntimeError: out of memory on the device"
    assert answering() == 0
    assert text_of(await ask(model, temperature=0, max_new_tokens=3))


async def test_an_answer_that_takes_too_long(model: ReplyModel) -> None:
    *_, last = await ask(model, temperature=0, max_new_tokens=LONG, timeout_ms=700)
    assert (last.success, last.text, last.error) == (False, FALLBACK, "the answer took longer than 700 ms")
    assert answering() == 0


async def test_closing_stops_the_network_at_the_next_step(model: ReplyModel, network: Any) -> None:
    steps = []
    hook = network.register_forward_pre_hook(lambda *_: steps.append(1))
    before = tasks()
    async with aclosing(model.process_realtime_chunk_streaming(SAMPLES, "q", max_new_tokens=LONG)) as chunks:
        assert (await anext(chunks)).success
        assert answering() == 1
    assert answering() == 0
    assert len(steps) < LONG
    assert tasks() <= before
    hook.remove()


async def test_a_loop_that_is_left_stops_it_too(model: ReplyModel) -> None:
    before = tasks()
    async for _ in model.process_realtime_chunk_streaming(SAMPLES, "q", max_new_tokens=LONG):
        break
    await until(lambda: answering() == 0 and tasks() <= before)
    assert text_of(await ask(model, max_new_tokens=3))


async def test_a_prefill_is_left_at_the_next_layer(model: ReplyModel, network: Any) -> None:
    """Cancelled in the first layer of the audio tower, the second is not begun."""
    entered, leave, layers = threading.Event(), threading.Event(), []

    def first(*_: object) -> None:
        layers.append(1)
        entered.set()
        assert leave.wait(20)

    tower = network.model.audio_tower.layers
    hooks = [tower[0].self_attn.register_forward_pre_hook(first)]
    hooks.append(tower[1].self_attn.register_forward_pre_hook(lambda *_: layers.append(2)))
    reading = asyncio.create_task(ask(model))
    await until(entered.is_set)
    (generation,) = model._running  # type: ignore[attr-defined]
    reading.cancel()
    await until(generation._stopped.is_set)
    leave.set()
    await asyncio.wait({reading})
    assert answering() == 0
    assert reading.cancelled()
    assert layers == [1]
    for hook in hooks:
        hook.remove()


async def test_one_answer_after_the_other_in_the_order_they_came(model: ReplyModel, network: Any) -> None:
    most, ended = [0], []
    hook = network.register_forward_pre_hook(lambda *_: most.append(answering()))

    async def one(number: int) -> str:
        text = text_of(await ask(model, temperature=0, max_new_tokens=5 + number))
        ended.append(number)
        return text

    texts = await asyncio.gather(*(one(number) for number in range(4)))
    hook.remove()
    assert max(most) == 1
    assert sorted(ended) == list(range(4))
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


async def test_who_gives_up_in_line_holds_nobody_up(model: ReplyModel) -> None:
    first = model.process_realtime_chunk_streaming(SAMPLES, "q", max_new_tokens=LONG)
    await anext(first)
    second, third = (asyncio.create_task(ask(model, max_new_tokens=3)) for _ in range(2))
    await until(lambda: len(model._turn._waiters or ()) == 2)  # type: ignore[attr-defined]
    second.cancel()
    await asyncio.wait({second})
    assert answering() == 1
    await first.aclose()
    assert text_of(await third)


async def test_closing_the_model_ends_answers_with_a_cause(network: Any, processor: Any) -> None:
    model = VoxtralModel(network, processor)
    chunks = model.process_realtime_chunk_streaming(SAMPLES, "q", max_new_tokens=LONG, temperature=0)
    assert (await anext(chunks)).success
    waiting = asyncio.create_task(ask(model))
    await until(lambda: len(model._turn._waiters or ()) == 1)
    await model.aclose()
    assert answering() == 0
    *_, last = [chunk async for chunk in chunks]
    assert (last.success, last.text, last.error) == (False, FALLBACK, "the model was closed while it answered")
    (refused,) = await waiting
    assert refused.error is not None
    assert refused.error.endswith("was closed")


# --- loading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "bert"}'])
async def test_what_is_no_checkpoint(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    model = VoxtralModel(tmp_path)
    with pytest.raises(CheckpointError, match="is no Voxtral checkpoint that can be loaded"):
        await model.initialize()
    assert not model.is_initialised


async def test_a_device_that_is_not_there(checkpoint: Path) -> None:
    for option in ({"device": "cuda:99"}, {"dtype": "int4"}):
        with pytest.raises(InvalidInputError, match=next(iter(option))):
            await VoxtralModel(checkpoint, **option).initialize()


async def test_a_missing_package_is_one_clear_sentence(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxtral, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedByModelError, match=r"pip install 'taste-grpc\[voxtral\]'"):
        await VoxtralModel(checkpoint).initialize()


def test_a_network_without_its_processor(network: Any) -> None:
    with pytest.raises(ValueError, match="processor"):
        VoxtralModel(network)
