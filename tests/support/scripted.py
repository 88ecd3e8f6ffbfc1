"""Parts of a conversation that do what a test tells them, when it tells them; and somebody to talk to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from taste_grpc.audio import Encoding
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue import (
    Answerer,
    Cascade,
    CascadeSettings,
    ConversationParts,
    DialogueMetrics,
    DialogueSettings,
    Manner,
    Message,
    Phase,
    Sampling,
    Session,
)
from taste_grpc.dialogue.ear import Ear
from taste_grpc.dialogue.events import (
    AudioIn,
    ClientEvent,
    Failure,
    Notice,
    Options,
    PhaseChanged,
    ServerEvent,
    VoiceChoice,
)
from taste_grpc.dialogue.memory import Memory

RATE_HZ = 16_000
FRAME_MS = 32
FRAME_SAMPLES = RATE_HZ * FRAME_MS // 1000
Event = TypeVar("Event", bound=ServerEvent)


def audio(pattern: str) -> bytes:
    """LINEAR16 at 16 kHz; `#` is a frame of speech, anything else one of silence."""
    loud = np.full(FRAME_SAMPLES, 8_000, "<i2").tobytes()
    return b"".join(loud if mark == "#" else bytes(len(loud)) for mark in pattern)


@dataclass(frozen=True)
class Decode:
    """One call of a transcriber."""

    ms: float
    urgent: bool
    language: str | None


@dataclass
class ScriptedTranscriber:
    """Understands `text`; with `held` cleared it waits.

    Attributes:
        text: what it says of any audio; a function gets the length in ms.
        failures: raised by the next calls, one each; None for a call that works.
        most_at_once: decodes that ran at the same time.
    """

    text: str | Callable[[float], str] = "hello there"
    failures: list[Exception | None] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    most_at_once: int = 0
    calls: list[Decode] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    step: Callable[[], Any] = lambda: asyncio.sleep(0)

    def __post_init__(self) -> None:
        self.held.set()

    def check_language(self, language: str | None) -> None:
        """Knows every language."""

    async def transcribe(self, samples: Float32Array, *, urgent: bool, language: str | None = None) -> str:
        ms = 1000 * len(samples) / RATE_HZ
        self.calls.append(Decode(ms, urgent, language))
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await self.held.wait()
            await self.step()
            failure = self.failures.pop(0) if self.failures else None
            if failure is not None:
                raise failure
            return self.text if isinstance(self.text, str) else self.text(ms)
        finally:
            self.running -= 1


@dataclass
class ScriptedModel:
    """Goes through `steps` for each answer: text is given, an event is waited for, an exception is raised.

    Attributes:
        given: pieces that were given, of all answers.
        open: answers that are not closed.
        on_close: raised when an answer is closed early.
    """

    steps: Sequence[str | asyncio.Event | Exception] = ("Well. ", "That is ", "a question.")
    name: str = "scripted model"
    asked: list[list[Message]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    open: int = 0
    on_close: Exception | None = None

    async def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        self.asked.append(list(messages))
        self.samplings.append(sampling)
        self.open += 1
        finished = False
        try:
            for step in self.steps:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    self.given.append(step)
                    yield step
                    await asyncio.sleep(0)
            finished = True
        finally:
            self.open -= 1
            if not finished and self.on_close is not None:
                raise self.on_close

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to end."""


@dataclass
class ScriptedVoice:
    """Says every phrase in `ms` of audio, in pieces; `steps` has what else happens before a phrase, or half-way.

    Attributes:
        before: for a phrase, an event that is waited for or an exception that is raised before any audio.
        halfway: the same, after the first of two pieces.
        spoken: phrases that were begun.
        open: phrases that are not closed.
    """

    ms: float = 20.0
    sample_rate_hz: int = RATE_HZ
    name: str = "scripted voice"
    before: dict[str, asyncio.Event | Exception] = field(default_factory=dict)
    halfway: dict[str, asyncio.Event | Exception] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)
    open: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.held.set()

    async def speak(self, text: str) -> AsyncGenerator[Float32Array]:
        self.spoken.append(text)
        self.open += 1
        piece = np.full(round(self.ms * self.sample_rate_hz / 2000), 0.25, np.float32)
        try:
            await self.held.wait()
            await _happens(self.before.get(text))
            yield piece
            await _happens(self.halfway.get(text))
            yield piece
        finally:
            self.open -= 1

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        """Nothing to end."""


async def _happens(step: asyncio.Event | Exception | None) -> None:
    if isinstance(step, Exception):
        raise step
    if step is not None:
        await step.wait()


