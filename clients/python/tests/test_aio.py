"""What only the asyncio client can do, or get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from fake_server import FakeServicer

from taste.v1 import common_pb2
from taste_grpc_client import AsyncTasteClient, CallCancelledError, InvalidArgumentError, text_segment


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncTasteClient]:
    async with AsyncTasteClient(target) as opened:
        yield opened


async def test_segments_may_come_asynchronously(client: AsyncTasteClient) -> None:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        async for result in client.generate([text_segment("x")], seed=3):
            yield text_segment(result.segment.tokens.text)

    chunks = [chunk async for chunk in client.detokenize(segments(), speaker=[1.0])]
    assert [chunk.audio for chunk in chunks] == [b"w0", b"w1", b"w2"]
    assert [chunk.format.sample_rate_hz for chunk in chunks] == [24000] * 3


@pytest.mark.parametrize("method", ["generate", "speak"])
async def test_cancelling_the_reader_ends_the_call_on_the_server(
    client: AsyncTasteClient, servicer: FakeServicer, method: str
) -> None:
    started = asyncio.Event()

    async def read() -> None:
        segments = [text_segment("hi")]
        stream = client.generate(segments) if method == "generate" else client.speak(segments, speaker=[1.0])
        async for _ in stream:
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for name in ["Generate"] if method == "generate" else servicer.ended:
        assert await asyncio.to_thread(servicer.ended[name].wait, 10)


async def test_a_call_that_others_cancel_does_not_cancel_the_reader(client: AsyncTasteClient) -> None:
    stream = client.detokenize(forever(), speaker=[1.0])
    asyncio.get_running_loop().call_soon(stream.cancel)
    with pytest.raises(CallCancelledError):
        await anext(stream)
    waiting = asyncio.create_task(client.model_info(timeout_s=4))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(CallCancelledError):
        await waiting


async def forever() -> AsyncIterator[common_pb2.Segment]:
    await asyncio.Event().wait()
    yield text_segment("never")


async def test_what_asynchronous_segments_raise_reaches_the_reader(
    client: AsyncTasteClient, servicer: FakeServicer
) -> None:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        yield text_segment("one")
        assert await asyncio.to_thread(servicer.speaking.wait, 10)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        async for _ in client.detokenize(segments(), speaker=[1.0]):
            pass
    assert await asyncio.to_thread(servicer.ended["Detokenize"].wait, 10)


async def test_a_refusal_is_known_also_when_it_cuts_off_a_request(client: AsyncTasteClient) -> None:
    """grpc.aio alone reports INTERNAL then, in most rounds."""
    for _ in range(30):
        with pytest.raises(InvalidArgumentError, match="segment: is bad") as refused:
            async for _ in client.detokenize([text_segment("bad"), *[text_segment("x" * 100_000)] * 20], speaker=[1.0]):
                pass
        assert refused.value.request_id == "r-7"


async def test_a_channel_that_was_given_stays_open(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        for _ in range(2):
            async with AsyncTasteClient(channel=channel) as client:
                assert (await client.model_info()).vq_dim == 2
