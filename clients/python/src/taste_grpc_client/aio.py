"""The asyncio client: `TasteClient`, to be awaited and iterated with `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc
import grpc.aio

from taste.v1.common_pb2 import Segment
from taste.v1.taste_pb2 import (
    DetokenizeConfig,
    DetokenizeResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    StreamingResult,
    TokenizeResponse,
)
from taste.v1.taste_pb2_grpc import TasteServiceStub
from taste_grpc_client.audio import AudioSource
from taste_grpc_client.connection import DEFAULT_TARGET, Connection
from taste_grpc_client.errors import CallCancelledError, TasteClientError
from taste_grpc_client.requests import (
    Emit,
    GenerateOptions,
    PcmEncoding,
    Speaker,
    detokenize_config,
    generate_request,
    tokenize_request,
    voice_of,
)
from taste_grpc_client.retry import Retry
from taste_grpc_client.security import Tls
from taste_grpc_client.streams import Answer, AnySpoken, FormatRepeater, OnResult, SpokenRequests

_T = TypeVar("_T")


class _Status:
    """How a call ended first.

    When the server ends a call while a request is being written, grpc.aio puts an INTERNAL of its own in place of the
    status that it has received.
    """

    def __init__(self, call: Any) -> None:
        self.parts: tuple[grpc.StatusCode, str, Any] | None = None
        call.add_done_callback(self._keep)

    def _keep(self, call: Any) -> None:
        # The coroutines have nothing to wait for: the call has ended. A task would run them too late.
        if self.parts is None:
            self.parts = (_at_once(call.code()), _at_once(call.details()), _at_once(call.trailing_metadata()))


def _at_once(answer: Coroutine[Any, Any, _T]) -> _T:
    try:
        answer.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    answer.close()
    raise RuntimeError("a call that has ended has not got its status")


class AsyncResultStream(Generic[_T]):
    """The results of a streaming call, to be iterated once, by one task.

    Leaving the `async with` block, or `cancel`, ends the call on the server too; so does cancelling the reading task.
    An error is raised once, and ends the iteration.
    """

    def __init__(
        self,
        call: Any,
        error_of: Callable[[grpc.StatusCode, str, Any], TasteClientError],
        convert: Callable[[_T], _T] | None = None,
        requests: SpokenRequests | None = None,
    ) -> None:
        self._call = call
        self._status = _Status(call)
        self._results: AsyncIterator[_T] = call.__aiter__()
        self._error_of = error_of
        self._convert = convert
        self._requests = requests
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        if self._ended:
            raise StopAsyncIteration
        try:
            result = await anext(self._results)
        except StopAsyncIteration:
            self._ended = True
            raise
        except grpc.aio.AioRpcError as error:
            self._ended = True
            self.cancel()
            self._raise_failure()
            status = self._status.parts or (error.code(), error.details() or "", error.trailing_metadata())
            raise self._error_of(*status) from None
        except asyncio.CancelledError:
            self._ended = True
            self.cancel()
            if _is_cancelled_itself():
                raise
            self._raise_failure()
            raise _cancelled_call() from None
        return self._convert(result) if self._convert else result

    def _raise_failure(self) -> None:
        if self._requests is not None and self._requests.failure is not None:
            raise self._requests.failure from None

    def cancel(self) -> None:
        """Ends the call; a reader gets CallCancelledError. Does nothing to a call that has ended."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncSpeechStream(AsyncResultStream[DetokenizeResponse]):
    """As `SpeechStream`."""

    results: list[StreamingResult]

    def __init__(
        self,
        call: Any,
        error_of: Callable[[grpc.StatusCode, str, Any], TasteClientError],
        requests: SpokenRequests,
        answer: AsyncResultStream[StreamingResult],
        results: list[StreamingResult],
    ) -> None:
        super().__init__(call, error_of, FormatRepeater(), requests)
        self._answer = answer
        self.results = results

    def cancel(self) -> None:
        """Ends both calls; a reader gets CallCancelledError. Does nothing to calls that have ended."""
        super().cancel()
        self._answer.cancel()


