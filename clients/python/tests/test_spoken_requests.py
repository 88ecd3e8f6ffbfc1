"""The requests of a Detokenize call, over several attempts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

from taste.v1.common_pb2 import Segment
from taste.v1.taste_pb2 import DetokenizeConfig, DetokenizeRequest
from taste_grpc_client import text_segment
from taste_grpc_client.spoken_requests import AsyncRequests, BlockingRequests

CONFIG = DetokenizeConfig(seed=7)
PLENTY = 1_000_000


def text(request: DetokenizeRequest) -> str:
    return "config" if request.HasField("config") else request.segment.text


def test_a_segment_that_a_failed_attempt_asked_for_goes_to_the_next_one() -> None:
    asked, release = threading.Event(), threading.Event()

    def segments() -> Iterator[Segment]:
        asked.set()
        assert release.wait(10)
        yield text_segment("a")
        yield text_segment("b")

    requests = BlockingRequests(CONFIG, segments(), PLENTY)
    first = iter(requests)
    assert text(next(first)) == "config"
    late: list[DetokenizeRequest] = []
    thread = threading.Thread(target=lambda: late.extend(first))
    thread.start()
    assert asked.wait(10)
    second = iter(requests)
    taken = [text(next(second))]
    release.set()
    taken += [text(request) for request in second]
    thread.join(10)
    assert taken == ["config", "a", "b"]
    assert late == []


async def test_the_end_of_an_attempt_does_not_disturb_what_the_segments_are_doing() -> None:
    release = asyncio.Event()

    async def segments() -> AsyncIterator[Segment]:
        await release.wait()
        yield text_segment("a")

    requests = AsyncRequests(CONFIG, segments(), PLENTY)
    first = aiter(requests)
    assert text(await anext(first)) == "config"
    waiting = asyncio.ensure_future(anext(first))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    release.set()
    assert [text(request) async for request in requests] == ["config", "a"]


async def test_closing_cancels_what_the_segments_are_doing() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def segments() -> AsyncIterator[Segment]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        yield text_segment("never")

    requests = AsyncRequests(CONFIG, segments(), PLENTY)
    attempt = aiter(requests)
    assert text(await anext(attempt)) == "config"
    waiting = asyncio.ensure_future(anext(attempt, None))
    await started.wait()
    requests.close()
    assert await waiting is None
    assert stopped.is_set()


def test_what_is_settled_is_not_kept() -> None:
    requests = BlockingRequests(CONFIG, map(text_segment, "abc"), PLENTY)
    attempt = iter(requests)
    assert [text(next(attempt)) for _ in range(2)] == ["config", "a"]
    assert requests.can_repeat
    requests.settle()
    assert [text(request) for request in attempt] == ["b", "c"]
    assert not requests.can_repeat
    assert [request for request in requests._taken if request is not None] == requests._taken[:2]


def test_what_exceeds_the_room_is_not_kept() -> None:
    requests = BlockingRequests(CONFIG, map(text_segment, ["a" * 100, "b", "c"]), 100)
    assert len(list(requests)) == 4
    assert not requests.can_repeat
    assert list(iter(requests)) == [DetokenizeRequest(config=CONFIG)]
