"""The asyncio client: `TasteClient`, to be awaited and iterated with `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar, Unpack

import grpc
import grpc.aio

from taste.v1.common_pb2 import Segment
from taste.v1.dialogue_pb2 import ReplyResponse
from taste.v1.dialogue_pb2_grpc import DialogueServiceStub
from taste.v1.taste_pb2 import (
    DetokenizeConfig,
    DetokenizeResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    StreamingResult,
    TokenizeResponse,
)
from taste.v1.taste_pb2_grpc import TasteServiceStub
from taste_grpc_client.aio_conversation import AsyncConversation
from taste_grpc_client.aio_status import CallStatus, is_cancelled_itself
from taste_grpc_client.audio import AudioSource
from taste_grpc_client.connection import DEFAULT_TARGET, Connection
from taste_grpc_client.conversation_requests import AnswerVoice, ConversationOptions, MicrophoneFormat, start_request
from taste_grpc_client.errors import TasteClientError, cancelled_call
from taste_grpc_client.requests import (
    Emit,
    GenerateOptions,
    PcmEncoding,
    ReplyOptions,
    Speaker,
    detokenize_config,
    generate_request,
    reply_request,
    tokenize_request,
    voice_of,
)
from taste_grpc_client.retry import Attempts, Retry
from taste_grpc_client.security import Tls
from taste_grpc_client.spoken_requests import AnySpoken, AsyncRequests
from taste_grpc_client.streams import Answer, FormatRepeater, OnResult, StreamState

_T = TypeVar("_T")

_Speech: TypeAlias = """tuple[
    Callable[[], Any], Callable[[grpc.StatusCode, str, Any], TasteClientError], StreamState[DetokenizeResponse]
]"""


class AsyncResultStream(Generic[_T]):
    """The results of a streaming call, to be iterated once, by one task.

    Leaving the `async with` block, or `cancel`, ends the call on the server too; so does cancelling the reading task.
    An error is raised once, and ends the iteration. A call that is refused before its first result is begun again as
    `Retry` says, while the stream is being read.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        error_of: Callable[[grpc.StatusCode, str, Any], TasteClientError],
        state: StreamState[_T],
    ) -> None:
        self._start = start
        self._error_of = error_of
        self._state = state
        self._cancelled = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        self._call = self._start()
        self._status = CallStatus(self._call)
        self._messages: AsyncIterator[_T] = aiter(self._call)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        try:
            return await self._next()
        except asyncio.CancelledError:
            self._state.ended = True
            self.cancel()
            if is_cancelled_itself():
                raise
            raise self._state.failure(cancelled_call()) from None

    async def _next(self) -> _T:
        while not self._state.ended:
            try:
                message = await anext(self._messages)
            except StopAsyncIteration:
                self._state.finish()
            except grpc.aio.AioRpcError as error:
                status = await self._status.parts(error)
                await self._begin_again(self._state.failure(self._error_of(*status)))
            else:
                return self._state.received(message)
        raise StopAsyncIteration

    async def _begin_again(self, failure: BaseException) -> None:
        wait_s = self._state.wait_s(failure)
        if wait_s is None:
            self.cancel()
            raise failure from None
        self._state.ended = True
        try:
            await asyncio.wait_for(self._cancelled.wait(), wait_s)
        except TimeoutError:
            self._begin()
            self._state.ended = False
        else:
            raise cancelled_call()

    def cancel(self) -> None:
        """Ends the call; a reader gets CallCancelledError. Does nothing to a call that has ended."""
        self._cancelled.set()
        self._call.cancel()
        if isinstance(self._state.requests, AsyncRequests):
            self._state.requests.close()

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
        start: Callable[[], Any],
        error_of: Callable[[grpc.StatusCode, str, Any], TasteClientError],
        state: StreamState[DetokenizeResponse],
        *,
        answer: AsyncResultStream[StreamingResult],
        results: list[StreamingResult],
    ) -> None:
        self._answer = answer
        self.results = results
        super().__init__(start, error_of, state)

    def cancel(self) -> None:
        """Ends both calls; a reader gets CallCancelledError. Does nothing to calls that have ended."""
        super().cancel()
        self._answer.cancel()