class AsyncTasteClient:
    """A connection to a taste-grpc server, to be made and used in one running event loop.

    Its arguments, methods and exceptions are those of `TasteClient`, which describes them. Unary calls are awaited;
    streaming calls start at once and return an `AsyncResultStream`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | bool | None = None,
        token: str | None = None,
        allow_plaintext_token: bool = False,
        retry: Retry | None = Retry(),  # noqa: B008  # immutable
        timeout_s: float | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._connection = Connection(
            target,
            tls=tls,
            token=token,
            allow_plaintext_token=allow_plaintext_token,
            retry=retry,
            timeout_s=timeout_s,
            has_channel=channel is not None,
        )
        self._owned = self._connection.open_aio() if channel is None else None
        self._stub: Any = TasteServiceStub(channel or self._owned)  # type: ignore[arg-type]  # asyncio's, or None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `TasteClient.close`."""
        if self._owned is not None:
            await self._owned.close()

    async def model_info(self, *, timeout_s: float | None = None) -> GetModelInfoResponse:
        """As `TasteClient.model_info`."""
        response: GetModelInfoResponse = await self._unary(self._stub.GetModelInfo, GetModelInfoRequest(), timeout_s)
        return response

    async def tokenize(
        self,
        audio: AudioSource,
        *,
        text: str | None = None,
        text_ids: Iterable[int] | None = None,
        sample_rate_hz: int | None = None,
        timeout_s: float | None = None,
    ) -> TokenizeResponse:
        """As `TasteClient.tokenize`. A file is read on a thread."""
        request = await asyncio.to_thread(tokenize_request, audio, text, text_ids, sample_rate_hz)
        response: TokenizeResponse = await self._unary(self._stub.Tokenize, request, timeout_s)
        return response

    def generate(
        self,
        segments: Segment | Iterable[Segment],
        *,
        emit: Emit | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncResultStream[StreamingResult]:
        """As `TasteClient.generate`."""
        request = generate_request(segments, emit, options)
        call = self._stub.Generate(request, **self._connection.call_options(timeout_s))
        return AsyncResultStream(call, self._connection.error)

    def detokenize(
        self,
        segments: AnySpoken,
        *,
        speaker: Speaker | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        seed: int | None = None,
        resume_state: bytes | None = None,
        timeout_s: float | None = None,
    ) -> AsyncResultStream[DetokenizeResponse]:
        """As `TasteClient.detokenize`. `segments`, of either kind, is read in a task; a file of `speaker` at once."""
        voice = voice_of(segments, speaker, resume_state)
        config = detokenize_config(voice, sample_rate_hz, encoding, seed, resume_state)
        call, requests = self._start_speaking(config, segments, timeout_s)
        return AsyncResultStream(call, self._connection.error, FormatRepeater(), requests)

    def speak(
        self,
        segments: Segment | Iterable[Segment],
        *,
        speaker: Speaker | None = None,
        emit: Emit = "sentence",
        on_result: OnResult | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        resume_state: bytes | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncSpeechStream:
        """As `TasteClient.speak`. `on_result` is called in a task, and must not block."""
        config = detokenize_config(speaker, sample_rate_hz, encoding, options.get("seed"), resume_state)
        taken = Answer(on_result)
        answer = self.generate(segments, emit=emit, timeout_s=timeout_s, **options)

        async def spoken() -> AsyncIterator[Segment]:
            async for result in answer:
                if (segment := taken.take(result)) is not None:
                    yield segment

        call, requests = self._start_speaking(config, spoken(), timeout_s)
        return AsyncSpeechStream(call, self._connection.error, requests, answer, taken.results)

    def _start_speaking(
        self,
        config: DetokenizeConfig,
        segments: AnySpoken,
        timeout_s: float | None,
    ) -> tuple[Any, SpokenRequests]:
        requests = SpokenRequests(config, segments)
        call = self._stub.Detokenize(aiter(requests), **self._connection.call_options(timeout_s))
        requests.bind(call.cancel)
        return call, requests

    async def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, **self._connection.call_options(timeout_s))
        except grpc.aio.AioRpcError as error:
            raise self._connection.error(error.code(), error.details(), error.trailing_metadata()) from None
        except asyncio.CancelledError:
            if _is_cancelled_itself():
                raise
            raise _cancelled_call() from None


def _is_cancelled_itself() -> bool:
    """Whether the running task was cancelled, and not only the call it waits for; gRPC reports both in one way."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancelled_call() -> CallCancelledError:
    return CallCancelledError(grpc.StatusCode.CANCELLED, "cancelled by the client")
