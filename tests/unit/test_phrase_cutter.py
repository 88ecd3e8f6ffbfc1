"""Phrases of an answer that comes token by token."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.dialogue.phrase_cutter import PhraseCutter


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Cutting:
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.cutter = PhraseCutter(max_chars=60, gap_s=0.7, clock=self.clock)


def cut(text: str, size: int = 3) -> list[str]:
    cutter = PhraseCutter()
    phrases = [phrase for at in range(0, len(text), size) for phrase in cutter.push(text[at : at + size])]
    last = cutter.finish()
    return phrases + ([last] if last else [])


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("It is 3.14, about. Yes.", ["It is 3.14, about.", "Yes."]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("Wait... what?! No.", ["Wait...", "what?!", "No."]),
        ("你好。再见。", ["你好。", "再见。"]),
        ("no end", ["no end"]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_a_phrase_ends_with_its_sentence(text: str, phrases: list[str]) -> None:
    for size in (1, 2, 5, 100):
        assert cut(text, size) == phrases


def test_a_long_phrase_is_cut_at_a_blank_and_a_long_word_where_it_must_be() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    phrases = cut(words)
    assert len(phrases) == 2
    assert max(map(len, phrases)) <= 60
    assert " ".join(phrases) == words
    assert cut("x" * 130) == ["x" * 60, "x" * 60, "x" * 10]


@given(st.text(st.sampled_from("ab1.?! \n,"), max_size=300), st.integers(1, 20))
def test_nothing_is_lost_and_nothing_is_longer_than_it_may_be(text: str, size: int) -> None:
    phrases = cut(text, size)
    assert re.sub(r"\s", "", "".join(phrases)) == re.sub(r"\s", "", text)
    assert all(phrase == phrase.strip() and 0 < len(phrase) <= 60 for phrase in phrases)


def test_what_waits_too_long_goes_without_its_end_but_not_in_the_middle_of_a_word() -> None:
    cutting = Cutting()
    cutter, clock = cutting.cutter, cutting.clock
    assert cutter.due_in_s is None
    assert cutter.push("Well, let me thi") == []
    assert cutter.due_in_s == pytest.approx(0.7)
    clock.now += 0.5
    assert cutter.cut_at_gap() is None
    clock.now += 0.3
    assert cutter.due_in_s == 0.0
    assert cutter.cut_at_gap() == "Well, let me"
    assert cutter.due_in_s is None, "half a word waits for its other half"
    assert cutter.push("nk ") == []
    clock.now += 1.0
    assert cutter.cut_at_gap() == "think"
    assert cutter.finish() is None


def test_each_token_gives_the_phrase_more_time() -> None:
    cutting = Cutting()
    for word in ("one ", "two ", "three "):
        cutting.clock.now += 0.6
        assert cutting.cutter.cut_at_gap() is None
        cutting.cutter.push(word)
    cutting.clock.now += 0.7
    assert cutting.cutter.cut_at_gap() == "one two three"
