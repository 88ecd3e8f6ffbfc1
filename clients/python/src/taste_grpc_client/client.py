"""The blocking client."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc

from taste.v1.common_pb2 import Segment
from taste.v1.dialogue_pb2 import ConverseRequest, ReplyResponse
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
from taste_grpc_client.audio import AudioSource
from taste_grpc_client.connection import DEFAULT_TARGET, Connection
from taste_grpc_client.conversation import Conversation
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
from taste_grpc_client.spoken_requests import BlockingRequests, Spoken
from taste_grpc_client.streams import Answer, FormatRepeater, OnResult, StreamState

_T = TypeVar("_T")


class ResultStream(Generic[_T]):
    """The results of a streaming call, to be iterated once.

    Leaving the `with` block, or `cancel`, ends the call on the server too; so does dropping the last reference. An
    error is raised once, and ends the iteration. A call that is refused before its first result is begun again as
    `Retry` says, while the stream is being read.
    """

    def __init__(
        self, start: Callable[[], Any], error_of: Callable[[Any], TasteClientError], state: StreamState[_T]
    ) -> None:
        self._start = start
        self._error_of = error_of
        self._state = state
        self._cancelled = threading.Event()
        self._call = start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        while not self._state.ended:
            try:
                message: _T = next(self._call)
            except StopIteration:
                self._state.finish()
            except grpc.RpcError as error:
                failure = self._state.failure(self._error_of(error))
                self._begin_again(failure)
            else:
                return self._state.received(message)
        raise StopIteration

    def _begin_again(self, failure: BaseException) -> None:
        wait_s = self._state.wait_s(failure)
        if wait_s is None:
            self.cancel()
            raise failure from None
        self._state.ended = True
        if self._cancelled.wait(wait_s):
            raise cancelled_call()
        self._call = self._start()
        self._state.ended = False
        if self._cancelled.is_set():  # while it was started
            self._call.cancel()

    def cancel(self) -> None:
        """Ends the call, from any thread; a reader gets CallCancelledError. Does nothing to a call that has ended."""
        self._cancelled.set()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class SpeechStream(ResultStream[DetokenizeResponse]):
    """An answer as speech, while it is being generated: a Detokenize call that is fed by a Generate call.

    Ending it in any way ends both calls, and an error of either is raised to the reader.

    Attributes:
        results: what the answer says so far; complete once the stream has ended.
    """

    results: list[StreamingResult]

    def __init__(
        self,
        start: Callable[[], Any],
        error_of: Callable[[Any], TasteClientError],
        state: StreamState[DetokenizeResponse],
        *,
        answer: ResultStream[StreamingResult],
        results: list[StreamingResult],
    ) -> None:
        self._answer = answer
        self.results = results
        super().__init__(start, error_of, state)

    def cancel(self) -> None:
        """Ends both calls, from any thread; a reader gets CallCancelledError. Does nothing to calls that have ended."""
        super().cancel()
        self._answer.cancel()

    def __del__(self) -> None:
        # The thread that feeds Detokenize holds the answer; it would go on until somebody stops it.
        self._answer.cancel()


class TasteClient:
    """A connection to a taste-grpc server; may be shared by threads.

    Args:
        target: `host:port` of the server, or any other name gRPC resolves (`unix:/path`).
        tls: how to know the server, and be known to it; True trusts the authorities gRPC ships; None: plain text.
        token: bearer token, sent with every call.
        allow_plaintext_token: lets the token travel in plain text to a host that is not this one.
        retry: when refused calls are tried again; None: never.
        timeout_s: deadline of each call that is given none; None: no deadline.
        channel: an open channel to use instead of `target` and `tls`; it stays the caller's to close. It should have
            the option `grpc.enable_retries` 0: attempts of gRPC's own may lose messages of `detokenize`.

    Every method takes `timeout_s`, seconds until the call fails with DeadlineExceededError (None: that of the client,
    but for `converse`; `math.inf`: none), and raises a `TasteClientError` when the call fails.

    Raises:
        ValueError: arguments contradict each other, or would show the token to the network.
        OSError: a file of `tls` cannot be read.
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
        channel: grpc.Channel | None = None,
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
        self._owned = self._connection.open() if channel is None else None
        opened: Any = channel or self._owned
        self._stub: Any = TasteServiceStub(opened)
        self._dialogue: Any = DialogueServiceStub(opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends its calls; a given channel stays open."""
        self._connection.closed.set()
        if self._owned is not None:
            self._owned.close()

    def model_info(self, *, timeout_s: float | None = None) -> GetModelInfoResponse:
        """What is loaded, what it can do, and the limits as they are set."""
        response: GetModelInfoResponse = self._unary(self._stub.GetModelInfo, GetModelInfoRequest(), timeout_s)
        return response

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
        response: TokenizeResponse = self._unary(self._stub.Tokenize, request, timeout_s)
        return response

    def generate(
        self,
        segments: Segment | Iterable[Segment],
        *,
        emit: Emit | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ResultStream[StreamingResult]:
        """Continues a conversation; each result carries only what is new, and the last one has `is_complete`.

        The call starts at once. `emit` says when results leave; for `options` see `GenerateOptions`. Raises TypeError
        for what is none of them.
        """
        request = generate_request(segments, emit, options)
        attempts = self._connection.attempts(timeout_s)
        start = partial(self._start, self._stub.Generate, request, attempts)
        return ResultStream(start, self._error_of, StreamState(attempts))

    def reply(
        self,
        audio: AudioSource,
        *,
        sample_rate_hz: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[ReplyOptions],
    ) -> ResultStream[ReplyResponse]:
        """Answers a spoken question of at most 30 seconds in text, which comes in chunks of a few words.

        Put together, the texts are the answer; the last response has `is_final`. One that has not `success` (nobody
        spoke, or the answer failed) says what to say instead, and why in `error`: it is no exception. `sample_rate_hz`
        goes with samples, see `audio_clip`, whose exceptions are raised too; for `options` see `ReplyOptions`. The call
        starts at once.
        """
        request = reply_request(audio, sample_rate_hz, options)
        attempts = self._connection.attempts(timeout_s)
        start = partial(self._start, self._dialogue.Reply, request, attempts)
        return ResultStream(start, self._error_of, StreamState(attempts))

    def detokenize(
        self,
        segments: Spoken,
        *,
        speaker: Speaker | None = None,
        sample_rate_hz: int | None = None,
        encoding: PcmEncoding = "linear16",
        seed: int | None = None,
        resume_state: bytes | None = None,
        max_chunk_words: int | None = None,
        look_ahead_words: int | None = None,
        timeout_s: float | None = None,
    ) -> ResultStream[DetokenizeResponse]:
        """Speaks `segments` while they arrive.

        `segments` is read on a thread of gRPC's, as fast as the server takes them; what it raises is raised to the
        reader. Every message has its `format` filled in. `speaker` is required unless `resume_state` is given, or
        `segments` is a SpokenText that has one. A phrase of at most `max_chunk_words` words is spoken at a time, with
        `look_ahead_words` of those that follow in mind.
        """
        voice = voice_of(segments, speaker, resume_state)
        config = detokenize_config(
            voice, sample_rate_hz, encoding, seed, resume_state, max_chunk_words, look_ahead_words
        )
        return ResultStream(*self._speech(config, segments, timeout_s))

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
    ) -> SpeechStream:
        """Continues a conversation, as `generate` does, and speaks the answer while it is being generated.

        Both calls start at once, and each has until `timeout_s`. `emit` says how much is spoken at a time. `on_result`
        is called with each result, on a thread of gRPC's; what it raises is raised to the reader. A `seed` among the
        options goes into both calls. A model that chooses not to speak gives an empty stream.
        """
        config = detokenize_config(
            speaker, sample_rate_hz, encoding, options.get("seed"), resume_state, max_chunk_words, look_ahead_words
        )
        taken = Answer(on_result)
        answer = self.generate(segments, emit=emit, timeout_s=timeout_s, **options)

        def spoken() -> Iterator[Segment]:
            for result in answer:
                if (segment := taken.take(result)) is not None:
                    yield segment

        return SpeechStream(*self._speech(config, spoken(), timeout_s), answer=answer, results=taken.results)

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
    ) -> Conversation:
        """A live conversation by voice, of many turns, to be used in a `with` block, which opens and ends it.

        Args:
            sample_rate_hz: of the microphone.
            channels: of the microphone, 1 or 2.
            encoding: in which the microphone's audio travels.
            language: of the speech, as a BCP 47 tag; None: the recogniser's own.
            system_prompt: instructions to the language model; None: the server's.
            voice: how answers sound; None: the server's voice.
            voice_sample_rate_hz: of the answers' audio; None: 16,000.
            voice_encoding: of the answers' audio; None: linear16.
            resume_token: of a conversation that goes on here: its history, voice and options; those given replace it.
            timeout_s: seconds until the conversation fails; None: as long as it takes, but the client's to open it.
            options: see `ConversationOptions`.
        """
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

        def start(messages: Iterator[ConverseRequest]) -> Any:
            return self._start(self._dialogue.Converse, messages, whole)

        return Conversation(start, self._error_of, request, microphone, opening)

    def _speech(
        self, config: DetokenizeConfig, segments: Spoken, timeout_s: float | None
    ) -> tuple[Callable[[], Any], Callable[[Any], TasteClientError], StreamState[DetokenizeResponse]]:
        """What makes a stream of a Detokenize call."""
        requests = BlockingRequests(config, segments, self._connection.keep_bytes)
        attempts = self._connection.attempts(timeout_s)

        def start() -> Any:
            call = self._start(self._stub.Detokenize, iter(requests), attempts)
            # The thread that reads the requests must not be what keeps the call alive: dropping the stream ends it.
            ending = weakref.WeakMethod(call.cancel)
            requests.bind(lambda: (end := ending()) and end())
            return call

        return start, self._error_of, StreamState(attempts, FormatRepeater(), requests)

    def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None) -> Any:
        attempts = self._connection.attempts(timeout_s)
        while True:
            try:
                return self._start(method, request, attempts)
            except grpc.RpcError as caught:
                error = self._error_of(caught)
            wait_s = attempts.wait_s(error)
            if wait_s is None:
                raise error
            self._connection.closed.wait(wait_s)

    def _start(self, method: Callable[..., Any], request: Any, attempts: Attempts) -> Any:
        return method(request, **self._connection.call_options(attempts))

    def _error_of(self, error: Any) -> TasteClientError:
        return self._connection.error(error.code(), error.details(), error.trailing_metadata())
