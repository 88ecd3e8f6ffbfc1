"""What the streams of both clients keep account of."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TypeAlias

from taste.v1.common_pb2 import AudioFormat, Segment
from taste.v1.taste_pb2 import DetokenizeConfig, DetokenizeRequest, DetokenizeResponse, StreamingResult
from taste_grpc_client.spoken_text import SpokenText

OnResult: TypeAlias = Callable[[StreamingResult], object]
"""Is called with each result of an answer that is being spoken."""

Spoken: TypeAlias = "SpokenText | Segment | Iterable[Segment | SpokenText]"
"""What `detokenize` speaks: one, or several as they come."""

AnySpoken: TypeAlias = "Spoken | AsyncIterable[Segment | SpokenText]"
"""The same, for `AsyncTasteClient`."""


class FormatRepeater:
    """Writes the format that only the first message of a Detokenize stream states into all of them."""

    def __init__(self) -> None:
        self._format = AudioFormat()

    def __call__(self, response: DetokenizeResponse) -> DetokenizeResponse:
        """`response`, with its format."""
        if response.HasField("format"):
            self._format.CopyFrom(response.format)
        else:
            response.format.CopyFrom(self._format)
        return response


class Answer:
    """The results of a Generate call, on their way to Detokenize."""

    def __init__(self, on_result: OnResult | None) -> None:
        self.results: list[StreamingResult] = []
        self._on_result = on_result

    def take(self, result: StreamingResult) -> Segment | None:
        """Keep a result, tell it, and return what there is to speak of it."""
        self.results.append(result)
        if self._on_result is not None:
            self._on_result(result)
        return result.segment if result.HasField("segment") else None


class SpokenRequests:
    """The messages of one Detokenize call.

    gRPC reads them beside the caller, on a thread or in a task of its own. So what the caller's iterable raises is
    kept in `failure`, ends the call, and is raised where the caller reads.
    """

    def __init__(self, config: DetokenizeConfig, segments: AnySpoken) -> None:
        self._config = config
        self._segments = [segments] if isinstance(segments, Segment | SpokenText) else segments
        self._end: Callable[[], object] | None = None
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[DetokenizeRequest]:
        """The messages, from an iterable."""
        yield DetokenizeRequest(config=self._config)
        try:
            for segment in self._plain():
                yield _request(segment)
        except GeneratorExit:
            raise
        except BaseException as error:  # SystemExit on gRPC's thread would leave the reader waiting for ever
            self._fail(error)

    async def __aiter__(self) -> AsyncIterator[DetokenizeRequest]:
        """The messages, from an iterable of either kind."""
        yield DetokenizeRequest(config=self._config)
        try:
            if isinstance(self._segments, AsyncIterable):
                async for segment in self._segments:
                    yield _request(segment)
            else:
                for segment in self._segments:
                    yield _request(segment)
        except Exception as error:
            self._fail(error)

    def bind(self, end: Callable[[], object]) -> None:
        """Tells how to end the call; the iterable may have failed before that was known."""
        self._end = end
        if self.failure is not None:
            end()

    def _plain(self) -> Iterable[Segment | SpokenText]:
        if isinstance(self._segments, AsyncIterable):
            raise TypeError("segments: an asynchronous iterable is for AsyncTasteClient")
        return self._segments

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        if self._end is not None:
            self._end()


def _request(segment: object) -> DetokenizeRequest:
    if isinstance(segment, SpokenText):
        segment = segment.segment()
    if not isinstance(segment, Segment):
        raise TypeError(f"segments: a Segment or a SpokenText was expected, not {type(segment).__name__}")
    return DetokenizeRequest(segment=segment)
