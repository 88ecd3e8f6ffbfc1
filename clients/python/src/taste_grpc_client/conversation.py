"""A live conversation, for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from taste.v1.dialogue_pb2 import ConverseRequest
from taste_grpc_client import conversation_requests as requests
from taste_grpc_client.conversation_events import ConversationEvent, Started
from taste_grpc_client.conversation_requests import MicrophoneAudio, MicrophoneFormat
from taste_grpc_client.conversation_state import ConversationState, half_closed_error, never_began
from taste_grpc_client.errors import (
    CallCancelledError,
    ConversationEndedError,
    TasteClientError,
    cancelled_call,
    late_opening,
)
from taste_grpc_client.retry import Attempts


class Conversation:
    """A live conversation by voice, full duplex, of many turns; `TasteClient.converse` makes it.

    The `with` block opens it, waits until the server has begun, and ends it. Iterating it, in one thread, gives what
    happens (`ConversationEvent`), `Started` first, and ends with the call; the other methods send, from any thread, and
    block while the server does not keep up. A server that is not read is held back, with bounded memory.

    Sending raises ConversationEndedError once the conversation has ended, for whatever reason, and ValueError after
    `half_close`. Iterating raises the reason, once: ConversationError when the server gives the conversation up,
    another TasteClientError when the call fails.
    """

    def __init__(
        self,
        start: Callable[[Iterator[ConverseRequest]], Any],
        error_of: Callable[[Any], TasteClientError],
        request: ConverseRequest,
        microphone: MicrophoneFormat,
        opening: Attempts,
    ) -> None:
        self._start = start
        self._error_of = error_of
        self._request = request
        self._microphone = microphone
        self._opening = opening
        self._state = ConversationState()
        self._first: list[ConversationEvent] = []
        self._sending = threading.Lock()
        self._outbox: _Outbox | None = None
        self._call: Any = None
        self._closed = threading.Event()
        self._failure: TasteClientError | None = None
        self._ended = False

    @property
    def started(self) -> Started | None:
        """What the server said first; None until the conversation is open."""
        return self._state.started

    @property
    def resume_token(self) -> str | None:
        """For `converse`, to go on elsewhere; None unless the server has said that it is about to stop."""
        return self._state.resume_token

    def open(self) -> None:
        """Opens the conversation, which the `with` block does. A refused one is tried again as `Retry` says.

        Raises:
            TasteClientError: it cannot be opened; DeadlineExceededError: not in time.
            ValueError: it was opened before, or the client is closed.
        """
        if self._call is not None or self._closed.is_set():
            raise ValueError("a conversation is opened once")
        timeout_s = self._opening.timeout_s
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.close()

        watchdog = threading.Timer(timeout_s or 0.0, give_up)
        if timeout_s is not None:
            watchdog.start()
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, CallCancelledError) and late.is_set():
                raise late_opening() from None
            raise
        finally:
            watchdog.cancel()
            if timeout_s is not None:
                watchdog.join()

    def _open(self) -> None:
        while True:
            outbox = _Outbox(self._request)
            self._outbox, self._call = outbox, self._start(iter(outbox))
            if self._closed.is_set():  # while it was started
                self._call.cancel()
            if not self._call.add_callback(outbox.end):
                outbox.end()
            try:
                event = self._state.received(next(self._call))
            except StopIteration:
                raise never_began() from None
            except grpc.RpcError as caught:
                failure = self._error_of(caught)
                wait_s = self._opening.wait_s(failure)
                if wait_s is None:
                    raise failure from None
                if self._closed.wait(wait_s):
                    raise cancelled_call() from None
            else:
                self._first = [event] if event is not None else []
                return

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the call at once, from any thread. Does nothing to one that has ended."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()
        if self._outbox is not None:
            self._outbox.end()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ConversationEvent:
        call = self._opened()
        if self._first:
            return self._first.pop()
        while not self._ended:
            try:
                event = self._state.received(next(call))
            except StopIteration:
                self._ended = True
            except grpc.RpcError as caught:
                raise self._failed(self._error_of(caught)) from None
            except TasteClientError as failure:
                raise self._failed(failure) from None
            else:
                if event is not None:
                    return event
        raise StopIteration

    def _failed(self, failure: TasteClientError) -> TasteClientError:
        self._ended = True
        self._failure = failure
        self.close()
        return failure

    def _opened(self) -> Any:
        if self._state.started is None:
            raise ValueError("the conversation is not open: use it in a `with` block")
        return self._call

    def send_audio(self, audio: MicrophoneAudio) -> None:
        """Sends microphone audio: raw bytes in the format of `converse`, whole frames, or samples.

        int16, float32 and float64 arrays (floats in [-1, 1]), `[T]` or `[T, channels]`, are brought into that format;
        long ones are cut. Raises ValueError and TypeError for what cannot be sent.
        """
        self._send(self._microphone.pieces(audio))

    def say(self, text: str) -> None:
        """Sends a turn that was typed."""
        self._send([requests.text_turn(text)])

    def stop(self) -> None:
        """The person has finished: ends their turn at once, instead of after a silence."""
        self._send([requests.stop()])

    def cancel(self) -> None:
        """Gives up the running turn, of which nothing is remembered. The conversation goes on; `close` ends it."""
        self._send([requests.cancel()])

    def ack(self, turn: int, played_ms: float) -> None:
        """Tells how much of the answer of `turn` was played so far."""
        self._send([requests.playback_ack(turn, played_ms)])

    def credit(self, max_unplayed_ms: float) -> None:
        """Lets the server have so much audio in flight beyond what was acknowledged; replaces the grant before."""
        self._send([requests.playback_credit(max_unplayed_ms)])

    def mark(self, id: str) -> None:
        """Sends a mark, which comes back as `MarkReached` when all that was sent before it has been processed."""
        self._send([requests.mark(id)])

    def half_close(self) -> None:
        """Says that nothing more will be sent: the running answer is finished, then the conversation ends."""
        self._opened()
        with self._sending:
            if self._outbox is not None:
                self._outbox.half_close()

    def _send(self, messages: Iterable[ConverseRequest]) -> None:
        self._opened()
        with self._sending:
            for message in messages:
                if self._outbox is None or not self._outbox.put(message):
                    raise ConversationEndedError(self._cause())

    def _cause(self) -> TasteClientError | None:
        if self._failure is not None or self._call.code() is grpc.StatusCode.OK:
            return self._failure
        return self._error_of(self._call)


class _Outbox:
    """What is on its way from the sending threads to gRPC's, one message at a time."""

    def __init__(self, first: ConverseRequest) -> None:
        self._changed = threading.Condition()
        self._waiting: ConverseRequest | None = first
        self._half_closed = False
        self._ended = False

    def put(self, message: ConverseRequest) -> bool:
        """Waits until there is room for `message`; False when it cannot be sent any more, ValueError after half_close.

        One thread at a time.
        """
        with self._changed:
            if self._half_closed:
                raise half_closed_error()
            self._changed.wait_for(lambda: self._waiting is None or self._ended)
            if self._ended:
                return False
            self._waiting = message
            self._changed.notify_all()
            return True

    def half_close(self) -> None:
        """No more messages will come."""
        with self._changed:
            self._half_closed = True
            self._changed.notify_all()

    def end(self) -> None:
        """The call has ended: nobody needs to wait."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[ConverseRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._half_closed or self._ended)
                message, self._waiting = self._waiting, None
                if message is None or self._ended:
                    return
                self._changed.notify_all()
            yield message
