"""A live conversation, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from taste.v1.dialogue_pb2 import ConverseRequest
from taste_grpc_client import conversation_requests as requests
from taste_grpc_client.aio_status import CallStatus, StatusParts
from taste_grpc_client.conversation_events import ConversationEvent, Started
from taste_grpc_client.conversation_requests import MicrophoneAudio, MicrophoneFormat
from taste_grpc_client.conversation_state import ConversationState, half_closed_error, never_began
from taste_grpc_client.errors import ConversationEndedError, TasteClientError, cancelled_call, late_opening
from taste_grpc_client.retry import Attempts

_T = TypeVar("_T")

_CANCELLED: StatusParts = (grpc.StatusCode.CANCELLED, "cancelled by the client", None)


class AsyncConversation:
    """As `Conversation`: iterated by one task, sent to by any.

    A task that is cancelled while it waits for an event, or until something is sent, ends neither the conversation nor
    loses an event; of audio that was being sent, the rest is not.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        error_of: Callable[[grpc.StatusCode, str, Any], TasteClientError],
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
        self._call: _Call | None = None
        self._sending = asyncio.Lock()
        self._half_closed = False
        self._closed = asyncio.Event()
        self._failure: TasteClientError | None = None
        self._ended = False

    @property
    def started(self) -> Started | None:
        """As `Conversation.started`."""
        return self._state.started

    @property
    def resume_token(self) -> str | None:
        """As `Conversation.resume_token`."""
        return self._state.resume_token

    async def open(self) -> None:
        """As `Conversation.open`."""
        if self._call is not None or self._closed.is_set():
            raise ValueError("a conversation is opened once")
        try:
            async with asyncio.timeout(self._opening.timeout_s):
                await self._open()
        except TimeoutError as error:
            await self.close()
            # DeadlineExceededError is a TimeoutError too.
            raise error if isinstance(error, TasteClientError) else late_opening() from None
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        while True:
            if self._call is not None:
                await self._call.close()
            self._call = _Call(self._start())
            await self._call.write(self._request)  # what it fails with, reading tells better
            try:
                event = self._state.received(await self._call.read())
            except EOFError:
                raise never_began() from None
            except _CallFailed as caught:
                failure = self._error_of(*caught.status)
                wait_s = self._opening.wait_s(failure)
                if wait_s is None:
                    raise failure from None
                if await _is_set_within(self._closed, wait_s):
                    raise cancelled_call() from None
            else:
                self._first = [event] if event is not None else []
                return

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Conversation.close`; when it returns, nothing of the conversation runs any more."""
        self._closed.set()
        if self._call is not None:
            await self._call.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConversationEvent:
        call = self._opened()
        if self._first:
            return self._first.pop()
        while not self._ended:
            try:
                event = self._state.received(await call.read())
            except EOFError:
                self._ended = True
            except _CallFailed as caught:
                raise await self._failed(self._error_of(*caught.status)) from None
            except TasteClientError as failure:
                raise await self._failed(failure) from None
            else:
                if event is not None:
                    return event
        raise StopAsyncIteration

    async def _failed(self, failure: TasteClientError) -> TasteClientError:
        self._ended = True
        self._failure = failure
        await self.close()
        return failure

    def _opened(self) -> _Call:
        if self._call is None or self._state.started is None:
            raise ValueError("the conversation is not open: use it in a `with` block")
        return self._call

    async def send_audio(self, audio: MicrophoneAudio) -> None:
        """As `Conversation.send_audio`."""
        await self._send(self._microphone.pieces(audio))

    async def say(self, text: str) -> None:
        """As `Conversation.say`."""
        await self._send([requests.text_turn(text)])

    async def stop(self) -> None:
        """As `Conversation.stop`."""
        await self._send([requests.stop()])

    async def cancel(self) -> None:
        """As `Conversation.cancel`."""
        await self._send([requests.cancel()])

    async def ack(self, turn: int, played_ms: float) -> None:
        """As `Conversation.ack`."""
        await self._send([requests.playback_ack(turn, played_ms)])

    async def credit(self, max_unplayed_ms: float) -> None:
        """As `Conversation.credit`."""
        await self._send([requests.playback_credit(max_unplayed_ms)])

    async def mark(self, id: str) -> None:
        """As `Conversation.mark`."""
        await self._send([requests.mark(id)])

    async def half_close(self) -> None:
        """As `Conversation.half_close`."""
        call = self._opened()
        async with self._sending:
            self._half_closed = True
            await call.half_close()

    async def _send(self, messages: Iterable[ConverseRequest]) -> None:
        call = self._opened()
        async with self._sending:
            for message in messages:
                if self._half_closed:
                    raise half_closed_error()
                if not await call.write(message):
                    raise ConversationEndedError(await self._cause(call))

    async def _cause(self, call: _Call) -> TasteClientError | None:
        if self._failure is None and (status := await call.failure()) is not None:
            return self._error_of(*status)
        return self._failure


class _CallFailed(Exception):
    """A call has ended with another status than OK."""

    def __init__(self, status: StatusParts) -> None:
        super().__init__(status)
        self.status = status


class _Call:
    """A call of grpc.aio's that survives the cancelling of who waits for it.

    grpc.aio ends a call when a task is cancelled that reads or writes it, so both are left to tasks of their own: one
    message each way may be under way when nobody waits for it, and who comes next waits for it first.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ending = CallStatus(call)
        # Not `call.read`, which takes a failed write for the end of what there is to read.
        self._messages = aiter(call)
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[bool] | None = None

    async def read(self) -> Any:
        """The next message. One task at a time. Raises EOFError after the last one, and _CallFailed."""
        if self._reading is None:
            self._reading = _task(self._read())
        await asyncio.wait({self._reading})
        done, self._reading = self._reading, None
        if done.cancelled():
            raise _CallFailed(_CANCELLED)
        return done.result()

    async def _read(self) -> Any:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            raise EOFError from None
        except grpc.aio.AioRpcError as error:
            status = await self._ending.parts(error)
            raise (EOFError if status[0] is grpc.StatusCode.OK else _CallFailed(status)) from None

    async def write(self, message: ConverseRequest) -> bool:
        """Waits until there was room for `message`; False when the call has ended. One task at a time."""
        await self._written()
        self._writing = _task(_succeeds(self._call.write, message))
        return await self._written()

    async def half_close(self) -> None:
        """No more messages will come. As `write`."""
        await self._written()
        self._writing = _task(_succeeds(self._call.done_writing))
        await self._written()

    async def _written(self) -> bool:
        """Waits until nothing is being written; whether the last message was."""
        if self._writing is None:
            return True
        await asyncio.wait({self._writing})
        done, self._writing = self._writing, None
        return not done.cancelled() and done.result()

    async def failure(self) -> StatusParts | None:
        """How the call has ended; None if it has not, or well."""
        status = await self._ending.settled()
        return None if status is None or status[0] is grpc.StatusCode.OK else status

    async def close(self) -> None:
        """Ends the call, and waits until nothing of it runs."""
        self._call.cancel()
        running = {task for task in (self._reading, self._writing) if task is not None}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


def _task(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    task = asyncio.create_task(work)
    # Nobody may come to ask how it went.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _succeeds(write: Callable[..., Coroutine[Any, Any, None]], *message: ConverseRequest) -> bool:
    try:
        await write(*message)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call is ending, or has ended
        return False
    return True


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
