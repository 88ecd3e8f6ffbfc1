"""What only the asyncio client can do, or get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from fake_server import FakeServicer

from taste.v1 import common_pb2
from taste_grpc_client import (
    AsyncConversation,
    AsyncTasteClient,
    CallCancelledError,
    ConversationEndedError,
    ConversationError,
    ConversationEvent,
    InvalidArgumentError,
    MarkReached,
    Phase,
    PhaseChanged,
    SpeechChunk,
    text_segment,
)


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


# --- conversations ------------------------------------------------------------------------------------


async def until_mark(talk: AsyncConversation) -> list[ConversationEvent]:
    await talk.mark("here")
    events = []
    async for event in talk:
        if event == MarkReached("here"):
            break
        events.append(event)
    return events


async def test_who_stops_waiting_for_an_event_loses_none(client: AsyncTasteClient) -> None:
    async with client.converse() as talk:
        assert await anext(talk) == talk.started
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(talk), 0.02)
        await talk.say("hello")
        events = await until_mark(talk)
        assert (events[0], events[-1]) == (PhaseChanged(0, Phase.THINKING), PhaseChanged(1, Phase.IDLE))


async def test_a_sender_that_gives_up_leaves_the_conversation_alone(
    client: AsyncTasteClient, servicer: FakeServicer
) -> None:
    async with client.converse() as talk:
        await talk.say("deaf")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send(talk), 0.2)
        servicer.dialogue.hold.set()
        await talk.say("hello")
        assert (await until_mark(talk))[-1] == PhaseChanged(2, Phase.IDLE)
    sizes = {len(request.audio) for request in servicer.dialogue.received if request.audio}
    assert sizes == {6400}


async def test_nothing_runs_after_a_conversation(client: AsyncTasteClient, servicer: FakeServicer) -> None:
    for order in ("hello", "deaf", "flood", "fail INTERNAL"):
        async with client.converse() as talk, asyncio.TaskGroup() as group:
            await talk.say(order)
            readers = [group.create_task(read(talk)), group.create_task(send(talk))]
            await asyncio.sleep(0.05)
            await talk.close()
        assert all(task.done() for task in readers)
        await nothing_runs()
        servicer.dialogue.hold.set()


async def nothing_runs() -> None:
    """gRPC's own task, which takes note of the status, may have a step left."""
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)


async def read(talk: AsyncConversation) -> None:
    try:
        async for _ in talk:
            pass
    except (CallCancelledError, ConversationError):
        pass


async def send(talk: AsyncConversation) -> None:
    try:
        while True:
            await talk.send_audio(bytes(32_000))
    except ConversationEndedError:
        pass


async def test_cancelling_who_holds_a_conversation_ends_it(client: AsyncTasteClient, servicer: FakeServicer) -> None:
    opened = asyncio.Event()

    async def hold() -> None:
        async with client.converse() as talk:
            opened.set()
            async for _ in talk:
                pass

    task = asyncio.create_task(hold())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(servicer.dialogue.ended.wait, 10)
    await nothing_runs()


async def test_opening_can_be_cancelled(client: AsyncTasteClient, servicer: FakeServicer) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.converse(system_prompt="mute").open(), 0.2)
    assert await asyncio.to_thread(servicer.dialogue.ended.wait, 10)
    await nothing_runs()


async def test_a_conversation_is_read_and_sent_to_by_tasks_of_their_own(client: AsyncTasteClient) -> None:
    """The shape of the documentation."""
    chunks: list[SpeechChunk] = []

    async def listen(talk: AsyncConversation) -> None:
        async for event in talk:
            match event:
                case SpeechChunk():
                    chunks.append(event)
                case PhaseChanged(phase=Phase.COMPLETE):
                    await talk.half_close()

    async with client.converse() as talk, asyncio.TaskGroup() as group:
        group.create_task(listen(talk))
        for _ in range(10):
            await talk.send_audio(bytes(640))
        await talk.say("hello")
    assert [chunk.seq for chunk in chunks] == [0, 1]
