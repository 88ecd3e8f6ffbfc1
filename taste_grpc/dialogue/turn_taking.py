"""When the person begins to speak and when they have finished, from one frame of audio to the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TurnTakingSettings:
    """When speech counts.

    Attributes:
        onset_ms: speech of at least this length begins a turn; what is shorter is a noise.
        silence_ms: silence of this length after speech ends the turn.
        gap_ms: silence up to this length inside speech does not interrupt its count.
    """

    onset_ms: int = 96
    silence_ms: int = 700
    gap_ms: int = 64


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

    @property
    def voiced_ms(self) -> float:
        """Length of the speech under way, without its pauses; 0 in silence. Long speech interrupts an answer."""
        return self._voiced_ms

    def push(self, is_speech: bool, frame_ms: float) -> SpeechBegan | SpeechEnded | None:
        """Take the decision about the next frame; returns what it changes."""
        began, self.now_ms = self.now_ms, self.now_ms + frame_ms
        if is_speech:
            return self._voice(began, frame_ms)
        return self._silence()

    def end(self) -> None:
        """Forget the speech under way: somebody else has ended the turn."""
        self.speaking = False
        self._run_began_ms = None
        self._voiced_ms = 0.0

    def _voice(self, began_ms: float, frame_ms: float) -> SpeechBegan | None:
        if self._run_began_ms is None:
            self._run_began_ms, self._voiced_ms = began_ms, 0.0
        self._voiced_ms += frame_ms
        self._last_voiced_ms = self.now_ms
        if self.speaking or self._voiced_ms < self.settings.onset_ms:
            return None
        self.speaking = True
        return SpeechBegan(self._run_began_ms)

    def _silence(self) -> SpeechEnded | None:
        silent_ms = self.now_ms - self._last_voiced_ms
        if not self.speaking:
            if silent_ms > self.settings.gap_ms:
                self.end()
            return None
        if silent_ms < self.settings.silence_ms:
            return None
        self.end()
        return SpeechEnded(self._last_voiced_ms)
