"""The requests of a Detokenize call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TypeAlias

from taste.v1.common_pb2 import Segment
from taste.v1.taste_pb2 import DetokenizeConfig, DetokenizeRequest
from taste_grpc_client.spoken_text import SpokenText

Spoken: TypeAlias = "SpokenText | Segment | Iterable[Segment | SpokenText]"
"""What `detokenize` speaks: one, or several as they come."""

AnySpoken: TypeAlias = "Spoken | AsyncIterable[Segment | SpokenText]"
"""The same, for `AsyncTasteClient`."""


class SpokenRequests:
    """The requests of one Detokenize call, for as many attempts as it takes.

    gRPC reads them beside the caller, on a thread or in a task of its own for each attempt. So what the caller's
    iterable raises is kept in `failure`, ends the call, and is raised where the caller reads. Each segment is asked
    for once, whatever the attempts: requests are kept until `settle`, up to `keep_bytes`.

    Iterated with `for` or with `async for`, once for each attempt; the newest is the one that counts.
    """

    def __init__(self, config: DetokenizeConfig, segments: AnySpoken, keep_bytes: int) -> None:
        self.failure: BaseException | None = None
        self._segments = [segments] if isinstance(segments, Segment | SpokenText) else segments
        self._end: Callable[[], object] | None = None
        self._attempt = 0
        self._taken: list[DetokenizeRequest | None] = []
        self._room = keep_bytes
        self._settled = False
        self._exhausted = False
        self._keep(DetokenizeRequest(config=config))

    @property
    def can_repeat(self) -> bool:
        """Whether another attempt can be made of them: nothing is missing, and they have not failed."""
        return self._room >= 0 and not self._settled and self.failure is None

    def settle(self) -> None:
        """There will be no further attempt: what has been sent need not be kept."""
        self._settled = True

    def bind(self, end: Callable[[], object]) -> None:
        """Tells how to end the newest attempt; the caller's iterable may have failed before that was known."""
        self._end = end
        if self.failure is not None:
            end()

    def _begin(self) -> int:
        self._attempt += 1
        return self._attempt

    def _keep(self, request: DetokenizeRequest) -> None:
        self._taken.append(request)
        self._room -= request.ByteSize()

    def _hand_over(self, place: int) -> DetokenizeRequest | None:
        """The request at `place`; None when it was handed over already and is not kept."""
        request = self._taken[place]
        if not self.can_repeat:
            self._taken[place] = None
        return request

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._exhausted = True
        if self._end is not None:
            self._end()


class BlockingRequests(SpokenRequests):
    """For threads."""

    def __init__(self, config: DetokenizeConfig, segments: AnySpoken, keep_bytes: int) -> None:
        super().__init__(config, segments, keep_bytes)
        self._source: Iterator[Segment | SpokenText] | None = None
        # Held while the caller's iterable is asked: also by the thread of an attempt that has failed meanwhile, whose
        # segment then goes to the next attempt.
        self._asking = threading.Lock()
        # Held while a request is handed over, so that it is to the newest attempt.
        self._handing = threading.Lock()

    def __iter__(self) -> Iterator[DetokenizeRequest]:
        with self._handing:
            attempt = self._begin()
        place = 0
        while True:
            with self._asking if place == len(self._taken) else nullcontext():
                if attempt == self._attempt and place == len(self._taken) and not self._exhausted:
                    self._ask()
            with self._handing:
                request = self._hand_over(place) if attempt == self._attempt and place < len(self._taken) else None
            if request is None:
                return
            yield request
            place += 1

    def _ask(self) -> None:
        try:
            if self._source is None:
                if isinstance(self._segments, AsyncIterable):
                    raise TypeError("segments: an asynchronous iterable is for AsyncTasteClient")
                self._source = iter(self._segments)
            self._keep(_request(next(self._source)))
        except StopIteration:
            self._exhausted = True
        except BaseException as error:  # SystemExit on gRPC's thread would leave the reader waiting for ever
            self._fail(error)


class AsyncRequests(SpokenRequests):
    """For one event loop."""

    def __init__(self, config: DetokenizeConfig, segments: AnySpoken, keep_bytes: int) -> None:
        super().__init__(config, segments, keep_bytes)
        self._source: AsyncIterator[Segment | SpokenText] | None = None
        # A task, so that the end of an attempt does not cancel what the caller's iterable is doing.
        self._asking: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[DetokenizeRequest]:
        attempt, place = self._begin(), 0
        while True:
            while place == len(self._taken) and not self._exhausted:
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask())
                await asyncio.wait({self._asking})
            if attempt != self._attempt or place == len(self._taken):
                return
            request = self._hand_over(place)
            if request is None:
                return
            yield request
            place += 1

    async def _ask(self) -> None:
        try:
            if self._source is None:
                self._source = _each(self._segments)
            self._keep(_request(await anext(self._source)))
        except StopAsyncIteration:
            self._exhausted = True
        except asyncio.CancelledError as error:
            if self._exhausted:  # `close` did it
                raise
            self._fail(error)
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        """The call has ended: what the caller's iterable is doing is cancelled."""
        self._exhausted = True
        if self._asking is not None:
            self._asking.cancel()


async def _each(
    segments: AsyncIterable[Segment | SpokenText] | Iterable[Segment | SpokenText],
) -> AsyncIterator[Segment | SpokenText]:
    if isinstance(segments, AsyncIterable):
        async for segment in segments:
            yield segment
    else:
        for segment in segments:
            yield segment


def _request(segment: object) -> DetokenizeRequest:
    if isinstance(segment, SpokenText):
        segment = segment.segment()
    if not isinstance(segment, Segment):
        raise TypeError(f"segments: a Segment or a SpokenText was expected, not {type(segment).__name__}")
    return DetokenizeRequest(segment=segment)
