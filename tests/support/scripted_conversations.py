"""Conversations that say what a test has them say, for tests of what carries them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import numpy as np

from taste_grpc.dialogue import ConversationRefusedError, Phase
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ClientEvent,
    ErrorCode,
    Failure,
    FinalTranscript,
    Interrupted,
    LlmToken,
    Mark,
    MarkReached,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    ServerEvent,
    SpeechChunk,
    SpeechComplete,
    Start,
    Started,
    TextTurn,
    TurnMetrics,
    VoiceChoice,
)

TONE_HZ = 440
_LOUD = 0.02


def tone(turn: int, seq: int, ms: int, rate_hz: int, phrase: str | None = None) -> SpeechChunk:
    """A chunk of a tone that goes on from chunk to chunk."""
    count = ms * rate_hz // 1000
    first = seq * count
    samples = 0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(first, first + count) / rate_hz)
    return SpeechChunk(turn, seq, samples.astype(np.float32), rate_hz, first, 0, phrase)


class ScriptedSession:
    """Takes down what comes in; what goes out is told by the test, through `emit`."""

    def __init__(self, start: Start, session_id: str) -> None:
        self.start = start
        self.session_id = session_id
        self.received: list[ClientEvent] = []
        self.is_taking = asyncio.Event()
        self.is_taking.set()
        self.closed = asyncio.Event()
        self.was_cut = False
        self.sent = 0
        self._out: asyncio.Queue[ServerEvent | None] = asyncio.Queue()
        self.emit(Started(session_id, start.voice or VoiceChoice(), resumed=start.resume_token is not None))

    @property
    def audio(self) -> bytes:
        """All that was said."""
        return b"".join(event.data for event in self.received if isinstance(event, AudioIn))

    def emit(self, *events: ServerEvent) -> None:
        """Have `events` happen."""
        for event in events:
            self._out.put_nowait(event)

    def cut(self) -> None:
        """End the conversation as a server that stops."""
        self.was_cut = True
        self.end()

    def end(self) -> None:
        """End the conversation after what was emitted."""
        self._out.put_nowait(None)

    async def put(self, event: ClientEvent) -> None:
        await self.is_taking.wait()
        self.received.append(event)
        if isinstance(event, Mark):
            self.emit(MarkReached(event.id))
        else:
            self.hear(event)

    def hear(self, event: ClientEvent) -> None:
        """Do what `event` calls for."""

    def violate(self, message: str) -> None:
        self.emit(Failure(None, ErrorCode.PROTOCOL_VIOLATION, message))
        self.end()

    async def events(self) -> AsyncGenerator[ServerEvent]:
        while (event := await self._out.get()) is not None:
            self.sent += 1
            yield event

    async def aclose(self) -> None:
        self.closed.set()

    def turn(self, number: int) -> None:
        """A whole turn without content."""
        phases = (Phase.CAPTURING, Phase.THINKING, Phase.RESPONDING, Phase.COMPLETE)
        self.emit(*(PhaseChanged(number, phase) for phase in phases), PhaseChanged(number + 1, Phase.IDLE))


class AnsweringSession(ScriptedSession):
    """Understands a second of sound as one sentence and answers it with a tone; answers typed turns at once.

    `answer_ms` is the length of its answers, in chunks of half a second; long ones come to no end. It hears
    `spoken_turns` and is deaf from then on.
    """

    answer_ms = 1_000
    spoken_turns = 1
    _heard_ms = 0.0
    _turn = 0
    _phase = Phase.IDLE

    def hear(self, event: ClientEvent) -> None:
        if isinstance(event, AudioIn):
            self._listen(np.frombuffer(event.data, "<i2") / 32_768)
        elif isinstance(event, TextTurn):
            self._begin(Phase.THINKING)
            self.answer()
        elif isinstance(event, Cancel) and self._phase is not Phase.IDLE:
            self.emit(Failure(self._turn, ErrorCode.CANCELLED, "the turn was cancelled"))
            self._complete()

    def _listen(self, samples: np.ndarray) -> None:
        if self._phase is Phase.IDLE and self._turn < self.spoken_turns and np.abs(samples).max(initial=0) > _LOUD:
            self._begin(Phase.CAPTURING)
            self._heard_ms = 0.0
        if self._phase is not Phase.CAPTURING:
            return
        before, self._heard_ms = self._heard_ms, self._heard_ms + 1000 * len(samples) / self.start.sample_rate_hz
        if before < 500 <= self._heard_ms:
            self.emit(PartialTranscript(self._turn, "Ever tr", 500))
        if self._heard_ms >= 1_000:
            self.emit(FinalTranscript(self._turn, "Ever tried.", 1_000))
            self._enter(Phase.THINKING)
            self.answer()

    def answer(self) -> None:
        words = ("Try again.", " Fail again.", " Fail <b>better</b>.")
        self.emit(*(LlmToken(self._turn, word, done=word is words[-1]) for word in words))
        self._enter(Phase.RESPONDING)
        rate_hz = self.start.voice.sample_rate_hz if self.start.voice else 16_000
        chunks = self.answer_ms // 500
        self.emit(*(tone(self._turn, seq, 500, rate_hz, None if seq else "Try again.") for seq in range(chunks)))
        if self.answer_ms < 10_000:
            self.emit(SpeechComplete(self._turn, chunks, self.answer_ms))
            self.emit(TurnMetrics(self._turn, 520.0, 1_090.0, 1_210.0, 1_480.0, 480.0))
            self._complete()

    def interrupt(self) -> None:
        """Have the person's speech interrupt the answer."""
        acks = [event.played_ms for event in self.received if isinstance(event, PlaybackAck)]
        self.emit(Interrupted(self._turn, max(acks, default=0), "Try again. Fail", estimated=not acks))
        self._complete()
        self._begin(Phase.CAPTURING)
        self._heard_ms = 0.0

    def _begin(self, phase: Phase) -> None:
        if self._phase is Phase.IDLE and not self.sent:
            self.emit(PhaseChanged(self._turn, Phase.IDLE))
        self._enter(phase)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self.emit(PhaseChanged(self._turn, phase))

    def _complete(self) -> None:
        self._enter(Phase.COMPLETE)
        self._turn += 1
        self._enter(Phase.IDLE)


@dataclass
class ScriptedConversations:
    """Opens conversations of a kind, and remembers them.

    `refusals` are raised one after the other before the first is opened.
    """

    make: Callable[[Start, str], ScriptedSession] = ScriptedSession
    refusals: list[Exception] = field(default_factory=list)
    opened: list[ScriptedSession] = field(default_factory=list)

    async def open(self, start: Start) -> ScriptedSession:
        if self.refusals:
            raise self.refusals.pop(0)
        session = self.make(start, f"scripted-{len(self.opened)}")
        self.opened.append(session)
        return session


def refusal(code: ErrorCode, message: str) -> ConversationRefusedError:
    return ConversationRefusedError(code, message)
