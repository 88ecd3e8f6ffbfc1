"""What the streams of both clients keep account of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from taste.v1.common_pb2 import AudioFormat, Segment
from taste.v1.taste_pb2 import DetokenizeResponse, StreamingResult
from taste_grpc_client.errors import TasteClientError
from taste_grpc_client.retry import Attempts
from taste_grpc_client.spoken_requests import SpokenRequests

_T = TypeVar("_T")

OnResult: TypeAlias = Callable[[StreamingResult], object]
"""Is called with each result of an answer that is being spoken."""


class StreamState(Generic[_T]):
    """Where a streaming call stands: how often it was begun, whether something has arrived, whether it has ended.

    Args:
        attempts: how often it may be begun.
        convert: is applied to each message.
        requests: of a call that streams them.
    """

    def __init__(
        self, attempts: Attempts, convert: Callable[[_T], _T] | None = None, requests: SpokenRequests | None = None
    ) -> None:
        self.attempts = attempts
        self.requests = requests
        self.ended = False
        self._convert = convert

    def received(self, message: _T) -> _T:
        """A message has arrived: from now on the call is not begun again."""
        self.attempts.settle()
        if self.requests is not None:
            self.requests.settle()
        return self._convert(message) if self._convert else message

    def finish(self) -> None:
        """The call has ended well. Raises what the requests failed with, if the server took that for their end."""
        self.ended = True
        if self.requests is not None and self.requests.failure is not None:
            raise self.requests.failure from None

    def failure(self, error: TasteClientError) -> BaseException:
        """Why an attempt that ended with `error` has failed."""
        if self.requests is not None and self.requests.failure is not None:
            return self.requests.failure
        return error

    def wait_s(self, failure: BaseException) -> float | None:
        """How long to wait until the call is begun again; None when it has ended."""
        wait_s = None
        if isinstance(failure, TasteClientError) and (self.requests is None or self.requests.can_repeat):
            wait_s = self.attempts.wait_s(failure)
        self.ended = wait_s is None
        return wait_s


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
