"""What answers a person, and where the answer goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.events import ErrorCode, VoiceChoice
from taste_grpc.dialogue.language_model import Message
from taste_grpc.errors import TasteError


class AnswerError(TasteError):
    """An answer cannot be given, or not to its end; `code` says which part failed."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Question:
    """What is to be answered.

    Attributes:
        messages: the conversation so far as a chat; the last message is what was said now.
        voice: how the answer is to sound.
        max_new_tokens: the longest answer.
        samples: the recording of what was said now, `[T]` float32 at 16 kHz; None when it was typed.
    """

    messages: Sequence[Message]
    voice: VoiceChoice
    max_new_tokens: int
    samples: Float32Array | None = None


async def side_by_side(writing: Coroutine[Any, Any, None], speaking: Coroutine[Any, Any, None]) -> None:
    """Write an answer and speak it at the same time; when one of the two fails, the other ends, and that is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(writing, name="write-answer")
            tasks.create_task(speaking, name="speak-answer")
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


class AnswerSink(Protocol):
    """Takes an answer as it is made. All methods are to be called on the event loop, by one task at a time each."""

    async def token(self, text: str) -> None:
        """More text; waits while the client is behind."""
        ...

    async def audio(self, phrase_index: int, phrase: str, samples: Float32Array, sample_rate_hz: int) -> None:
        """More audio `[T]` float32 of a phrase, in order; waits until it may be sent.

        Phrases are counted from 0; their texts, put together with blanks, are the answer's.
        """
        ...

    def phrase_failed(self, phrase: str, why: str) -> None:
        """A phrase cannot be spoken and is left out."""
        ...

    def notice(self, message: str) -> None:
        """Something worth knowing."""
        ...


class Answerer(Protocol):
    """Answers questions by voice. Several answers may be under way at once."""

    @property
    def name(self) -> str:
        """What answers, for people."""
        ...

    def check_voice(self, voice: VoiceChoice) -> None:
        """Raise InvalidInputError, or UnsupportedByModelError, for a voice that answers cannot have."""
        ...

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        """Give the whole answer to `sink`; returns when all of it was taken. Cancelling stops all work for it.

        Raises AnswerError.
        """
        ...