class LoudnessDetector:
    """Loud frames are speech."""

    name = "loudness"
    frame_samples = FRAME_SAMPLES

    def is_speech(self, frame: Float32Array) -> bool:
        return bool(np.abs(frame).mean() > 0.1)

    def reset(self) -> None:
        """It knows nothing of the stream."""


@dataclass
class Scripts:
    """The parts of a conversation, made on the running loop."""

    transcriber: ScriptedTranscriber = field(default_factory=ScriptedTranscriber)
    model: ScriptedModel = field(default_factory=ScriptedModel)
    voice: ScriptedVoice = field(default_factory=ScriptedVoice)
    cascade: CascadeSettings = field(default_factory=CascadeSettings)
    metrics: DialogueMetrics = field(default_factory=lambda: DialogueMetrics(log_latency=False))
    answerer: Answerer | None = None
    """Takes the place of model and voice."""

    @property
    def parts(self) -> ConversationParts:
        answerer = self.answerer or Cascade(self.model, self.voice, self.cascade)
        return ConversationParts(self.transcriber, answerer, self.metrics)


class Client:
    """Somebody at the other end of a session; keeps all it is told.

    Attributes:
        events: what came so far.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.events: list[ServerEvent] = []
        self._came = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reader = asyncio.create_task(self._read(), name="client")

    async def _read(self) -> None:
        async for event in self.session.events():
            self.events.append(event)
            self._came.set()
            await self._may_read.wait()
        self._came.set()

    def read_no_more(self) -> None:
        """Reads one event more at most, until `read_on`."""
        self._may_read.clear()

    def read_on(self) -> None:
        self._may_read.set()

    async def send(self, *events: ClientEvent) -> None:
        for event in events:
            await self.session.put(event)

    async def speak(self, pattern: str) -> None:
        """Audio of the whole `pattern`, in one message."""
        await self.send(AudioIn(audio(pattern)))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition`, which depends on the events."""
        async with asyncio.timeout(30):
            while not condition():
                self._came.clear()
                await self._came.wait()

    async def phase(self, phase: Phase, turn: int | None = None) -> None:
        """Wait until a turn has entered `phase`."""
        await self.until(
            lambda: any(each.phase is phase and turn in (None, each.turn) for each in self.of(PhaseChanged))
        )

    async def idle(self, turn: int = 1) -> None:
        """Wait until so many turns have ended."""
        await self.phase(Phase.IDLE, turn)

    async def finished(self) -> None:
        """Wait until the conversation has ended and all was read."""
        async with asyncio.timeout(30):
            await asyncio.wait([self._reader])
        await self._reader

    async def close(self) -> None:
        self.read_on()
        await self.session.aclose()
        await self.finished()

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def phases(self) -> list[tuple[int, str]]:
        return [(event.turn, event.phase.value) for event in self.of(PhaseChanged)]

    @property
    def codes(self) -> list[str]:
        return [event.code.value for event in self.of(Failure)]

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.of(Notice)]


def manner(settings: DialogueSettings, voice: VoiceChoice | None = None, language: str | None = None) -> Manner:
    return Manner("Be kind.", language, voice or VoiceChoice(), Options(), settings)


@asynccontextmanager
async def talking(
    scripts: Scripts | None = None,
    *,
    memory: Memory | None = None,
    voice: VoiceChoice | None = None,
    language: str | None = None,
    clock: Callable[[], float] | None = None,
    is_alone: bool = True,
    **settings: Any,
) -> AsyncIterator[Client]:
    """A client of a session of its own; afterwards nothing of it runs any more, or an AssertionError says what.

    With others at the same time, which are not `is_alone`, only its parts are looked at.
    """
    before = asyncio.all_tasks()
    scripts = scripts or Scripts()
    ears = ThreadPoolExecutor(1)
    session = Session(
        scripts.parts,
        manner(replace(DialogueSettings(), **settings), voice, language),
        memory or Memory(),
        Ear(Encoding.LINEAR16, RATE_HZ, 1, LoudnessDetector()),
        ears,
        **({} if clock is None else {"clock": clock}),
    )
    client = Client(session)
    try:
        yield client
    finally:
        await client.close()
        ears.shutdown()
    left = asyncio.all_tasks() - before if is_alone else None
    assert not left, f"still running: {left}"
    assert (scripts.transcriber.running, scripts.model.open, scripts.voice.open) == (0, 0, 0)


async def passes(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def time_passes(seconds: float) -> None:
    """So much time goes by at once for the running loop: what waits for no longer is due."""
    loop = asyncio.get_running_loop()
    time = loop.time
    loop.time = lambda: time() + seconds  # type: ignore[method-assign]


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition`, which something on the loop or on a thread brings about."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