class AsyncTasteClient:
    """A connection to a taste-grpc server, to be made and used in one running event loop.

    Its arguments, methods and exceptions are those of `TasteClient`, which describes them. Unary calls are awaited;
    streaming calls start at once and return an `AsyncResultStream`; a conversation is used with `async with`.
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
        opened: Any = channel or self._owned
        self._stub: Any = TasteServiceStub(opened)
        self._dialogue: Any = DialogueServiceStub(opened)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `TasteClient.close`."""
        self._connection.closed.set()
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
        attempts = self._connection.attempts(timeout_s)
        start = partial(self._start, self._stub.Generate, request, attempts)
        return AsyncResultStream(start, self._connection.error, StreamState(attempts))

    def reply(
        self,
        audio: AudioSource,
        *,
        sample_rate_hz: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[ReplyOptions],
    ) -> AsyncResultStream[ReplyResponse]:
        """As `TasteClient.reply`. A file is read at once."""
        request = reply_request(audio, sample_rate_hz, options)
        attempts = self._connection.attempts(timeout_s)
        start = partial(self._start, self._dialogue.Reply, request, attempts)
        return AsyncResultStream(start, self._connection.error, StreamState(attempts))

    def detokenize(
        self,
        segments: AnySpoken,
        *,
        speaker: Speaker | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        seed: int | None = None,
        resume_state: bytes | None = None,
        max_chunk_words: int | None = None,
        look_ahead_words: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncResultStream[DetokenizeResponse]:
        """As `TasteClient.detokenize`. `segments`, of either kind, is read in a task; a file of `speaker` at once."""
        voice = voice_of(segments, speaker, resume_state)
        config = detokenize_config(
            voice, sample_rate_hz, encoding, seed, resume_state, max_chunk_words, look_ahead_words
        )
        return AsyncResultStream(*self._speech(config, segments, timeout_s))

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
        max_chunk_words: int | None = None,
        look_ahead_words: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncSpeechStream:
        """As `TasteClient.speak`. `on_result` is called in a task, and must not block."""
        config = detokenize_config(
            speaker, sample_rate_hz, encoding, options.get("seed"), resume_state, max_chunk_words, look_ahead_words
        )
        taken = Answer(on_result)
        answer = self.generate(segments, emit=emit, timeout_s=timeout_s, **options)

        async def spoken() -> AsyncIterator[Segment]:
            async for result in answer:
                if (segment := taken.take(result)) is not None:
                    yield segment

        return AsyncSpeechStream(*self._speech(config, spoken(), timeout_s), answer=answer, results=taken.results)

    def converse(
        self,
        *,
        sample_rate_hz: int = 16_000,
        channels: int = 1,
        encoding: PcmEncoding = "linear16",
        language: str | None = None,
        system_prompt: str | None = None,
        voice: AnswerVoice | None = None,
        voice_sample_rate_hz: int | None = None,
        voice_encoding: PcmEncoding | None = None,
        resume_token: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[ConversationOptions],
    ) -> AsyncConversation:
        """As `TasteClient.converse`."""
        microphone = MicrophoneFormat(sample_rate_hz, channels, encoding)
        request = start_request(
            microphone,
            language=language,
            system_prompt=system_prompt,
            voice=voice,
            voice_sample_rate_hz=voice_sample_rate_hz,
            voice_encoding=voice_encoding,
            resume_token=resume_token,
            options=options,
        )
        opening, whole = self._connection.conversation_attempts(timeout_s)
        start = partial(self._start, self._dialogue.Converse, None, whole)
        return AsyncConversation(start, self._connection.error, request, microphone, opening)

    def _speech(self, config: DetokenizeConfig, segments: AnySpoken, timeout_s: float | None) -> _Speech:
        """What makes a stream of a Detokenize call."""
        requests = AsyncRequests(config, segments, self._connection.keep_bytes)
        attempts = self._connection.attempts(timeout_s)

        def start() -> Any:
            call = self._start(self._stub.Detokenize, aiter(requests), attempts)
            requests.bind(call.cancel)
            return call

        return start, self._connection.error, StreamState(attempts, FormatRepeater(), requests)

    async def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        attempts = self._connection.attempts(timeout_s)
        while True:
            try:
                return await self._start(method, request, attempts)
            except grpc.aio.AioRpcError as caught:
                error = self._connection.error(caught.code(), caught.details(), caught.trailing_metadata())
            except asyncio.CancelledError:
                if is_cancelled_itself():
                    raise
                raise cancelled_call() from None
            wait_s = attempts.wait_s(error)
            if wait_s is None:
                raise error
            await asyncio.sleep(wait_s)

    def _start(self, method: Callable[..., Any], request: Any, attempts: Attempts) -> Any:
        return method(request, **self._connection.call_options(attempts))
