"""Where words sit in a recording, estimated: TASTE's tokens are aligned to words, not to times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from taste_grpc.audio import Waveform

_FRAME_MS = 10
_PAUSE_FRAMES = 25
"""Silence of so many frames ends a word."""
_CLICK_FRAMES = 8
"""Fewer frames of sound between two pauses are no speech."""
_QUIET_PERCENTILE, _LOUD_PERCENTILE = 10.0, 95.0
"""Percentiles of the frames' levels that count as the levels of background and of speech."""
_SPEECH_SHARE = 0.45
"""Frames down to so much of the way from speech to background are loud, within the bounds that follow."""
_SPEECH_RANGE_DB = (12.0, 30.0)
_PUNCTUATION = ".,;:!?…。，；：！？"
_PUNCTUATION_BONUS = 0.05
"""So much further away, as a share of the speech, a pause may be to be taken for the one that punctuation makes."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in ms from the start of the audio."""

    start_ms: float
    end_ms: float


def estimate_words(words: Sequence[str], audio: Waveform, within: Span | None = None) -> list[Span]:
    """A place for each of `words` in `audio`, one after the other.

    The time in which there is speech, told by the loudness of frames of 10 ms, is shared out in proportion to the
    letters and digits of the words, of which each counts as having one at least. Where there is a pause, the word
    border that is nearest, and best one with punctuation, is put there.

    Args:
        words: in the order they are said.
        audio: what is heard.
        within: the part of `audio` that holds the words; all of it when None.
    """
    span = within or Span(0.0, audio.duration_ms)
    spoken = _speech_frames(audio, span)
    letters = np.cumsum([0, *(max(1, sum(letter.isalnum() for letter in word)) for word in words)])
    places: list[Span] = []
    cuts = [(0, 0), *_cuts(words, letters, spoken), (len(words), len(spoken))]
    for (word, frame), (next_word, next_frame) in pairwise(cuts):
        run = spoken[frame:next_frame]
        shares = (letters[word : next_word + 1] - letters[word]) / max(letters[next_word] - letters[word], 1)
        times = [min(max(_time_of(run, share), span.start_ms), span.end_ms) for share in shares]
        places += [Span(start, end) for start, end in pairwise(times)]
    return places


def _cuts(words: Sequence[str], letters: npt.NDArray[np.int64], spoken: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Word borders that are put into pauses: pairs of a number of words and a number of frames that are before it."""
    cuts: list[tuple[int, int]] = []
    for frame in np.flatnonzero(np.diff(spoken) > _PAUSE_FRAMES) + 1:
        borders = range(cuts[-1][0] + 1 if cuts else 1, len(words))
        if not borders:
            break
        distance = [
            abs(letters[k] / letters[-1] - frame / len(spoken))
            - _PUNCTUATION_BONUS * words[k - 1].endswith(tuple(_PUNCTUATION))
            for k in borders
        ]
        cuts.append((borders[int(np.argmin(distance))], int(frame)))
    return cuts


def _time_of(run: npt.NDArray[np.int64], share: float) -> float:
    """When `share` of the frames `run` has been heard, in ms."""
    position = share * len(run)
    frame = min(int(position), len(run) - 1)
    return (int(run[frame]) + position - frame) * _FRAME_MS


def _speech_frames(audio: Waveform, span: Span) -> npt.NDArray[np.int64]:
    """Numbers of the frames within `span` that hold speech, in order; all of them when none stands out."""
    first, last = int(span.start_ms // _FRAME_MS), max(math.ceil(span.end_ms / _FRAME_MS), 1)
    size = max(1, audio.sample_rate_hz * _FRAME_MS // 1000)
    frames = max(1, math.ceil(len(audio.samples) / size))
    padded = np.pad(audio.samples, (0, frames * size - len(audio.samples))).reshape(frames, size)
    level_db = 10.0 * np.log10(np.mean(padded.astype(np.float64) ** 2, axis=1) + 1e-12)
    quiet, loud = np.percentile(level_db, (_QUIET_PERCENTILE, _LOUD_PERCENTILE))
    is_loud = level_db >= loud - np.clip(_SPEECH_SHARE * (loud - quiet), *_SPEECH_RANGE_DB)
    loud_frames = np.flatnonzero(is_loud)
    runs = np.split(loud_frames, np.flatnonzero(np.diff(loud_frames) > _PAUSE_FRAMES) + 1)
    speech = np.concatenate([run for run in runs if len(run) >= _CLICK_FRAMES] or [loud_frames])
    inside = speech[(speech >= first) & (speech < last)]
    return np.asarray(inside if len(inside) else np.arange(first, max(last, first + 1)), np.int64)
