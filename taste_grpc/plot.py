"""`talk --plot`: waveform, mel, and where each word's token sits, of a question and its answer.

Needs matplotlib, which the extra `plot` installs; it is imported when something is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taste_grpc.audio import Waveform, log_mel, mel_filters, resample
from taste_grpc.errors import InvalidInputError, TasteError
from taste_grpc.word_places import Span, estimate_words

_MEL_RATE_HZ, _MELS, _MEL_FRAME_S = 16_000, 80, 0.01
_MEL_CLIP_S = 30
_MEL_TICKS_HZ = (250, 1_000, 4_000)

_LABEL_INCHES, _LABEL_POINTS = 0.21, 8
"""Width of the label of a word, which stands upright, and size of its letters."""
_MAX_LABEL_LETTERS = 40
_BAR_INCHES, _LEADER_INCHES, _GAP_INCHES = 0.3, 0.3, 0.05
"""Height of the bars that stand for words, of the lines from them to their labels, and around the labels."""
_WAVEFORM_INCHES, _MEL_INCHES, _FRAME_INCHES = 1.1, 1.6, 1.3
_MARGIN_INCHES = 1.0
_MIN_WIDTH_INCHES, _MAX_WIDTH_INCHES = 11.0, 60.0
_TITLE_LETTERS = 8
"""Letters of the title that fit into an inch."""
_DOTS_PER_INCH = 120

_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans")
_WAVE, _EXACT, _PALE = "#33567f", "#b3261e", "#8a8a8a"
_WORDS = ("#d9822b", "#f0b678")


class PlotUnavailableError(TasteError):
    """matplotlib, which draws plots, is not installed."""


@dataclass(frozen=True)
class Utterance:
    """Something said, to be drawn.

    Attributes:
        title: what it is.
        audio: how it sounds.
        words: what is said, word by word.
        codes: the codes of each word.
        parts: stretches of `audio` that are known to hold `words[:n]`, the next n, ...: pairs of (n, span) whose n
            add up to the number of words. Empty: all that is known is that `audio` holds `words`.
    """

    title: str
    audio: Waveform
    words: Sequence[str]
    codes: Sequence[Sequence[int]]
    parts: Sequence[tuple[int, Span]] = field(default_factory=tuple)

    def places(self) -> list[Span]:
        """An estimate of where each word is."""
        if not self.parts:
            return estimate_words(self.words, self.audio)
        found: list[Span] = []
        for count, span in self.parts:
            found += estimate_words(self.words[len(found) : len(found) + count], self.audio, span)
        return found

    def labels(self) -> list[str]:
        """What is written below each word: the word, shortened where it is very long, and its codes."""
        labels = []
        for word, codes in zip(self.words, self.codes, strict=True):
            numbers = f"  [{' '.join(str(code) for code in codes)}]"
            room = max(4, _MAX_LABEL_LETTERS - len(numbers))
            labels.append(_shortened(word, room) + numbers)
        return labels


def check_plot(path: Path) -> None:
    """Find out whether a plot can be drawn to `path`, before there is anything to draw.

    Raises:
        PlotUnavailableError: matplotlib is not installed.
        InvalidInputError: no picture can have such a name.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise PlotUnavailableError(
            "plots are drawn by matplotlib, which is not installed: pip install 'taste-grpc[plot]'"
        ) from None
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InvalidInputError("plot", f"{path} must end in one of .{', .'.join(kinds)}")


def save_plot(path: Path, utterances: Sequence[Utterance]) -> None:
    """Draw `utterances`, one below the other, and write the picture to `path`; its suffix says which kind.

    Raises:
        PlotUnavailableError, InvalidInputError: as `check_plot`.
        OSError: the file cannot be written.
    """
    check_plot(path)
    with _style():
        figure = _draw(utterances)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DOTS_PER_INCH)


@contextmanager
def _style() -> Iterator[None]:
    """Fonts for many languages, as far as they are installed."""
    from matplotlib import rc_context
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    # Fonts are looked at one after the other for each letter; the first one is always there.
    fonts = [name for name in _FONTS if name in installed] or list(_FONTS[:1])
    with rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn for it
        yield


def _draw(utterances: Sequence[Utterance]) -> Any:
    from matplotlib.figure import Figure

    crowd = max(len(utterance.words) for utterance in utterances)
    width = min(max(_MIN_WIDTH_INCHES, crowd * _LABEL_INCHES + 2 * _MARGIN_INCHES), _MAX_WIDTH_INCHES)
    lengths = [max(map(_length_inches, utterance.labels()), default=0.0) for utterance in utterances]
    words_inches = [_BAR_INCHES + _LEADER_INCHES + length + 2 * _GAP_INCHES for length in lengths]
    heights = [_WAVEFORM_INCHES + _MEL_INCHES + words + _FRAME_INCHES for words in words_inches]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(utterances), 1, squeeze=False, height_ratios=heights)[:, 0]
    for utterance, part, inches in zip(utterances, parts, words_inches, strict=True):
        waveform, mel, words = part.subplots(3, 1, sharex=True, height_ratios=(_WAVEFORM_INCHES, _MEL_INCHES, inches))
        part.suptitle(_shortened(utterance.title, int(width * _TITLE_LETTERS)), fontweight="bold", parse_math=False)
        waveform.set_xlim(0.0, max(utterance.audio.duration_ms / 1000, 0.01))
        _draw_waveform(waveform, utterance.audio)
        _draw_mel(mel, utterance.audio)
        words.set_ylim(_BAR_INCHES - inches, _BAR_INCHES)  # in inches
        _draw_words(words, utterance, (width - 2 * _MARGIN_INCHES) / _LABEL_INCHES)
        for _, span in utterance.parts[:-1]:
            waveform.axvline(span.end_ms / 1000, color=_EXACT, linewidth=1.0)
            mel.axvline(span.end_ms / 1000, color=_EXACT, linewidth=1.0)
            words.vlines(span.end_ms / 1000, 0.0, _BAR_INCHES, color=_EXACT, linewidth=1.0)
    return figure


