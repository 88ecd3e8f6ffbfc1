"""Events on their way to a client that may read them slowly."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from taste_grpc.dialogue.events import Notice, PartialTranscript, ServerEvent, SpeechChunk

FULL_EVENTS = 8
"""So many events unread hold back those who make the answer."""
CLEAR_EVENTS = 2
"""So few let them go on."""
SLOW_AFTER_S = 0.5
"""A client for whom they were held back for so long counts as slow."""
MOST_EVENTS = 256
"""So many unread hold back what the client sends, too: one that never reads cannot fill the memory."""

SLOW = "the client reads slowly: partial transcripts are left out until it has caught up"
CLEAR = "the client has caught up"


class Outbox:
    """Events in the order they were put in; one reader.

    A client that falls behind is told so once, and once more when it has caught up. As long as it is behind, only the
    latest partial transcript waits for it. Everything else is kept: a turn has few of it, but for the answer, whose
    makers wait for `room`. To be used on one event loop.

    Args:
        slow_after_s: how long the makers of the answer are held back for a client that is not slow yet.
        on_notice: called with what the client is told of its own slowness.
    """

    def __init__(
        self, slow_after_s: float = SLOW_AFTER_S, on_notice: Callable[[str], None] = lambda message: None
    ) -> None:
        self._slow_after_s, self._on_notice = slow_after_s, on_notice
        self._events: deque[ServerEvent] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._bearable = asyncio.Event()
        self._bearable.set()
        self._timer: asyncio.TimerHandle | None = None
        self._slow = False
        self._closed = False

    @property
    def unread(self) -> int:
        """Events that wait."""
        return len(self._events)

    @property
    def is_slow(self) -> bool:
        """Whether the client is behind."""
        return self._slow

    def put(self, event: ServerEvent) -> None:
        """Add `event`; nothing is added once closed."""
        if self._closed:
            return
        if isinstance(event, PartialTranscript) and self._slow:
            self._leave_out(PartialTranscript)
        self._events.append(event)
        if len(self._events) >= MOST_EVENTS:
            self._bearable.clear()
        if len(self._events) >= FULL_EVENTS and self._room.is_set():
            self._room.clear()
            if not self._slow:
                self._timer = asyncio.get_running_loop().call_later(self._slow_after_s, self._is_behind)
        self._changed.set()

    async def room(self) -> None:
        """Wait until the client has read enough for more of an answer."""
        await self._room.wait()

    async def bearable(self) -> None:
        """Wait while so much is unread that the client must not cause more of it."""
        await self._bearable.wait()

    def drop_speech(self) -> list[SpeechChunk]:
        """Leave out audio that nobody will hear any more; returns it. A slow client stays one until it has read."""
        dropped = [event for event in self._events if isinstance(event, SpeechChunk)]
        self._leave_out(SpeechChunk)
        self._make_room()
        return dropped

    def close(self) -> None:
        """What is in it is still read; nothing follows."""
        self._closed = True
        self._let_go_on()
        self._bearable.set()
        self._changed.set()

    def clear(self) -> None:
        """Forget what is unread."""
        self._events.clear()

    async def events(self) -> AsyncGenerator[ServerEvent]:
        """The events as they come; ends after the last one once closed."""
        while True:
            while self._events:
                event = self._events.popleft()
                self._read_some()
                yield event
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _is_behind(self) -> None:
        self._timer = None
        self._slow = True
        self._events.append(Notice(None, SLOW))
        self._changed.set()
        self._on_notice(SLOW)

    def _read_some(self) -> None:
        self._make_room()
        if self._slow and not self._closed and len(self._events) <= CLEAR_EVENTS:
            self._slow = False
            self.put(Notice(None, CLEAR))
            self._on_notice(CLEAR)

    def _make_room(self) -> None:
        """Let those go on who were held back, if few events are left."""
        if len(self._events) <= MOST_EVENTS // 2:
            self._bearable.set()
        if len(self._events) <= CLEAR_EVENTS:
            self._let_go_on()

    def _let_go_on(self) -> None:
        self._room.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave_out(self, kind: type[ServerEvent]) -> None:
        self._events = deque(event for event in self._events if not isinstance(event, kind))
