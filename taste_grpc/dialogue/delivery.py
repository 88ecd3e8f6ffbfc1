"""The answer of one turn on its way to the client: text at once, audio as it may be sent."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taste_grpc.audio import StreamResampler
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.events import ErrorCode, SpeechChunk, VoiceChoice
from taste_grpc.dialogue.outbox import Outbox
from taste_grpc.dialogue.playback import Playback

CHUNK_MS = 240
"""Audio is sent in chunks of this length at most."""
LEAST_CREDIT_MS = 20
"""A credit below this one stops the audio until there is more."""
_LEAST_WAIT_S = 0.005


@dataclass
class _Phrase:
    given_index: int
    text: str
    end: int
    """Its last sample is before this one of the answer."""
    told_index: int | None = None
    """Its place among the phrases that have audio; None before its first chunk."""


class Delivery:
    """The sink of one answer. To be used on one event loop.

    Audio is sent as it comes, unless the client has granted a credit: then no more than that is sent and not played.
    No chunk has audio of two phrases in it. A phrase that has no audio of its own is told as the beginning of the next.

    Args:
        turn: whose answer it is.
        voice: rate and encoding the client wants.
        outbox: where events go.
        on_token: called with each piece of text, before anything else of it is done.
        on_audio: called before each chunk goes out.
        on_trouble: called with what failed, or what is worth knowing when the code is None.
        credit_ms: of the client; None when it has granted none.
        clock: seconds.
    """

    def __init__(
        self,
        turn: int,
        voice: VoiceChoice,
        outbox: Outbox,
        *,
        on_token: Callable[[str], None],
        on_audio: Callable[[], None],
        on_trouble: Callable[[ErrorCode | None, str], None],
        credit_ms: int | None,
        clock: Callable[[], float],
    ) -> None:
        self.playback = Playback(clock)
        self.chunks = 0
        self._turn, self._rate_hz, self._outbox = turn, voice.sample_rate_hz, outbox
        self._on_token, self._on_audio, self._on_trouble = on_token, on_audio, on_trouble
        self._credit_ms = credit_ms
        self._changed = asyncio.Event()
        self._patient = True
        self._closed = False
        self._resampler: StreamResampler | None = None
        self._taken_samples = 0  # at the rate they come in
        self._sent_samples = 0
        self._phrases: deque[_Phrase] = deque()  # those that are not sent to their end
        self._told_phrases = 0

    # --- for what answers -----------------------------------------------------------------------------------

    async def token(self, text: str) -> None:
        """More text; waits while the client is behind."""
        if self._closed:
            return
        self._on_token(text)
        await self._outbox.room()

    async def audio(self, phrase_index: int, phrase: str, samples: Float32Array, sample_rate_hz: int) -> None:
        """More audio of a phrase; waits until it may be sent."""
        if self._resampler is None:
            self._resampler = StreamResampler(sample_rate_hz, self._rate_hz)
        self._taken_samples += len(samples)
        end = -(-self._taken_samples * self._rate_hz // sample_rate_hz)
        if self._phrases and self._phrases[-1].given_index == phrase_index:
            self._phrases[-1].end = end
        else:
            self._phrases.append(_Phrase(phrase_index, phrase, end))
        await self._send(await asyncio.to_thread(self._resampler.push, samples))

    def phrase_failed(self, phrase: str, why: str) -> None:
        """A phrase is left out."""
        if not self._closed:
            self._on_trouble(ErrorCode.TTS_FAIL, f"a phrase of {len(phrase)} characters was left out: {why}")

    def notice(self, message: str) -> None:
        """Something worth knowing."""
        if not self._closed:
            self._on_trouble(None, message)

    # --- for the session ------------------------------------------------------------------------------------

    def acked(self, played_ms: int) -> None:
        """The client has played so much."""
        self.playback.acked(played_ms)
        self._changed.set()

    def grant(self, credit_ms: int) -> None:
        """The client takes so much unplayed audio."""
        self._credit_ms = credit_ms
        self._changed.set()

    async def flush(self) -> None:
        """Send what the resampler still holds."""
        if self._resampler is not None:
            await self._send(self._resampler.finish())

    def wait_no_longer(self) -> None:
        """The client says nothing any more: `played` returns, and of its credit time tells what was played."""
        self._patient = False
        self.playback.acks_end()
        self._changed.set()

    async def played(self, grace_s: float) -> None:
        """Return when all that was sent has been played.

        A client that acknowledges is waited for, but no longer than `grace_s` beyond the time that playing takes.
        """
        while self._patient and (left_s := self.playback.left_s(grace_s)) > 0:
            self._changed.clear()
            await _wait(self._changed, left_s)

    def close(self) -> None:
        """The answer is over: whatever still comes of it is dropped."""
        self._closed = True

    async def _send(self, samples: Float32Array) -> None:
        while len(samples):
            await self._outbox.room()
            phrase = self._next_phrase()
            count = await self._allowed(min(len(samples), phrase.end - self._sent_samples))
            if self._closed:
                return
            self._put(phrase, samples[:count])
            samples = samples[count:]

    def _next_phrase(self) -> _Phrase:
        """The one that the next sample is of; the resampler holds samples back, so it may not be the newest."""
        while self._phrases[0].end <= self._sent_samples:
            ended = self._phrases.popleft()
            if ended.told_index is None:
                self._phrases[0].text = f"{ended.text} {self._phrases[0].text}"
        return self._phrases[0]

    async def _allowed(self, samples: int) -> int:
        """Wait until some of so many samples may be sent; returns how many."""
        chunk_ms = min(CHUNK_MS, 1000 * samples / self._rate_hz)
        while self._credit_ms is not None and (self._patient or self._credit_ms >= LEAST_CREDIT_MS):
            chunk_ms = min(CHUNK_MS, self._credit_ms, 1000 * samples / self._rate_hz)
            # In whole milliseconds, as clients count: what is left of one cannot be acknowledged.
            missing_ms = math.floor(self.playback.unplayed_ms) + chunk_ms - self._credit_ms
            if missing_ms <= 0 and self._credit_ms >= LEAST_CREDIT_MS:
                break
            self._changed.clear()
            # Time itself makes room, unless the client says what was played.
            waits_for_client = self.playback.is_acked or missing_ms <= 0
            await _wait(self._changed, None if waits_for_client else max(_LEAST_WAIT_S, missing_ms / 1000))
        return max(1, round(chunk_ms * self._rate_hz / 1000))

    def _put(self, phrase: _Phrase, samples: Float32Array) -> None:
        self._on_audio()
        is_new = phrase.told_index is None
        if phrase.told_index is None:
            phrase.told_index = self._told_phrases
            self._told_phrases += 1
        chunk = SpeechChunk(
            turn=self._turn,
            seq=self.chunks,
            samples=np.clip(samples, -1.0, 1.0),
            sample_rate_hz=self._rate_hz,
            first_sample=self._sent_samples,
            phrase_index=phrase.told_index,
            phrase_text=phrase.text if is_new else None,
        )
        self.chunks += 1
        self._sent_samples += len(samples)
        self.playback.sent(phrase.told_index, phrase.text, chunk.duration_ms)
        self._outbox.put(chunk)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
