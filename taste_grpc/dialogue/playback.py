"""What of an answer was heard: where each phrase lies in its audio, and how far that was played."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Heard:
    """The part of an answer that was heard.

    Attributes:
        ms: of its audio.
        text: of its phrases, the last one as far as it was heard, in whole words by estimate.
        estimated: for want of acks, `ms` is the time since sending.
    """

    ms: int
    text: str
    estimated: bool


@dataclass
class _Phrase:
    text: str
    begin_ms: float
    end_ms: float


class Playback:
    """One answer as it is played.

    Without acks it is taken to be played from the moment its first audio was sent, without a pause but for audio that
    was sent too late.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phrases: list[_Phrase] = []
        self._sent_ms = 0.0
        self._acked_ms: int | None = None
        self._plays_until_s = 0.0  # when all that was sent will have been played, by the estimate

    @property
    def sent_ms(self) -> float:
        """Length of the audio that was sent."""
        return self._sent_ms

    @property
    def unplayed_ms(self) -> float:
        """Length of the audio that was sent and not played."""
        return self._sent_ms - self._played_ms()

    @property
    def is_acked(self) -> bool:
        """Whether the client says what was played."""
        return self._acked_ms is not None

    def left_s(self, grace_s: float) -> float:
        """Time until all that was sent has been played, by the estimate; 0 when it has.

        A client that acknowledges is believed for `grace_s` longer.
        """
        if self._acked_ms is None:
            return max(0.0, self._plays_until_s - self._clock())
        if self._acked_ms >= int(self._sent_ms):
            return 0.0
        return max(0.0, self._plays_until_s + grace_s - self._clock())

    def sent(self, phrase_index: int, text: str, duration_ms: float) -> None:
        """Audio of a phrase is on its way; of several chunks of one phrase each adds to it. Phrases come in order."""
        if phrase_index == len(self._phrases):
            self._phrases.append(_Phrase(text, self._sent_ms, self._sent_ms))
        elif phrase_index != len(self._phrases) - 1:
            raise ValueError(f"phrase_index: {phrase_index} does not follow {len(self._phrases) - 1}")
        self._sent_ms += duration_ms
        self._phrases[phrase_index].end_ms = self._sent_ms
        self._plays_until_s = max(self._plays_until_s, self._clock()) + duration_ms / 1000

    def acked(self, played_ms: int) -> None:
        """The client has played so much of the answer. It cannot be more than was sent, nor less than before."""
        self._acked_ms = min(max(played_ms, self._acked_ms or 0), int(self._sent_ms))

    def acks_end(self) -> None:
        """The client says no more what was played: from now on time tells."""
        self._acked_ms = None

    def take_back(self, duration_ms: float) -> None:
        """The newest audio, so much of it, is not sent after all: nobody can have heard it."""
        self._sent_ms -= duration_ms
        self._plays_until_s -= duration_ms / 1000
        if self._acked_ms is not None:
            self._acked_ms = min(self._acked_ms, int(self._sent_ms))

    def heard(self) -> Heard:
        """What was heard by now."""
        played_ms = self._played_ms()
        parts = []
        for phrase in self._phrases if played_ms else ():
            if int(phrase.end_ms) <= played_ms:  # clients count whole ms
                parts.append(phrase.text)
            elif phrase.begin_ms < played_ms:
                share = (played_ms - phrase.begin_ms) / (phrase.end_ms - phrase.begin_ms)
                parts.append(_whole_words(phrase.text, share))
        text = " ".join(part for part in parts if part)
        return Heard(round(played_ms), text, estimated=self._acked_ms is None)

    def _played_ms(self) -> float:
        if self._acked_ms is not None:
            return float(self._acked_ms)
        return max(0.0, self._sent_ms - 1000 * max(0.0, self._plays_until_s - self._clock()))


def _whole_words(text: str, share: float) -> str:
    """The words that end within the first `share` of the characters."""
    words, end = [], 0
    for word in text.split():
        end += len(word) + 1
        if end - 1 > share * len(text):
            break
        words.append(word)
    return " ".join(words)