def _draw_waveform(row: Any, audio: Waveform) -> None:
    low, high, times = _envelope(audio)
    row.fill_between(times, low, high, color=_WAVE, linewidth=0.4)
    peak = 1.1 * max(float(np.abs(audio.samples).max(initial=0.0)), 0.01)
    row.set_ylim(-peak, peak)
    row.set_ylabel("waveform")


def _envelope(audio: Waveform, columns: int = 4_000) -> tuple[npt.NDArray[Any], ...]:
    """Lowest and highest sample of each of at most `columns` stretches, and when they are, in seconds."""
    size = max(1, -(-len(audio.samples) // columns))
    padded = np.pad(audio.samples, (0, -len(audio.samples) % size)).reshape(-1, size)
    times = (np.arange(len(padded)) + 0.5) * size / audio.sample_rate_hz
    return padded.min(axis=1, initial=0.0), padded.max(axis=1, initial=0.0), times


def _draw_mel(row: Any, audio: Waveform) -> None:
    row.set_ylabel("mel (Hz)")
    filters = mel_filters(_MELS)
    centres_hz = filters.argmax(axis=1) * (_MEL_RATE_HZ / 2) / (filters.shape[1] - 1)
    row.set_yticks([int(np.abs(centres_hz - tick).argmin()) for tick in _MEL_TICKS_HZ], [str(t) for t in _MEL_TICKS_HZ])
    mel = _mel(audio)
    if len(mel):
        extent = (0.0, len(mel) * _MEL_FRAME_S, -0.5, _MELS - 0.5)
        row.imshow(mel.T, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")


def _mel(audio: Waveform) -> npt.NDArray[np.float32]:
    """`[frames, mels]`, 100 frames a second; made of pieces of 30 s, each on a scale of its own."""
    samples = resample(audio.samples, audio.sample_rate_hz, _MEL_RATE_HZ)
    size = _MEL_CLIP_S * _MEL_RATE_HZ
    pieces = [log_mel(samples[start : start + size], _MELS) for start in range(0, len(samples), size)]
    frames = [piece.features[: piece.frames] for piece in pieces]
    return np.concatenate(frames) if frames else np.zeros((0, _MELS), np.float32)


def _draw_words(row: Any, utterance: Utterance, room: float) -> None:
    """A bar for each word where it sits, and below it, far enough from its neighbours, the word and its codes.

    `room` is how many labels fit beside each other; the row is measured in inches from the foot of the bars.
    """
    row.set_yticks([])
    row.set_ylabel("words and codes")
    row.set_xlabel(f"seconds    ({_explanation(utterance)})")
    total = max(utterance.audio.duration_ms, 10.0) / 1000
    places = utterance.places()
    middles = [(place.start_ms + place.end_ms) / 2000 for place in places]
    labels = zip(spread(middles, total / room, 0.0, total), utterance.labels(), strict=True)
    for k, (place, middle, (at, label)) in enumerate(zip(places, middles, labels, strict=True)):
        start, length = place.start_ms / 1000, (place.end_ms - place.start_ms) / 1000
        bar = (0.2 * _BAR_INCHES, 0.6 * _BAR_INCHES)
        row.broken_barh([(start, length)], bar, facecolor=_WORDS[k % 2], edgecolor="white", linewidth=0.3)
        row.plot([middle, at], [0.0, -_LEADER_INCHES], color=_PALE, linewidth=0.7)
        row.text(
            at, -_LEADER_INCHES - _GAP_INCHES, label, fontsize=_LABEL_POINTS, parse_math=False,
            rotation=90, rotation_mode="anchor", ha="right", va="center",
        )  # fmt: skip


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _length_inches(label: str) -> float:
    """How long `label` is when it is written."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    # Some letters are drawn by fonts that are looked at later, so there is something to spare.
    written = TextPath((0, 0), label.replace("$", r"\$"), prop=FontProperties(size=_LABEL_POINTS))
    return 1.1 * float(written.get_extents().width) / 72


def _explanation(utterance: Utterance) -> str:
    if len(utterance.parts) > 1:
        return "red: exact borders of the segments spoken one after the other; places of words within: estimated"
    return "places of words are estimated from loudness and spelling: tokens are aligned to words, not to times"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels, as near to `wanted` (ascending) as can be, at least `gap` apart, within `low` and `high`.

    When they do not fit, they are spaced evenly. Labels that crowd move as a group around the middle of where
    they want to be.
    """
    if len(wanted) * gap > high - low:
        step = (high - low) / len(wanted)
        return [low + (k + 0.5) * step for k in range(len(wanted))]
    groups: list[tuple[float, int]] = []  # sum of the wanted places of the first of each group, and its size
    for k, place in enumerate(wanted):
        total, size = place - k * gap, 1
        while groups and groups[-1][0] / groups[-1][1] >= total / size:
            before = groups.pop()
            total, size = total + before[0], size + before[1]
        groups.append((total, size))
    bottom, top = low + gap / 2, high - gap / 2 - (len(wanted) - 1) * gap
    firsts = [min(max(total / size, bottom), top) for total, size in groups for _ in range(size)]
    return [first + k * gap for k, first in enumerate(firsts)]
