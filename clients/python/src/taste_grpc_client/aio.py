"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

import grpc
import grpc.aio

from taste.v1.common_pb2 import Segment
from taste.v1.taste_pb2 import (
    DetokenizeConfig,
    DetokenizeRequest,
    DetokenizeResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    StreamingResult,
    TokenizeResponse,
)
from taste.v1.taste_pb2_grpc import TasteServiceStub
from taste_grpc_client.audio import AudioSource
from taste_grpc_client.channel import CHANNEL_OPTIONS, DEFAULT_TARGET
from taste_grpc_client.client import FormatRepeater
from taste_grpc_client.errors import CallCancelledError, from_rpc_error
from taste_grpc_client.requests import (
    Emit,
    GenerateOptions,
    PcmEncoding,
    Speaker,
    detokenize_config,
    generate_request,
    tokenize_request,
)

if TYPE_CHECKING:
    from taste.v1.taste_pb2_grpc import TasteServiceAsyncStub

_T = TypeVar("_T")


class _Requests:
    """The messages of one Detokenize call. gRPC reads them in a task of its own, so a failure of the caller's iterable
    is kept here, ends the call, and is raised where the caller reads."""

    def __init__(self, config: DetokenizeConfig, segments: AsyncIterable[Segment] | Iterable[Segment]) -> None:
        self._config = config
        self._segments = segments
        self.call: Any = None
        self.failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[DetokenizeRequest]:
        yield DetokenizeRequest(config=self._config)
        try:
            if isinstance(self._segments, AsyncIterable):
                async for segment in self._segments:
                    yield DetokenizeRequest(segment=segment)
            else:
                for segment in self._segments:
                    yield DetokenizeRequest(segment=segment)
        except Exception as error:
            self.failure = error
            self.call.cancel()


class AsyncResultStream(Generic[_T]):
    """The results of a streaming call, to be iterated once, by one task.

    Leaving the `async with` block, or `cancel`, ends the call on the server too; so does cancelling the reading task.
    """

    def __init__(
        self,
        call: Any,
        convert: Callable[[_T], _T] | None = None,
        requests: _Requests | None = None,
    ) -> None:
        self._call = call
        self._results: AsyncIterator[_T] = call.__aiter__()
        self._convert = convert
        self._requests = requests
        self._cancelled = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        try:
            result = await anext(self._results)
        except grpc.aio.AioRpcError as error:
            self._raise_failure()
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            # gRPC reports a call that was cancelled on this side in the same way as asyncio a task.
            self._raise_failure()
            if self._cancelled:
                raise CallCancelledError(grpc.StatusCode.CANCELLED, "cancelled by the client") from None
            self._call.cancel()
            raise
        return self._convert(result) if self._convert else result

    def _raise_failure(self) -> None:
        if self._requests is not None and self._requests.failure is not None:
            raise self._requests.failure from None

    def cancel(self) -> None:
        """Ends the call; a reader gets CallCancelledError. Does nothing to a call that has ended."""
        self._cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncTasteClient:
    """A connection to a taste-grpc server, to be made and used in one running event loop.

    Args:
        target: `host:port` of the server.
        channel: an open channel to use instead; it stays the caller's to close.

    Every method takes `timeout_s` (None: no deadline) and raises a `TasteClientError` when the call fails.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, channel: grpc.aio.Channel | None = None) -> None:
        self._owned = None if channel else grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub: TasteServiceAsyncStub = TasteServiceStub(channel or self._owned)  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection and ends its calls."""
        if self._owned is not None:
            await self._owned.close()

    async def model_info(self, *, timeout_s: float | None = None) -> GetModelInfoResponse:
        """What is loaded, what it can do, and the limits as they are set."""
        try:
            return await self._stub.GetModelInfo(GetModelInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def tokenize(
        self,
        audio: AudioSource,
        *,
        text: str | None = None,
        text_ids: Iterable[int] | None = None,
        sample_rate_hz: int | None = None,
        timeout_s: float | None = None,
    ) -> TokenizeResponse:
        """Turns a recording into text ids and the speech tokens aligned to them.

        `text` or `text_ids` say what is spoken; with neither the server transcribes. `sample_rate_hz` goes with
        samples, see `audio_clip`, whose exceptions are raised too. A path is read on a thread.
        """
        request = await asyncio.to_thread(tokenize_request, audio, text, text_ids, sample_rate_hz)
        try:
            return await self._stub.Tokenize(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def generate(
        self,
        segments: Iterable[Segment],
        *,
        emit: Emit | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncResultStream[StreamingResult]:
        """Continues a conversation; each result carries only what is new, and the last one has `is_complete`.

        The call starts at once. `emit` says when results leave; for `options` see `GenerateOptions`.
        """
        return AsyncResultStream(self._stub.Generate(generate_request(segments, emit, options), timeout=timeout_s))

    def detokenize(
        self,
        segments: AsyncIterable[Segment] | Iterable[Segment],
        *,
        speaker: Speaker | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        seed: int | None = None,
        resume_state: bytes | None = None,
        timeout_s: float | None = None,
    ) -> AsyncResultStream[DetokenizeResponse]:
        """Speaks `segments` while they arrive.

        `segments` is read in a task of gRPC's, as fast as the server takes them; what it raises is raised to the
        reader. Every message has its `format` filled in. `speaker` is required unless `resume_state` is given; a
        path is read at once.
        """
        requests = _Requests(detokenize_config(speaker, sample_rate_hz, encoding, seed, resume_state), segments)
        requests.call = self._stub.Detokenize(aiter(requests), timeout=timeout_s)
        return AsyncResultStream(requests.call, FormatRepeater(), requests)
