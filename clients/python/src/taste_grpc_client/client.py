"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc

from taste.v1.common_pb2 import AudioFormat, Segment
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
from taste_grpc_client.errors import from_rpc_error
from taste_grpc_client.requests import (
    Emit,
    GenerateOptions,
    PcmEncoding,
    Speaker,
    detokenize_config,
    generate_request,
    tokenize_request,
)

_T = TypeVar("_T")


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


class _Requests:
    """The messages of one Detokenize call. gRPC reads them on a thread of its own, so a failure of the caller's
    iterable is kept here, ends the call, and is raised where the caller reads."""

    def __init__(self, config: DetokenizeConfig, segments: Iterable[Segment]) -> None:
        self._config = config
        self._segments = segments
        self._call: grpc.Future[Any] | None = None
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[DetokenizeRequest]:
        yield DetokenizeRequest(config=self._config)
        try:
            for segment in self._segments:
                yield DetokenizeRequest(segment=segment)
        except Exception as error:
            self.failure = error
            self._cancel_if_failed()

    def bind(self, call: Any) -> None:
        """Tells which call to end; the iterable may have failed before it was known."""
        self._call = call
        self._cancel_if_failed()

    def _cancel_if_failed(self) -> None:
        if self.failure is not None and self._call is not None:
            self._call.cancel()


class ResultStream(Generic[_T]):
    """The results of a streaming call, to be iterated once.

    Leaving the `with` block, or `cancel`, ends the call on the server too; so does dropping the last reference.
    """

    def __init__(
        self,
        call: Any,
        convert: Callable[[_T], _T] | None = None,
        requests: _Requests | None = None,
    ) -> None:
        self._call = call
        self._convert = convert
        self._requests = requests

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        try:
            result: _T = next(self._call)
        except grpc.RpcError as error:
            if self._requests is not None and self._requests.failure is not None:
                raise self._requests.failure from None
            raise from_rpc_error(error) from None
        return self._convert(result) if self._convert else result

    def cancel(self) -> None:
        """Ends the call, from any thread; a reader gets CallCancelledError. Does nothing to a call that has ended."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class TasteClient:
    """A connection to a taste-grpc server; may be shared by threads.

    Args:
        target: `host:port` of the server.
        channel: an open channel to use instead; it stays the caller's to close.

    Every method takes `timeout_s` (None: no deadline) and raises a `TasteClientError` when the call fails.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, channel: grpc.Channel | None = None) -> None:
        self._owned = None if channel else grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = TasteServiceStub(channel or self._owned)  # type: ignore[arg-type]  # one of them is there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends its calls."""
        if self._owned is not None:
            self._owned.close()

    def model_info(self, *, timeout_s: float | None = None) -> GetModelInfoResponse:
        """What is loaded, what it can do, and the limits as they are set."""
        try:
            return self._stub.GetModelInfo(GetModelInfoRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def tokenize(
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
        samples, see `audio_clip`, whose exceptions are raised too.
        """
        request = tokenize_request(audio, text, text_ids, sample_rate_hz)
        try:
            return self._stub.Tokenize(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def generate(
        self,
        segments: Iterable[Segment],
        *,
        emit: Emit | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ResultStream[StreamingResult]:
        """Continues a conversation; each result carries only what is new, and the last one has `is_complete`.

        The call starts at once. `emit` says when results leave; for `options` see `GenerateOptions`.
        """
        return ResultStream(self._stub.Generate(generate_request(segments, emit, options), timeout=timeout_s))

    def detokenize(
        self,
        segments: Iterable[Segment],
        *,
        speaker: Speaker | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        seed: int | None = None,
        resume_state: bytes | None = None,
        timeout_s: float | None = None,
    ) -> ResultStream[DetokenizeResponse]:
        """Speaks `segments` while they arrive.

        `segments` is read on a thread of gRPC's, as fast as the server takes them; what it raises is raised to the
        reader. Every message has its `format` filled in. `speaker` is required unless `resume_state` is given.
        """
        requests = _Requests(detokenize_config(speaker, sample_rate_hz, encoding, seed, resume_state), segments)
        call = self._stub.Detokenize(iter(requests), timeout=timeout_s)
        requests.bind(call)
        return ResultStream(call, FormatRepeater(), requests)
