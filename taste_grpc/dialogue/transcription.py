"""What a person says in one turn, from partial transcripts to the final one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ

FIRST_PARTIAL_MS = 500
"""No partial transcript before so much audio."""
LEAST_ADDED_MS = 200
"""None unless so much was added."""
TAIL_MS = 100
"""Audio after the last frame of speech that a decode needs for the last word."""
SETTLED_MS = 200
"""A pause of this length may be the end of the turn: what was said until then is decoded ahead of it."""
_REST = 2.0
"""Between two decodes for partials, at least this times what the last one took passes."""


class Transcriber(Protocol):
    """What turns audio into text, for many conversations."""

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        ...

    def check_language(self, language: str | None) -> None:
        """Raise UnsupportedByModelError for a language, as a BCP 47 tag, that is not known."""
        ...

    async def transcribe(self, samples: Float32Array, *, urgent: bool, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; urgent ones come first. Raises SpeechError."""
        ...


class Recording:
    """The audio of a turn so far, at 16 kHz."""

    def __init__(self) -> None:
        self._pieces: list[Float32Array] = []
        self._length = 0

    @property
    def ms(self) -> float:
        """Its length."""
        return 1000 * self._length / RECOGNISER_SAMPLE_RATE_HZ

    def append(self, samples: Float32Array) -> None:
        """Add `samples` `[T]` float32."""
        self._pieces.append(samples)
        self._length += len(samples)

    def samples(self) -> Float32Array:
        """All of it, `[T]` float32."""
        joined = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        self._pieces = [joined]
        return joined


@dataclass(frozen=True)
class _Decode:
    until_ms: float
    """Length of the recording that it decodes."""
    task: asyncio.Task[str]


class Transcription:
    """The decodes of one turn, never two at once.

    Partial transcripts come every `interval_ms`, the first ones more often until there is text. A pause is decoded at
    once when nobody else waits for a recogniser: if it turns out to be the end of the turn, the final transcript is
    there by then.

    Args:
        transcriber: decodes.
        language: BCP 47 tag; None takes the recogniser's own.
        interval_ms: between partial transcripts.
        on_partial: called with the text so far, when it has changed, and the length of what it covers in ms.
        clock: seconds.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        *,
        language: str | None,
        interval_ms: float,
        on_partial: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recording = Recording()
        self.decodes = 0
        self._transcriber, self._language, self._interval_ms = transcriber, language, interval_ms
        self._on_partial, self._clock = on_partial, clock
        self._voiced_until_ms = 0.0
        self._decode: _Decode | None = None
        self._begun_ms = 0.0  # length of the recording when the last decode was begun
        self._covered_ms = 0.0  # by that decode; 0 when it failed
        self._cost_ms = 0.0
        self._due_ms = float(FIRST_PARTIAL_MS)  # length of the recording at which the next partial is due
        self._text = ""
        self._shown = ""
        self._over = False

    def hear(self, samples: Float32Array, *, is_speech: bool) -> None:
        """Add audio; begins a decode when one is due."""
        self.recording.append(samples)
        now_ms = self.recording.ms
        if is_speech:
            self._voiced_until_ms = now_ms
        if self._over or self._decode is not None:
            return
        if now_ms >= self._due_ms and self._is_whole(self._covered_ms):
            self._show(self._covered_ms)  # nothing was said since
        elif now_ms >= self._due_ms and now_ms - self._begun_ms >= LEAST_ADDED_MS:
            self._begin(is_partial=True)
        elif self._has_settled(now_ms) and not self._transcriber.waiting:
            self._begin(is_partial=False)

    async def final(self) -> str:
        """The final transcript; no partial one comes after this was called.

        Raises SpeechError when the recogniser fails.
        """
        self._over = True
        decode = self._decode
        if decode is not None:
            text = await self._result(decode.task)
            if text is not None and self._is_whole(decode.until_ms):
                return text
        elif self._is_whole(self._covered_ms):
            return self._text
        self.decodes += 1
        return await self._transcriber.transcribe(self.recording.samples(), urgent=True, language=self._language)

    def abandon(self) -> asyncio.Task[str] | None:
        """Nobody wants the rest: no decode begins any more. Returns the one under way, which is to be cancelled."""
        self._over = True
        return None if self._decode is None else self._decode.task

    def _is_whole(self, until_ms: float) -> bool:
        """Whether a decode of so much of the recording heard the last word to its end."""
        return until_ms > 0 and until_ms >= min(self._voiced_until_ms + TAIL_MS, self.recording.ms)

    def _has_settled(self, now_ms: float) -> bool:
        silent_ms = now_ms - self._voiced_until_ms
        return bool(self._voiced_until_ms) and silent_ms >= SETTLED_MS and self._begun_ms < self._voiced_until_ms

    def _begin(self, *, is_partial: bool) -> None:
        self.decodes += 1
        self._begun_ms = self._covered_ms = until_ms = self.recording.ms
        run = self._run(self.recording.samples(), until_ms, is_partial=is_partial)
        task = asyncio.create_task(run, name="transcribe")
        self._decode = _Decode(until_ms, task)
        task.add_done_callback(self._ended)

    async def _run(self, samples: Float32Array, until_ms: float, *, is_partial: bool) -> str:
        begun = self._clock()
        text = await self._transcriber.transcribe(samples, urgent=not is_partial, language=self._language)
        self._cost_ms = 1000 * (self._clock() - begun)
        self._text = text
        if is_partial:
            wait_ms = min(self._interval_ms, FIRST_PARTIAL_MS) if not text else self._interval_ms
            self._due_ms = until_ms + max(wait_ms, _REST * self._cost_ms)
            self._show(until_ms)
        return text

    def _show(self, until_ms: float) -> None:
        if self._text and self._text != self._shown and not self._over:
            self._shown = self._text
            self._due_ms = max(self._due_ms, self.recording.ms + self._interval_ms)
            self._on_partial(self._text, round(until_ms))

    def _ended(self, task: asyncio.Task[str]) -> None:
        if self._decode is not None and self._decode.task is task:
            self._decode = None
        if not task.cancelled() and task.exception() is not None:
            # Partial transcripts can be done without: the final one tells what is wrong.
            self._covered_ms = 0.0
            self._due_ms = self.recording.ms + self._interval_ms

    async def _result(self, task: asyncio.Task[str]) -> str | None:
        """What `task` gives; None when it failed, as another decode may not."""
        try:
            return await task
        except SpeechError:
            return None
