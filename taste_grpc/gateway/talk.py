"""One WebSocket connection: a client, and its conversation."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.frames import CloseCode

from taste_grpc.dialogue import ConversationRefusedError
from taste_grpc.dialogue.events import AudioIn, ClientEvent, ErrorCode, Failure, GoingAway
from taste_grpc.errors import (
    CheckpointError,
    InvalidInputError,
    OverloadedError,
    TasteError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedByModelError,
)
from taste_grpc.gateway.conversations import Authenticate, Conversations, Session
from taste_grpc.gateway.microphone import Microphone
from taste_grpc.gateway.protocol import (
    OVERLOADED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED,
    StartMessage,
    UnsupportedRateError,
    ViolationError,
    check_rates,
    error_text,
    event_text,
    info_text,
    protocol_text,
    read_message,
)
from taste_grpc.gateway.turns import Starts
from taste_grpc.observability import log_event
from taste_grpc.settings import LimitSettings

logger = logging.getLogger(__name__)

START_WITHIN_S = 30.0
"""Time for the first `start`; strangers do not stay."""

_FIXED = ("language", "system_prompt", "voice", "options", "resume_token")
"""Fields of the first `start` that hold for the whole conversation."""


@dataclass(frozen=True)
class Ending:
    """How a connection is closed."""

    code: CloseCode = CloseCode.NORMAL_CLOSURE
    reason: str = ""


class Talk:
    """Carries what a client sends to a conversation, and what happens there to the client.

    Neither direction waits for the other: a client that sends fast is read slower, one that reads slowly holds back
    its own conversation only.

    Args:
        websocket: not accepted yet.
        conversations: where its conversation is opened.
        limits: what messages may contain, and how long nothing may happen.
        authenticate: knows clients by the token in `start`.
        client: the name of a client that has shown its token already; else None.
    """

    def __init__(
        self,
        websocket: WebSocket,
        conversations: Conversations,
        limits: LimitSettings,
        authenticate: Authenticate,
        client: str | None = None,
    ) -> None:
        self._websocket = websocket
        self._conversations = conversations
        self._limits = limits
        self._authenticate = authenticate
        self._client = client
        self._session: Session | None = None
        self._starts = Starts()
        self._first_start = StartMessage()
        self._microphone = Microphone(0)
        self._is_deaf = False  # a `start` was refused: what was sent on the strength of it is dropped
        self._violation: ViolationError | None = None
        self._quiet: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Talk until one side ends it. Cancelling gives the conversation up."""
        began_s = time.monotonic()
        code: int = CloseCode.ABNORMAL_CLOSURE
        try:
            await self._websocket.accept()
            ending = await self._until_ending()
            code = ending.code
            await self._websocket.close(ending.code, ending.reason)
        except WebSocketDisconnect as gone:
            code = gone.code
        finally:
            log_event(
                logger,
                logging.INFO,
                "web conversation ended",
                session=self._session.session_id if self._session else "",
                client=self._client or "",
                peer=self._websocket.client.host if self._websocket.client else "",
                seconds=round(time.monotonic() - began_s, 1),
                close_code=int(code),
            )

    async def _until_ending(self) -> Ending:
        try:
            async with asyncio.timeout(START_WITHIN_S) as self._quiet:
                await self._send(protocol_text())
                self._session = await self._open()
                return await self._converse(self._session)
        except WebSocketDisconnect:
            raise
        except TasteError as error:
            code, ending = _refusal(error)
            if code is ErrorCode.INTERNAL:
                return await self._failed(error)
            await self._send(error_text(code, str(error)))
            return ending
        except Exception as error:
            if isinstance(error, TimeoutError) and self._quiet and self._quiet.expired():
                await self._send(info_text("nothing has happened for a long time: the connection is closed"))
                return Ending(CloseCode.POLICY_VIOLATION, "idle")
            return await self._failed(error)

    async def _failed(self, error: Exception) -> Ending:
        """Something went wrong that is not the client's business."""
        log_event(logger, logging.ERROR, "web conversation failed", error=error)
        await self._send(error_text(ErrorCode.INTERNAL, "the server failed; its log has the cause"))
        return Ending(CloseCode.INTERNAL_ERROR)

    async def _open(self) -> Session:
        """The conversation that the client's first good `start` opens."""
        while True:
            message = await self._receive()
            if self._is_deaf and isinstance(message, bytes):
                continue
            read = read_message(message, self._limits)
            if not isinstance(read, StartMessage):
                if self._is_deaf:
                    continue
                raise ViolationError(f"{_name(read)} before start", CloseCode.PROTOCOL_ERROR)
            if self._client is None:
                token = read.access_token
                self._client = self._authenticate(token.get_secret_value() if token else None)
            session = await self._opened_by(read)
            if session is not None:
                return session

    async def _opened_by(self, start: StartMessage) -> Session | None:
        """The conversation; None when this `start` was refused and the client may try another one."""
        if start.sample_rate is None:
            raise ViolationError("start.sample_rate: is missing")
        try:
            check_rates(start, self._limits)
            self._quiet_for(None)  # opening may take a while
            session = await self._conversations.open(start.to_start())
        except UnsupportedRateError as error:
            await self._refuse(ErrorCode.UNSUPPORTED_SAMPLE_RATE, str(error))
            return None
        except ConversationRefusedError as error:
            if not error.code.recoverable:
                raise
            await self._refuse(error.code, str(error))
            return None
        self._is_deaf = False
        self._first_start = start
        self._microphone = Microphone(start.sample_rate)
        return session

    async def _converse(self, session: Session) -> Ending:
        self._stay()
        reading = asyncio.create_task(self._read(session), name="websocket-read")
        writing = asyncio.create_task(self._write(session), name="websocket-write")
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not writing.done():
                reading.result()  # raises when the client has gone
            ending = await writing
            return Ending(self._violation.close_code) if self._violation else ending
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            await session.aclose()

    async def _read(self, session: Session) -> None:
        """Carry messages to `session` until one of them is against the protocol."""
        try:
            while True:
                read = read_message(await self._receive(), self._limits)
                if isinstance(read, StartMessage):
                    await self._restart(read)
                elif not isinstance(read, AudioIn):
                    await session.put(read)
                elif pcm := self._heard(read):
                    await session.put(AudioIn(pcm))
        except ViolationError as error:
            self._violation = error
            session.violate(str(error))

    def _heard(self, audio: AudioIn) -> bytes:
        """`audio` at the rate of the conversation; may be empty."""
        return b"" if self._is_deaf else self._microphone.convert(audio.data)

    async def _restart(self, start: StartMessage) -> None:
        """A further `start`: of the fields only `sample_rate` may differ from the first one's."""
        self._starts.check()
        try:
            check_rates(start, self._limits)
        except UnsupportedRateError as error:
            await self._refuse(ErrorCode.UNSUPPORTED_SAMPLE_RATE, str(error))
            return
        self._starts.take()
        self._is_deaf = False
        if start.sample_rate is not None:
            self._microphone.switch(start.sample_rate)
        changed = [name for name in _FIXED if _changes(name, start, self._first_start)]
        if changed:
            await self._send(info_text(f"{', '.join(changed)}: as in the first start; to change it, connect anew"))

    async def _write(self, session: Session) -> Ending:
        """Carry events to the client until there are no more."""
        ending = Ending()
        async with aclosing(session.events()) as events:
            async for event in events:
                self._starts.saw(event)
                await self._send(event_text(event))
                if isinstance(event, GoingAway):
                    ending = Ending(CloseCode.SERVICE_RESTART, "going away")
                elif isinstance(event, Failure) and not event.code.recoverable:
                    ending = _ending_after(event.code)
        return Ending(CloseCode.SERVICE_RESTART, "the server stops") if session.was_cut else ending

    async def _refuse(self, code: ErrorCode, message: str) -> None:
        self._is_deaf = True
        if self._session is None:
            self._quiet_for(START_WITHIN_S)
        await self._send(error_text(code, message))

    async def _receive(self) -> str | bytes:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or CloseCode.NO_STATUS_RCVD)
        self._stay()
        text: str | None = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def _send(self, text: str) -> None:
        await self._websocket.send_text(text)
        self._stay()

    def _stay(self) -> None:
        """Something has happened."""
        if self._session is not None:
            self._quiet_for(self._limits.max_idle_ms / 1000)

    def _quiet_for(self, seconds: float | None) -> None:
        """Nothing may happen for so long from now on."""
        if self._quiet is not None and not self._quiet.expired():
            self._quiet.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


