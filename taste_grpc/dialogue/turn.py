"""One turn of a conversation while it runs."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from taste_grpc.dialogue.delivery import Delivery
from taste_grpc.dialogue.ear import Frame
from taste_grpc.dialogue.metrics import TurnTimes
from taste_grpc.dialogue.playback import Heard
from taste_grpc.dialogue.transcription import Transcription


@dataclass
class Turn:
    """What belongs to the running turn.

    Attributes:
        number: counted from 0.
        times: when things happened.
        question: what was said; None until it is known.
        transcription: of what is said; None when it was typed.
        received_bytes: of microphone audio.
        answer: text of the answer so far.
        delivery: the answer's way out; None until there is an answer.
        is_sent: whether all of the answer has gone out.
        task: gets the transcript and the answer; None while the person speaks.
        meanwhile: what came of the microphone while the turn was being understood; None where the client said stop.
    """

    number: int
    times: TurnTimes
    question: str | None = None
    transcription: Transcription | None = None
    received_bytes: int = 0
    answer: str = ""
    delivery: Delivery | None = None
    is_sent: bool = False
    task: asyncio.Task[None] | None = None
    meanwhile: deque[Frame | None] = field(default_factory=deque)

    def heard(self) -> Heard:
        """What of the answer was heard by now."""
        return self.delivery.playback.heard() if self.delivery is not None else Heard(0, "", estimated=True)

    def abandon(self) -> list[asyncio.Task[Any]]:
        """Take in no more transcript and no more answer; returns the tasks that are to be stopped."""
        if self.delivery is not None:
            self.delivery.close()
        decode = self.transcription.abandon() if self.transcription is not None else None
        return [task for task in (self.task, decode) if task is not None]
