"""Where words are drawn: estimates of their places, labels that keep apart, pictures that come out."""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc import plot
from taste_grpc.audio import Waveform
from taste_grpc.errors import InvalidInputError
from taste_grpc.plot import PlotUnavailableError, Utterance, check_plot, save_plot, spread
from taste_grpc.word_places import Span, estimate_words

RATE_HZ = 16_000


def speech(*pieces: tuple[float, float]) -> Waveform:
    """Noise, as (seconds, amplitude) of each piece."""
    random = np.random.default_rng(3)
    parts = [random.standard_normal(round(seconds * RATE_HZ)) * amplitude for seconds, amplitude in pieces]
    return Waveform(np.concatenate([np.zeros(0), *parts]).astype(np.float32), RATE_HZ)


def assert_in_order(places: list[Span], low_ms: float, high_ms: float) -> None:
    edges = [edge for place in places for edge in (place.start_ms, place.end_ms)]
    assert edges == sorted(edges)
    assert not edges or (low_ms <= edges[0] and edges[-1] <= high_ms)


# --- places of words --------------------------------------------------------------------------------


def test_words_share_the_time_by_their_letters():
    places = estimate_words(["a", "bcd"], speech((2.0, 0.1)))
    assert [place.start_ms for place in places] == pytest.approx([0, 500], abs=20)
    assert [place.end_ms for place in places] == pytest.approx([500, 2000], abs=20)


def test_pauses_belong_to_no_word():
    places = estimate_words(
        ["one", "two", "six"], speech((0.5, 1e-4), (0.3, 0.1), (1.0, 1e-4), (0.6, 0.1), (0.5, 1e-4))
    )
    assert [(place.start_ms, place.end_ms) for place in places] == [
        pytest.approx(bounds, abs=30) for bounds in [(500, 800), (1800, 2100), (2100, 2400)]
    ]


def test_a_pause_prefers_the_border_with_punctuation():
    audio = speech((0.455, 0.1), (1.0, 1e-4), (0.545, 0.1))  # by letters alone, the border after `b` is nearer
    assert estimate_words(["aaaa", "b", "ccccc"], audio)[1].end_ms < 500
    assert estimate_words(["aaaa.", "b", "ccccc"], audio)[1].start_ms > 1400


def test_a_click_is_no_word():
    places = estimate_words(["one", "two"], speech((0.4, 0.1), (0.6, 1e-4), (0.03, 0.1), (0.6, 1e-4), (0.4, 0.1)))
    assert places[0].end_ms == pytest.approx(400, abs=30)
    assert places[1].start_ms == pytest.approx(1630, abs=30)


@pytest.mark.parametrize(
    "audio", [speech((1.0, 0.0)), speech((0.004, 0.1)), speech()], ids=["silence", "short", "none"]
)
@pytest.mark.parametrize("words", [[], ["hm"], ["...", "!"], ["你好", "مرحبا", "😀"]])
def test_odd_input_gives_places_too(audio: Waveform, words: list[str]):
    places = estimate_words(words, audio)
    assert len(places) == len(words)
    assert_in_order(places, 0, audio.duration_ms)


@given(
    st.lists(st.text(min_size=1, max_size=9), max_size=30),
    st.lists(st.tuples(st.floats(0.0, 0.7), st.sampled_from([0.0, 1e-3, 0.1, 0.9])), max_size=6),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_places_never_leave_their_stretch_nor_their_order(words, pieces, one, other):
    audio = speech(*pieces)
    span = Span(min(one, other) * audio.duration_ms, max(one, other) * audio.duration_ms)
    places = estimate_words(words, audio, span)
    assert len(places) == len(words)
    assert_in_order(places, span.start_ms, span.end_ms)


def test_parts_bound_the_words_they_hold():
    parts = ((2, Span(0, 700)), (1, Span(700, 2000)))
    uttered = Utterance("answer", speech((2.0, 0.1)), ["a", "b", "c"], [[1], [2], [3]], parts)
    assert_in_order(uttered.places()[:2], 0, 700)
    assert_in_order(uttered.places()[2:], 700, 2000)


# --- labels -------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 10.0), max_size=40).map(sorted), st.floats(0.01, 1.0))
def test_labels_keep_apart_in_their_order_and_within_the_picture(wanted, gap):
    labels = spread(wanted, gap, 0.0, 10.0)
    fits = len(wanted) * gap <= 10.0
    assert len(labels) == len(wanted)
    assert all(0.0 <= label <= 10.0 for label in labels)
    assert all(after - before >= (gap if fits else 10.0 / len(wanted)) - 1e-6 for before, after in pairwise(labels))


def test_labels_with_room_stay_where_they_belong():
    assert spread([1.0, 2.0, 3.0], 0.5, 0.0, 10.0) == [1.0, 2.0, 3.0]
    assert spread([5.0, 5.0], 1.0, 0.0, 10.0) == [4.5, 5.5]


# --- pictures -----------------------------------------------------------------------------------------


def uttered(words: list[str], audio: Waveform, parts: int = 0) -> Utterance:
    codes = [[100 + k, 511, 0, 7] for k in range(len(words))]
    size = audio.duration_ms / max(parts, 1)
    counts = [len(words) // parts + (k < len(words) % parts) for k in range(parts)]
    spans = [(count, Span(k * size, (k + 1) * size)) for k, count in enumerate(counts)]
    return Utterance("said: $x_1$ <b>[bold]", audio, words, codes, spans)


ODD = ["$\\frac", "$5_", "你好", "مرحبا", "😀", "[red]", "W" * 60, "and", "it", "goes", "on."]


@pytest.mark.parametrize(
    "said",
    [
        [uttered([], speech())],
        [uttered(["one"], speech((0.02, 0.5)))],
        [uttered(ODD, speech((3.0, 0.1))), uttered(ODD * 8, speech((4.0, 0.1)), 6)],
        [uttered(ODD * 3, speech((31.0, 0.1)))],
    ],
    ids=["silence", "one word", "crowded", "long"],
)
def test_labels_neither_touch_nor_leave_the_picture(said: list[Utterance]):
    with plot._style():
        figure = plot._draw(said)
        figure.draw_without_rendering()
    whole = figure.bbox
    for utterance, part in zip(said, figure.subfigs, strict=True):
        row = part.axes[2]
        with plot._style():
            boxes = [text.get_window_extent() for text in row.texts]
        assert len(boxes) == len(utterance.words)
        inside = row.get_window_extent()
        for box in boxes:
            assert box.y0 >= inside.y0 - 1
            assert box.y1 <= inside.y1
            assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
        note = row.xaxis.label.get_text()
        assert "estimated" in note
        assert ("exact" in note) == (len(utterance.parts) > 1)


def test_the_picture_is_written(tmp_path: Path):
    path = tmp_path / "deep" / "out.png"
    save_plot(path, [uttered(ODD, speech((1.0, 0.1)))])
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG")
    assert width > 1000 < height or height > 300


def test_a_name_that_no_picture_has_is_refused_by_name(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="plot") as refused:
        check_plot(tmp_path / "out.wav")
    assert refused.value.field == "plot"


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(PlotUnavailableError, match="taste-grpc\\[plot\\]"):
        check_plot(Path("out.png"))