def _changes(name: str, start: StartMessage, first: StartMessage) -> bool:
    return name in start.model_fields_set and getattr(start, name) != getattr(first, name)


def _name(event: ClientEvent) -> str:
    return "audio" if isinstance(event, AudioIn) else f"a {type(event).__name__.lower()} message"


def _refusal(error: TasteError) -> tuple[ErrorCode | str, Ending]:
    """What a client is told that cannot talk, and how its connection ends."""
    match error:
        case ViolationError():
            return ErrorCode.PROTOCOL_VIOLATION, Ending(error.close_code)
        case InvalidInputError():
            return ErrorCode.PROTOCOL_VIOLATION, Ending(CloseCode.UNSUPPORTED_DATA)
        case ConversationRefusedError():
            return error.code, _ending_after(error.code)
        case UnauthenticatedError():
            return UNAUTHENTICATED, Ending(CloseCode.POLICY_VIOLATION, "unauthenticated")
        case OverloadedError():
            return OVERLOADED, Ending(CloseCode.TRY_AGAIN_LATER)
        case UnavailableError():
            return UNAVAILABLE, Ending(CloseCode.TRY_AGAIN_LATER)
        case CheckpointError():
            return ErrorCode.MODEL_LOAD_FAIL, _ending_after(ErrorCode.MODEL_LOAD_FAIL)
        case UnsupportedByModelError():
            return UNSUPPORTED, Ending(CloseCode.POLICY_VIOLATION, "unsupported")
    return ErrorCode.INTERNAL, Ending(CloseCode.INTERNAL_ERROR)


def _ending_after(code: ErrorCode) -> Ending:
    """How a connection ends after an error from which there is no recovery."""
    if code is ErrorCode.PROTOCOL_VIOLATION:
        return Ending(CloseCode.PROTOCOL_ERROR)
    return Ending(CloseCode.INTERNAL_ERROR)
