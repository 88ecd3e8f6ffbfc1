"""Language models behind endpoints that are processes of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec

import pytest

from taste_grpc.dialogue import openai_llm
from taste_grpc.dialogue.language_model import LanguageModel, Message, Sampling
from taste_grpc.dialogue.openai_llm import OpenAiLanguageModel
from taste_grpc.errors import LanguageModelError, UnsupportedByModelError
from tests.support.processes import Endpoint, endpoint

KEY = "sk-very-secret-0123456789"
FRANCE = [Message("system", "You are a helpful assistant."), Message("user", "What is the capital of France?")]
STORY = [Message("user", "Tell me a very long story about a dragon and a knight.")]
GREEDY = Sampling(max_new_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def llama() -> Iterator[Endpoint]:
    """A real endpoint that wants the key."""
    with endpoint("tests.support.llama_endpoint", KEY) as found:
        yield found


@pytest.fixture(scope="module")
def odd() -> Iterator[Endpoint]:
    """An endpoint that fails as its path says."""
    with endpoint("tests.support.odd_endpoint") as found:
        yield found


@asynccontextmanager
async def started(url: str, key: str | None = KEY, context_tokens: int = 8_192) -> AsyncIterator[LanguageModel]:
    """A model that leaves no task behind."""
    before = asyncio.all_tasks()
    model = OpenAiLanguageModel("smollm2", url, key, context_tokens)
    await model.start()
    try:
        yield model
    finally:
        await model.aclose()
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.001)


async def all_of(answer: AsyncGenerator[str]) -> list[str]:
    return [piece async for piece in answer]


async def said_by(odd: Endpoint, line: str) -> None:
    """Until it has printed `line`; others before it are of tests before this one."""
    while await asyncio.to_thread(odd.line) != line:
        pass


async def refused(url: str, key: str | None = KEY, messages: Sequence[Message] = FRANCE) -> str:
    """What the error says."""
    async with started(url, key) as model:
        with pytest.raises(LanguageModelError) as raised:
            await all_of(model.answer(messages, GREEDY))
    assert raised.value.__cause__ is None
    return str(raised.value)


async def test_an_answer_comes_in_pieces(llama: Endpoint) -> None:
    async with started(llama.url) as model:
        pieces = await all_of(model.answer(FRANCE, GREEDY))
        assert len(pieces) >= 5
        assert all(pieces)
        assert "".join(pieces) == "The capital of France is Paris."


async def test_answers_share_a_client_and_do_not_mix(llama: Endpoint) -> None:
    asked = [
        [FRANCE[0], Message("user", text)] for text in ("Tell me about cats.", "What is a star?", "Who was Caesar?")
    ]
    async with started(llama.url) as model:
        alone = [await all_of(model.answer(messages, Sampling(8, 0))) for messages in asked]
        together = await asyncio.gather(*(all_of(model.answer(messages, Sampling(8, 0))) for messages in asked))
        assert list(together) == alone


async def test_who_stops_reading_ends_the_request_and_the_next_is_answered(llama: Endpoint) -> None:
    async with started(llama.url) as model:
        for _ in range(4):  # twice as many as it has slots
            answer = model.answer(STORY, Sampling(max_new_tokens=900, temperature=0))
            assert await anext(answer)
            await answer.aclose()
        assert "".join(await all_of(model.answer(FRANCE, GREEDY))) == "The capital of France is Paris."


@pytest.mark.parametrize("path", ["silent", "stalls"])
async def test_a_caller_who_waits_no_longer_closes_the_connection(odd: Endpoint, path: str) -> None:
    arrived = asyncio.Event()
    if path == "silent":
        arrived.set()

    async def read(model: LanguageModel) -> None:
        async for piece in model.answer(FRANCE, GREEDY):
            assert piece == "Well"
            arrived.set()

    async with started(f"{odd.url}/{path}/v1") as model, asyncio.timeout(60):
        reading = asyncio.create_task(read(model))
        await said_by(odd, f"asked /{path}/v1/chat/completions")
        await arrived.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await said_by(odd, f"gone /{path}/v1/chat/completions")


async def test_a_closed_iterator_closes_the_connection(odd: Endpoint) -> None:
    async with started(f"{odd.url}/stalls/v1") as model:
        answer = model.answer(FRANCE, GREEDY)
        assert await anext(answer) == "Well"
        await answer.aclose()
        await said_by(odd, "asked /stalls/v1/chat/completions")
        await said_by(odd, "gone /stalls/v1/chat/completions")


async def test_closing_the_model_ends_the_answers_under_way(odd: Endpoint) -> None:
    async with started(f"{odd.url}/stalls/v1") as model:
        answer = model.answer(FRANCE, GREEDY)
        assert await anext(answer) == "Well"
        await said_by(odd, "asked /stalls/v1/chat/completions")
        reading = asyncio.create_task(anext(answer))
        await asyncio.sleep(0)
        await model.aclose()
        with pytest.raises(LanguageModelError):
            await reading
        with pytest.raises(LanguageModelError, match="not started"):
            await all_of(model.answer(FRANCE, GREEDY))
    await said_by(odd, "gone /stalls/v1/chat/completions")


@pytest.mark.parametrize("path", ["400", "404", "429", "500", "503", "breaks", "complains", "garbage", "page"])
async def test_what_goes_wrong_is_one_sentence_without_the_key(
    odd: Endpoint, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    said = await refused(f"{odd.url}/{path}/v1")
    sentence = {
        "breaks": "broke off its answer: ",
        "complains": "answered with an error: out of memory",
        "garbage": "answered with an error",
        "page": "answered with no chat completion; is its URL right?",
    }.get(path, f"answered with status {path}")
    assert sentence in said
    assert "\n" not in said
    assert KEY not in said + caplog.text


async def test_a_wrong_key_is_refused(llama: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = await refused(llama.url, "sk-another-secret")
    assert "answered with status 401" in said
    assert "secret" not in said + caplog.text
    assert "answered with status 401" in await refused(llama.url, None)


async def test_nobody_there_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    said = await refused(f"http://127.0.0.1:{port}/v1")
    assert said.startswith(f"the language model's endpoint 127.0.0.1:{port} cannot be reached")
    assert KEY not in said + caplog.text


async def test_the_request_says_what_was_asked_for_and_leaves_out_the_oldest_turns(odd: Endpoint) -> None:
    said = [Message("assistant" if at % 2 else "user", f"{at:02d}" * 15) for at in range(9)]
    async with started(f"{odd.url}/echo/v1", key=None, context_tokens=100) as model:
        sampling = Sampling(max_new_tokens=20, temperature=0.5, top_p=0.4, seed=3)
        (sent,) = await all_of(model.answer([FRANCE[0], *said], sampling))
    request = json.loads(sent)
    assert request == {
        "model": "smollm2",
        "messages": [{"role": message.role, "content": message.text} for message in (FRANCE[0], *said[-3:])],
        "stream": True,
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.4,
        "seed": 3,
    }


async def test_a_message_that_is_too_long_is_not_sent(odd: Endpoint) -> None:
    said = await refused(f"{odd.url}/echo/v1", messages=[Message("user", "x" * 30_000)])
    assert said == "the last message has 10008 tokens, and the language model has room for 8168"


async def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_llm, "find_spec", lambda name: None if name == "openai" else find_spec(name))
    with pytest.raises(UnsupportedByModelError, match=r"pip install 'taste-grpc\[openai\]'"):
        await OpenAiLanguageModel("m").start()
