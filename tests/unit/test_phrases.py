"""Where speech is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.streaming.phrases import Cut, Phrasing, cut_phrases, ends_phrase

words = st.lists(st.sampled_from([" one", " two,", " three.", ' "four!"', " 五。"]), max_size=40)
phrasings = st.builds(Phrasing, st.integers(1, 4), st.integers(4, 12), st.integers(0, 5))


@given(words, phrasings)
def test_every_word_is_spoken_once_and_in_order(text: list[str], phrasing: Phrasing) -> None:
    cuts = list(cut_phrases(text, phrasing))
    assert [index for cut in cuts for index in range(cut.start, cut.end)] == list(range(len(text)))
    assert all(1 <= cut.end - cut.start <= phrasing.max_words for cut in cuts)
    assert all(cut.seen == min(len(text), cut.end + phrasing.look_ahead_words) for cut in cuts)


def test_phrases_are_kept_together() -> None:
    text = ["", "well,", "it", "was", "nice,", "he", "said.", "then", "he", "left"][1:]
    phrasing = Phrasing(min_words=3, max_words=12)
    assert [text[cut.start : cut.end] for cut in cut_phrases(text, phrasing)] == [
        ["well,", "it", "was", "nice,"],
        ["he", "said.", "then", "he", "left"],
    ]


def test_without_phrases_the_greatest_length_counts() -> None:
    assert list(cut_phrases(["a"] * 7, Phrasing(max_words=3, look_ahead_words=2))) == [
        Cut(0, 3, 5),
        Cut(3, 6, 7),
        Cut(6, 7, 7),
    ]


@pytest.mark.parametrize(
    ("word", "ends"), [(" end.", True), (' said,"', True), (" 你好。", True), (" مرحبا؟", True), (" it's", False)]
)
def test_what_ends_a_phrase(word: str, ends: bool) -> None:
    assert ends_phrase(word) is ends
