"""A language model and a recogniser that say what they were told to, and count what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from taste_grpc.dialogue import Message, Sampling
from taste_grpc.speech import MoonshineRecogniser

ANSWER = "Yes, of course. It takes about three days until it gets there, give or take."


def pieces_of(text: str, size: int = 3) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


class ScriptedLanguageModel:
    """Answers with `pieces`, over and over when `endless`.

    Attributes:
        held: while it is cleared, no further piece comes.
        holds_after: once so many pieces have been given, `held` is cleared.
        failure: is raised once `fails_after` pieces have been given.
        asked: messages and sampling of each answer.
        given: pieces of all answers.
        begun, ended: answers; the latter however they ended.
    """

    def __init__(self, pieces: Sequence[str] = tuple(pieces_of(ANSWER))) -> None:
        self.pieces = list(pieces)
        self.endless = False
        self.held = asyncio.Event()
        self.held.set()
        self.holds_after: int | None = None
        self.failure: Exception | None = None
        self.fails_after = 0
        self.asked: list[tuple[list[Message], Sampling]] = []
        self.given = self.begun = self.ended = 0
        self.is_started = False

    @property
    def name(self) -> str:
        return "scripted 1"

    @property
    def running(self) -> int:
        return self.begun - self.ended

    async def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        self.asked.append((list(messages), sampling))
        self.begun += 1
        given = 0
        try:
            while True:
                for piece in self.pieces:
                    await self.held.wait()
                    await asyncio.sleep(0)
                    if self.failure is not None and given == self.fails_after:
                        raise self.failure
                    given += 1
                    self.given += 1
                    if self.given == self.holds_after:
                        self.held.clear()
                    yield piece
                if not self.endless:
                    return
        finally:
            self.ended += 1

    async def start(self) -> None:
        self.is_started = True

    async def aclose(self) -> None:
        self.is_started = False


class ScriptedRecogniser:
    """Hears `text` in whatever it is given; `heard` has how many samples that was."""

    def __init__(self, text: str = "how long does it take") -> None:
        self.text = text
        self.heard: list[int] = []
        self.failure: Exception | None = None
        self.is_started = False

    async def start(self) -> None:
        self.is_started = True

    async def aclose(self) -> None:
        self.is_started = False

    async def transcribe(self, samples: np.ndarray, *, urgent: bool, language: str | None = None) -> str:
        self.heard.append(len(samples))
        if self.failure is not None:
            raise self.failure
        return self.text


class RealRecogniser:
    """The embedded recogniser, for the event loop."""

    def __init__(self) -> None:
        self._recogniser: MoonshineRecogniser | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        self._recogniser = await asyncio.to_thread(MoonshineRecogniser)

    async def aclose(self) -> None:
        self._recogniser = None

    async def transcribe(self, samples: np.ndarray, *, urgent: bool, language: str | None = None) -> str:
        assert self._recogniser is not None
        async with self._lock:
            return await asyncio.to_thread(self._recogniser.transcribe, samples)
