"""`DialogueService.Converse`: one live conversation over one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue import ConversationRefusedError, Conversations, Session
from taste_grpc.dialogue.events import ErrorCode, Failure
from taste_grpc.errors import InvalidInputError, TasteError, UnavailableError
from taste_grpc.server.converse_messages import ConverseResponses, UnsupportedRateError, client_event, start_event
from taste_grpc.server.patience import in_time
from taste_grpc.settings import LimitSettings

Requests = AsyncIterator[dialogue_pb2.ConverseRequest]
Responses = AsyncGenerator[dialogue_pb2.ConverseResponse]


class ProtocolViolationError(InvalidInputError):
    """The client sent what it may not; the conversation has told it so."""


class ConversationFailedError(TasteError):
    """A conversation ended with an error that is not the client's."""


class ConverseCalls:
    """Carries the messages of Converse calls to conversations and back."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits

    async def converse(self, conversations: Conversations, requests: Requests) -> Responses:
        """One call, from its first message to its last.

        Raises:
            InvalidInputError: the client broke the protocol; an error message has gone out before.
            IdleError: the next message did not come in time.
            OverloadedError, UnavailableError: the conversation was not let in.
            ConversationFailedError: a fault of the server; an error message has gone out before.
        """
        messages = ConverseResponses()
        while True:
            try:
                session = await self._open(conversations, requests)
                break
            except UnsupportedRateError as error:
                yield messages.message(Failure(None, ErrorCode.UNSUPPORTED_SAMPLE_RATE, str(error)))
            except (InvalidInputError, ConversationRefusedError) as error:
                yield messages.message(Failure(None, ErrorCode.PROTOCOL_VIOLATION, str(error)))
                raise
        reading = asyncio.create_task(self._read(requests, session), name="read-converse")
        fatal: Failure | None = None
        try:
            async for event in session.events():
                if isinstance(event, Failure) and not event.code.recoverable:
                    fatal = event
                yield messages.message(event)
            if reading.done():
                reading.result()
            _raise_for(fatal)
            if session.was_cut:
                raise UnavailableError("the server stopped before the conversation had ended")
        finally:
            reading.cancel()
            await session.aclose()
            await asyncio.wait([reading])

    async def _open(self, conversations: Conversations, requests: Requests) -> Session:
        request = await self._next(requests)
        if request is None:
            raise InvalidInputError("start", "is required: the call ended before its first message")
        if request.WhichOneof("event") != "start":
            raise InvalidInputError("start", "is required in the first message of the call")
        return await conversations.open(start_event(request.start, self._limits))

    async def _read(self, requests: Requests, session: Session) -> None:
        """Hand over the client's messages as the conversation takes them."""
        try:
            while (request := await self._next(requests)) is not None:
                await session.put(client_event(request, self._limits))
            session.end_input()
        except InvalidInputError as error:
            session.violate(str(error))
            raise ProtocolViolationError(error.field, error.description) from None
        except BaseException:
            session.give_up()
            raise

    async def _next(self, requests: Requests) -> dialogue_pb2.ConverseRequest | None:
        """The client's next message, None after the last one. Raises InvalidInputError, IdleError."""
        idle_ms = self._limits.max_idle_ms
        message = f"the server waited {idle_ms} ms for the next message of the call"
        request = await in_time(anext(requests, None), idle_ms, message)
        limit = self._limits.max_converse_message_bytes
        if request is not None and request.ByteSize() > limit:
            raise InvalidInputError("event", f"the message has {request.ByteSize()} bytes; at most {limit} are allowed")
        return request


def _raise_for(fatal: Failure | None) -> None:
    if fatal is None:
        return
    if fatal.code is ErrorCode.PROTOCOL_VIOLATION:
        raise ProtocolViolationError("event", fatal.message)
    raise ConversationFailedError(fatal.message)
