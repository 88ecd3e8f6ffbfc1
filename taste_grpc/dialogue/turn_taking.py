"""When the person begins to speak and when they have finished, from one frame of audio to the next."""

from __future__ import annotations

from dataclasses import dataclass

_PAUSE_MS = 300
"""Silence after which speech counts again that belonged to a turn somebody else has ended."""


@dataclass(frozen=True)
class TurnTakingSettings:
    """When speech counts.

    Attributes:
        onset_ms: speech of at least this length begins a turn; what is shorter is a noise.
        silence_ms: silence of this length after speech ends the turn.
        gap_ms: silence up to this length inside speech does not interrupt its count before a turn has begun.
        burst_gap_ms: silence up to this length is part of one burst of speech.
    """

    onset_ms: int = 96
    silence_ms: int = 700
    gap_ms: int = 64
    burst_gap_ms: int = 128


@dataclass(frozen=True)
class SpeechBegan:
    """The person speaks.

    Attributes:
        at_ms: where the speech began, in ms of audio since the start.
    """

    at_ms: float


@dataclass(frozen=True)
class SpeechEnded:
    """The person has finished.

    Attributes:
        at_ms: where the silence began, in ms of audio since the start.
    """

    at_ms: float


class TurnTaking:
    """Turns the decisions of a voice-activity detector, one for each frame, into beginnings and ends of speech.

    Pure bookkeeping over milliseconds of audio: it knows no clock and no detector.
    """

    def __init__(self, settings: TurnTakingSettings | None = None) -> None:
        self.settings = settings or TurnTakingSettings()
        self.now_ms = 0.0
        """Audio seen so far."""
        self.speaking = False
        self._run_began_ms: float | None = None
        self._voiced_ms = 0.0
        self._last_voiced_ms = 0.0
        self._burst_ms = 0.0
        self._needs_silence = False

    @property
    def run_began_ms(self) -> float | None:
        """Where the speech under way began; None in silence."""
        return self._run_began_ms

    @property
    def last_voiced_ms(self) -> float:
        """Where the last frame with speech in it ended."""
        return self._last_voiced_ms

    @property
    def voiced_ms(self) -> float:
        """Length of the speech under way, without its pauses; 0 in silence."""
        return self._voiced_ms

    @property
    def burst_ms(self) -> float:
        """Length of speech since its last pause that can be heard. A long burst interrupts an answer."""
        return self._burst_ms

    def push(self, is_speech: bool, frame_ms: float) -> SpeechBegan | SpeechEnded | None:
        """Take the decision about the next frame; returns what it changes."""
        began, self.now_ms = self.now_ms, self.now_ms + frame_ms
        if is_speech:
            return self._voice(began, frame_ms)
        return self._silence()

    def begin(self) -> None:
        """Take the speech under way for the beginning of a turn, however short it is so far."""
        self.speaking = True

    def end(self, *, until_silence: bool = False) -> None:
        """Forget the speech under way: somebody else has ended the turn.

        With `until_silence` what is still being said belongs to that turn: nothing counts until there was a pause.
        """
        self._needs_silence = until_silence
        self.speaking = False
        self._run_began_ms = None
        self._voiced_ms = self._burst_ms = 0.0

    def _voice(self, began_ms: float, frame_ms: float) -> SpeechBegan | None:
        if began_ms - self._last_voiced_ms > self.settings.burst_gap_ms:
            self._burst_ms = 0.0
        self._last_voiced_ms = self.now_ms
        if self._needs_silence:
            return None
        self._burst_ms += frame_ms
        if self._run_began_ms is None:
            self._run_began_ms, self._voiced_ms = began_ms, 0.0
        self._voiced_ms += frame_ms
        if self.speaking or self._voiced_ms < self.settings.onset_ms:
            return None
        self.speaking = True
        return SpeechBegan(self._run_began_ms)

    def _silence(self) -> SpeechEnded | None:
        silent_ms = self.now_ms - self._last_voiced_ms
        if not self.speaking:
            if silent_ms > (_PAUSE_MS if self._needs_silence else self.settings.gap_ms):
                self.end()
            return None
        if silent_ms < self.settings.silence_ms:
            return None
        self.end()
        return SpeechEnded(self._last_voiced_ms)
