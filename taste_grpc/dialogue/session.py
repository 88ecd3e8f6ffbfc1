"""One live conversation on the server: what a client sends goes in, what it is told comes out, in order."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing

from taste_grpc.dialogue.conversation import Conversation, ConversationParts, Manner, fault_of_the_server
from taste_grpc.dialogue.ear import Ear
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ClientEvent,
    ErrorCode,
    GoingAway,
    Mark,
    MarkReached,
    PlaybackAck,
    PlaybackCredit,
    ServerEvent,
    Started,
    Stop,
    TextTurn,
    VoiceChoice,
)
from taste_grpc.dialogue.memory import Memory
from taste_grpc.dialogue.outbox import Outbox
from taste_grpc.dialogue.phases import Phase
from taste_grpc.errors import InvalidInputError
from taste_grpc.observability import log_event

logger = logging.getLogger(__name__)

QUEUED_EVENTS = 32
"""Events of the client that may wait; whoever puts in more waits too."""


class Session:
    """A conversation between `put`, which takes what the client sends, and `events`, which gives what it is told.

    A task of its own handles the client's events one after the other. To be used on one event loop; `aclose` is to be
    called in every ending.

    Args:
        parts: what it works with.
        manner: how it is held.
        memory: what was said before.
        ear: for its microphone.
        ears: threads on which microphone audio is looked at.
        resumed: whether it goes on from an earlier call.
        on_over: called when nothing more will be said; the client learns of the end once it has returned.
        on_closed: called once it holds nothing any more.
        clock: seconds.
    """

    def __init__(
        self,
        parts: ConversationParts,
        manner: Manner,
        memory: Memory,
        ear: Ear,
        ears: Executor,
        *,
        resumed: bool = False,
        on_over: Callable[[Session], Awaitable[None]] | None = None,
        on_closed: Callable[[Session], None] = lambda session: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session_id = uuid.uuid4().hex[:16]
        self.manner = manner
        self._ear, self._ears, self._on_over, self._on_closed = ear, ears, on_over, on_closed
        self._outbox = Outbox(on_notice=lambda message: parts.metrics.notice(self.session_id, message))
        self._outbox.put(Started(self.session_id, manner.voice, resumed))
        self._conversation = Conversation(
            self.session_id,
            parts,
            manner,
            memory,
            self._outbox,
            frame_ms=ear.frame_ms,
            on_idle=self._turn_over,
            on_fault=lambda message: self._fail(ErrorCode.INTERNAL, message),
            clock=clock,
        )
        self._inbox: asyncio.Queue[ClientEvent | None] = asyncio.Queue()
        self._space = asyncio.Semaphore(QUEUED_EVENTS)
        self._input_ended = self._leaving = self._over = self._was_cut = False
        self._driver = asyncio.create_task(self._drive(), name="converse")
        self._farewell: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def was_cut(self) -> bool:
        """Whether the server ended it, before its end."""
        return self._was_cut

    @property
    def voice(self) -> VoiceChoice:
        """How answers sound."""
        return self.manner.voice

    @property
    def memory(self) -> Memory:
        """What was said."""
        return self._conversation.memory

    @property
    def phase(self) -> Phase:
        """Where the running turn stands."""
        return self._conversation.phase

    @property
    def turns(self) -> int:
        """Turns that have ended."""
        return self._conversation.turns

    @property
    def is_over(self) -> bool:
        """Whether the conversation has ended; events may still be unread."""
        return self._over

    async def put(self, event: ClientEvent) -> None:
        """Take in `event`; waits while many are queued. Does nothing once the conversation has ended."""
        await self._space.acquire()
        if self._over:
            self._space.release()  # the next one that waits
            return
        self._inbox.put_nowait(event)

    def end_input(self) -> None:
        """Nothing more comes: the running turn finishes, then the conversation ends."""
        self._inbox.put_nowait(None)

    def violate(self, message: str) -> None:
        """The client has broken the protocol: it is told, and the conversation ends."""
        self._fail(ErrorCode.PROTOCOL_VIOLATION, message)

    def cut(self) -> None:
        """The server stops: the conversation ends where it is."""
        self._was_cut = not self._over
        self._end()

    def give_up(self) -> None:
        """End at once, without a word: nobody is there to hear it."""
        self._end()

    def go_away(self, resume_token: str, grace_ms: int, token_lifetime_ms: int) -> None:
        """The server is about to stop: the client is told, and the conversation ends with its running turn."""
        self._outbox.put(GoingAway(resume_token, grace_ms, token_lifetime_ms))
        self._leaving = True
        self._turn_over()

    async def events(self) -> AsyncGenerator[ServerEvent]:
        """What the client is to be told, for one reader; ends with the conversation."""
        async with aclosing(self._outbox.events()) as events:
            async for event in events:
                yield event
        if self._farewell is not None:
            await asyncio.wait([self._farewell])

    async def aclose(self) -> None:
        """End at once; returns when nothing of the conversation is left running, even if it is cancelled meanwhile."""
        self._end()
        self._outbox.clear()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close-conversation")
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    async def _close(self) -> None:
        try:
            self._driver.cancel()
            await asyncio.wait([self._driver])
            await self._conversation.aclose()
            if self._farewell is not None:
                await asyncio.wait([self._farewell])
        finally:
            self._on_closed(self)

    async def _drive(self) -> None:
        try:
            while True:
                await self._outbox.bearable()
                event = await self._inbox.get()
                if self._over:
                    return
                if event is None:
                    self._input_ended = True
                    self._conversation.end_input()
                else:
                    self._space.release()
                    await self._handle(event)
        except InvalidInputError as error:
            self._fail(ErrorCode.PROTOCOL_VIOLATION, str(error))
        except Exception as error:
            log_event(logger, logging.ERROR, "conversation failed", error=error, session=self.session_id)
            self._fail(ErrorCode.INTERNAL, fault_of_the_server(self.session_id))

    async def _handle(self, event: ClientEvent) -> None:
        conversation = self._conversation
        match event:
            case AudioIn(data):
                self._ear.check(data)
                frames = await asyncio.get_running_loop().run_in_executor(self._ears, self._ear.push, data)
                if not self._over:
                    conversation.hear(frames, len(data))
            case Stop():
                conversation.stop()
            case Cancel():
                conversation.cancel()
            case TextTurn(text):
                conversation.say(text)
            case PlaybackAck(turn, played_ms):
                conversation.acked(turn, played_ms)
            case PlaybackCredit(max_unplayed_ms):
                conversation.grant(max_unplayed_ms)
            case Mark(name):
                self._outbox.put(MarkReached(name))

    def _turn_over(self) -> None:
        """End, if that was waited for; not at once, as another turn may be about to begin."""
        if self._input_ended or self._leaving:
            asyncio.get_running_loop().call_soon(self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._conversation.is_idle:
            self._end()

    def _fail(self, code: ErrorCode, message: str) -> None:
        if not self._over:
            try:
                self._conversation.fail(code, message)
            finally:
                self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._outbox.close()
            self._space.release()
            self._inbox.put_nowait(None)
            if self._on_over is not None:
                self._farewell = asyncio.create_task(self._say_farewell(self._on_over), name="conversation-over")

    async def _say_farewell(self, on_over: Callable[[Session], Awaitable[None]]) -> None:
        try:
            await on_over(self)
        except Exception as error:
            log_event(logger, logging.ERROR, "a conversation was not kept", error=error, session=self.session_id)
