from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from echo_server import EchoServicer

from taste.v1 import common_pb2
from taste_grpc_client import (
    AsyncTasteClient,
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    text_segment,
)


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncTasteClient]:
    async with AsyncTasteClient(target) as opened:
        yield opened


async def test_unary_calls_and_errors(client: AsyncTasteClient) -> None:
    assert (await client.model_info()).model_id == "echo"
    assert (await client.tokenize(b"RIFF....WAVE", text="yes")).text == "yes"
    with pytest.raises(InvalidArgumentError) as caught:
        await client.tokenize(b"RIFF....WAVE", text="")
    assert caught.value.violations == (FieldViolation("text", "is empty"),)
    assert caught.value.request_id == "r-7"
    with pytest.raises(DeadlineExceededError):
        await client.model_info(timeout_s=0.2)


async def test_generate_into_detokenize(client: AsyncTasteClient) -> None:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        async for result in client.generate([text_segment("x")], seed=3):
            yield text_segment(result.segment.tokens.text)

    chunks = [chunk async for chunk in client.detokenize(segments(), speaker=[1.0])]
    assert [chunk.audio for chunk in chunks] == [b"w0", b"w1", b"w2"]
    assert [chunk.format.sample_rate_hz for chunk in chunks] == [24000] * 3
    plain = [chunk async for chunk in client.detokenize([text_segment("a")], speaker=[1.0])]
    assert [chunk.audio for chunk in plain] == [b"a"]


async def test_leaving_the_block_ends_the_call_on_the_server(client: AsyncTasteClient, servicer: EchoServicer) -> None:
    async with client.generate([text_segment("hi")]) as stream:
        assert (await anext(stream)).index == 0
        assert not servicer.cancelled.is_set()
    assert await asyncio.to_thread(servicer.cancelled.wait, 10)
    with pytest.raises(CallCancelledError):
        async for _ in stream:
            pass


async def test_cancelling_the_reader_ends_the_call_on_the_server(
    client: AsyncTasteClient, servicer: EchoServicer
) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate([text_segment("hi")]):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(servicer.cancelled.wait, 10)


async def test_what_the_segments_raise_reaches_the_reader(client: AsyncTasteClient, servicer: EchoServicer) -> None:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        yield text_segment("one")
        assert await asyncio.to_thread(servicer.speaking.wait, 10)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        async for _ in client.detokenize(segments(), speaker=[1.0]):
            pass
    assert await asyncio.to_thread(servicer.cancelled.wait, 10)
