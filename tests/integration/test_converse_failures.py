"""Live conversations whose language model or voice is a process that stalls or dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue.local import LocalDialogue
from taste_grpc.speech import PiperVoice
from tests.support.conversing import TYPED, Talk, start, talking
from tests.support.processes import Endpoint, endpoint
from tests.support.recording_engine import RecordingEngine
from tests.support.served import Served, served

KEY = "sk-very-secret-0123456789"


@contextmanager
def conversing(url: str, **stream: Any) -> Iterator[Served]:
    """A server whose language model is the endpoint at `url`."""
    settings = {"log_latency": False, "language_model": "openai", "openai_model": "smollm2", **stream}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        patch.setenv("OPENAI_API_KEY", KEY)
        with served(RecordingEngine, make_dialogue=LocalDialogue, stream=settings) as running:
            yield running


async def tasks(server: Served) -> Counter[str]:
    """Tasks of the server, by name of their coroutine."""

    async def look() -> Counter[str]:
        running = [task.get_coro() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return Counter(getattr(coroutine, "__qualname__", type(coroutine).__name__) for coroutine in running)

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(look(), server.loop))


async def settled(server: Served, before: Counter[str]) -> None:
    """Until no task is left that was not there before."""
    async with asyncio.timeout(10):
        while not (await tasks(server)) <= before:
            await asyncio.sleep(0.01)


async def fails(talk: Talk, turn: int, text: str) -> Any:
    """The error of a typed turn, after which the conversation goes on."""
    await talk.type(text)
    await talk.until_idle(turn)
    assert talk.phases(turn)[-1] == "ERROR"
    assert not talk.is_done(turn)
    (error,) = talk.all("error", turn)
    assert error.recoverable
    assert KEY not in error.message
    return error


@pytest.fixture(scope="module")
def odd() -> Iterator[Endpoint]:
    """An endpoint that does to each turn what the turn asks for."""
    with endpoint("tests.support.odd_endpoint") as found:
        yield found


@pytest.fixture(scope="module")
def server(odd: Endpoint) -> Iterator[Served]:
    limits = {"llm_first_token_timeout_s": 2.0, "llm_timeout_s": 3.0, "tts_timeout_s": 1.0}
    with conversing(f"{odd.url}/asked", **limits) as running:
        yield running


async def until_gone(odd: Endpoint) -> None:
    """Until the server has closed its connection: it does not wait for the rest."""
    while not (await asyncio.to_thread(odd.line)).startswith("gone"):
        pass


@pytest.mark.parametrize(
    ("how", "phases", "message"),
    [
        ("silent", ["THINKING", "ERROR"], "the language model took longer than 2 s for its first token"),
        ("stalls", ["THINKING", "RESPONDING", "ERROR"], "the language model took longer than 3 s for its answer"),
    ],
)
async def test_a_language_model_that_stalls_fails_its_turn_and_no_more(
    server: Served, odd: Endpoint, how: str, phases: list[str], message: str
) -> None:
    async with talking(server.address) as talk:
        before = await tasks(server)
        for turn in range(2):
            error = await fails(talk, turn, how)
            assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_LLM_TIMEOUT
            assert error.message == message
            assert talk.phases(turn) == ["IDLE"] * bool(turn) + phases
            await until_gone(odd)
        await settled(server, before)


async def test_a_language_model_that_fails_costs_a_turn(odd: Endpoint) -> None:
    with conversing(f"{odd.url}/asked") as server:  # which takes its time: what fails is tried again
        async with talking(server.address) as talk:
            for turn, (how, phrase) in enumerate(
                (("500", "no luck"), ("complains", "out of memory"), ("page", "no chat"))
            ):
                error = await fails(talk, turn, how)
                assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_LLM_FAIL
                assert phrase in error.message


async def test_a_voice_that_hangs_and_dies_costs_phrases_and_not_the_conversation(server: Served) -> None:
    dialogue = server.live.server._dialogue
    assert isinstance(dialogue, LocalDialogue)
    voice = dialogue.voice
    assert isinstance(voice, PiperVoice)
    (pid,) = voice.pids
    async with talking(server.address) as talk:
        os.kill(pid, signal.SIGSTOP)
        try:
            await talk.type("All is well. And so am I.")
            await talk.until_idle(0)
        finally:
            os.kill(pid, signal.SIGKILL)
        errors = talk.all("error", 0)
        assert len(errors) == 2
        assert {error.code for error in errors} == {dialogue_pb2.CONVERSE_ERROR_CODE_TTS_FAIL}
        assert all(error.recoverable for error in errors)
        assert errors[0].message == "a phrase of 12 characters was left out: the voice took longer than 1 s"
        assert talk.phases(0)[-1] == "COMPLETE"
        assert talk.is_done(0)
        assert talk.all("tts_complete", 0)[0].chunks == 0
        turn = 1
        while not talk.all("tts_chunk"):  # the new process may still be loading
            await talk.type("Well.")
            await talk.until_idle(turn)
            assert talk.is_done(turn)
            turn += 1
        assert voice.pids != [pid]


async def test_an_endpoint_answers_and_remembers_until_it_is_gone() -> None:
    async with AsyncExitStack() as stack:
        with endpoint("tests.support.llama_endpoint", KEY) as llama:
            voice = "espeak" if shutil.which("espeak-ng") else "auto"  # starts faster
            server = stack.enter_context(conversing(llama.url, voice=voice, temperature=0))
            talk = await stack.enter_async_context(talking(server.address, start(options={"max_new_tokens": 12})))
            await talk.type("What is the capital of France?")
            await talk.until_idle(0)
            assert talk.phases(0) == TYPED[:-1]
            assert "Paris" in talk.answer(0)
            assert talk.is_done(0)
            assert talk.audio(0).any()
            await talk.type("Which city did I ask about?")
            await talk.until_idle(1)
            assert talk.is_done(1)
            assert not talk.all("error")
        error = await fails(talk, 2, "Are you there?")
        assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_LLM_FAIL
        assert "cannot be reached" in error.message
