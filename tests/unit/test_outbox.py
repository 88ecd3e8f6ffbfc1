"""Events on their way to a client, also to one that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest_asyncio

from taste_grpc.dialogue.events import LlmToken, MarkReached, Notice, PartialTranscript, ServerEvent, SpeechChunk
from taste_grpc.dialogue.outbox import CLEAR, CLEAR_EVENTS, FULL_EVENTS, MOST_EVENTS, SLOW, Outbox
from tests.support.scripted import passes, until


def chunk(seq: int, turn: int = 0) -> SpeechChunk:
    return SpeechChunk(turn, seq, np.zeros(160, np.float32), 16_000, 160 * seq, 0, None)


def marks(count: int, first: int = 0) -> list[MarkReached]:
    return [MarkReached(str(number)) for number in range(first, first + count)]


class Reader:
    def __init__(self, outbox: Outbox) -> None:
        self._events = outbox.events()

    async def read(self, count: int) -> list[ServerEvent]:
        async with asyncio.timeout(30):
            return [await anext(self._events) for _ in range(count)]

    async def rest(self) -> list[ServerEvent]:
        async with asyncio.timeout(30):
            return [event async for event in self._events]

    async def aclose(self) -> None:
        await self._events.aclose()


@pytest_asyncio.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = Outbox(slow_after_s=60.0)
    yield outbox
    outbox.close()


@pytest_asyncio.fixture
async def reader(outbox: Outbox) -> AsyncIterator[Reader]:
    reader = Reader(outbox)
    yield reader
    await reader.aclose()


async def test_events_come_in_order_also_those_put_in_while_one_waits(outbox: Outbox, reader: Reader) -> None:
    events = marks(5)
    for event in events[:2]:
        outbox.put(event)
    assert await reader.read(2) == events[:2]
    waiting = asyncio.create_task(reader.read(3))
    await passes()
    for event in events[2:]:
        outbox.put(event)
    assert await waiting == events[2:]


async def test_a_closed_one_is_read_to_its_end_and_takes_nothing_more(outbox: Outbox, reader: Reader) -> None:
    for event in marks(3):
        outbox.put(event)
    outbox.close()
    outbox.put(MarkReached("late"))
    assert await reader.rest() == marks(3)


async def test_closing_wakes_who_reads_and_who_waits_for_room(outbox: Outbox, reader: Reader) -> None:
    waiting = asyncio.create_task(reader.rest())
    await passes()
    outbox.close()
    assert await waiting == []
    full = Outbox()
    for event in marks(MOST_EVENTS):
        full.put(event)
    makers = [asyncio.create_task(full.room()), asyncio.create_task(full.bearable())]
    await passes()
    assert not any(maker.done() for maker in makers)
    full.close()
    await asyncio.gather(*makers)


async def test_makers_of_the_answer_wait_for_a_client_that_is_behind(outbox: Outbox, reader: Reader) -> None:
    for event in marks(FULL_EVENTS - 1):
        outbox.put(event)
    await outbox.room()
    outbox.put(MarkReached("full"))
    maker = asyncio.create_task(outbox.room())
    await reader.read(FULL_EVENTS - CLEAR_EVENTS - 1)
    await passes()
    assert not maker.done()
    await reader.read(1)
    await maker


async def test_a_slow_client_is_told_once_and_once_more_when_it_has_caught_up() -> None:
    told: list[str] = []
    outbox = Outbox(slow_after_s=0.0, on_notice=told.append)
    reader = Reader(outbox)
    tokens = [LlmToken(0, str(number), done=False) for number in range(30)]
    for token in tokens[:20]:
        outbox.put(token)
    await until(lambda: outbox.is_slow)
    for token in tokens[20:]:
        outbox.put(token)
    await passes()
    read = await reader.read(31)
    assert not outbox.is_slow
    outbox.close()
    read += await reader.rest()
    assert [event for event in read if not isinstance(event, Notice)] == tokens
    assert [event for event in read if isinstance(event, Notice)] == [Notice(None, SLOW), Notice(None, CLEAR)]
    assert told == [SLOW, CLEAR]


async def test_while_it_is_slow_only_the_latest_partial_waits_and_all_else_is_kept() -> None:
    outbox = Outbox(slow_after_s=0.0)
    reader = Reader(outbox)
    others = marks(FULL_EVENTS)
    for event in others:
        outbox.put(event)
    await until(lambda: outbox.is_slow)
    for number in range(10):
        outbox.put(PartialTranscript(0, f"partial {number}", number))
        outbox.put(LlmToken(0, str(number), done=False))
    outbox.close()
    read = await reader.rest()
    assert [event for event in read if isinstance(event, PartialTranscript)] == [PartialTranscript(0, "partial 9", 9)]
    assert [event for event in read if isinstance(event, MarkReached)] == others
    assert [event.text for event in read if isinstance(event, LlmToken)] == [str(number) for number in range(10)]
    at = read.index(PartialTranscript(0, "partial 9", 9))
    assert read[at - 1] == LlmToken(0, "8", done=False)
    assert read[at + 1] == LlmToken(0, "9", done=False)


async def test_a_client_that_keeps_up_gets_every_partial(outbox: Outbox, reader: Reader) -> None:
    partials = [PartialTranscript(0, str(number), number) for number in range(2 * FULL_EVENTS)]
    read: list[ServerEvent] = []
    for partial in partials:
        outbox.put(partial)
        read += await reader.read(1)
    assert read == partials


async def test_one_that_was_full_for_a_moment_is_not_slow() -> None:
    outbox = Outbox(slow_after_s=60.0)
    reader = Reader(outbox)
    for event in marks(2 * FULL_EVENTS):
        outbox.put(event)
    assert await reader.read(2 * FULL_EVENTS) == marks(2 * FULL_EVENTS)
    assert outbox.unread == 0
    outbox.close()
    assert await reader.rest() == []


async def test_speech_that_nobody_will_hear_is_left_out_and_makes_room(outbox: Outbox, reader: Reader) -> None:
    chunks = [chunk(number) for number in range(FULL_EVENTS)]
    outbox.put(MarkReached("before"))
    for each in chunks:
        outbox.put(each)
    maker = asyncio.create_task(outbox.room())
    await passes()
    assert not maker.done()
    assert outbox.drop_speech() == chunks
    await maker
    outbox.put(MarkReached("after"))
    outbox.close()
    read = [event for event in await reader.rest() if not isinstance(event, Notice)]
    assert read == [MarkReached("before"), MarkReached("after")]


async def test_a_slow_client_that_has_not_read_has_not_caught_up_when_speech_is_left_out() -> None:
    noticed: list[str] = []
    outbox = Outbox(slow_after_s=0.0, on_notice=noticed.append)
    reader = Reader(outbox)
    for number in range(FULL_EVENTS):
        outbox.put(chunk(number))
    await until(lambda: outbox.is_slow)
    outbox.drop_speech()
    await outbox.room()
    partials = [PartialTranscript(1, str(number), number) for number in range(FULL_EVENTS)]
    for partial in partials:
        outbox.put(partial)
    for mark in marks(FULL_EVENTS):
        outbox.put(mark)
    await passes()
    assert noticed == [SLOW]
    assert await reader.read(2) == [Notice(None, SLOW), partials[-1]]
    outbox.put(MarkReached("last"))
    assert await reader.read(FULL_EVENTS + 2) == [*marks(FULL_EVENTS), MarkReached("last"), Notice(None, CLEAR)]
    assert noticed == [SLOW, CLEAR]
    outbox.close()
    await reader.aclose()


async def test_what_is_unread_can_be_forgotten(outbox: Outbox, reader: Reader) -> None:
    outbox.put(MarkReached("unread"))
    outbox.close()
    outbox.clear()
    assert outbox.unread == 0
    assert await reader.rest() == []


async def test_so_much_that_the_client_has_to_read_first(outbox: Outbox, reader: Reader) -> None:
    for event in marks(MOST_EVENTS - 1):
        outbox.put(event)
    await outbox.bearable()
    outbox.put(MarkReached("too many"))
    sender = asyncio.create_task(outbox.bearable())
    await reader.read(MOST_EVENTS // 4)
    await passes()
    assert not sender.done()
    await reader.read(MOST_EVENTS // 2)
    await sender
