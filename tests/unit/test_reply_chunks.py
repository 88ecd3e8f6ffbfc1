"""Chunks of whole words, from text that comes in pieces of any size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taste_grpc.dialogue.reply_chunks import WordGrouper


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def grouped(pieces: list[str], words: int = 4) -> list[str]:
    """All chunks, the last of which is what `finish` gives."""
    grouper = WordGrouper(words, 0.5)
    chunks = [chunk for piece in pieces for chunk in grouper.push(piece)]
    return [*chunks, grouper.finish()]


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("one two three four five six", ["one two three four", " five six"]),
        ("Yes. It is so, I think, you know it.", ["Yes.", " It is so,", " I think,", " you know it."]),
        ("Well, it is about 3.14, really.", ["Well, it is about", " 3.14, really."]),
        ('He said "no." Then (so) left.', ['He said "no."', " Then (so) left."]),
        ("Wait... what?! No", ["Wait...", " what?!", " No"]),
        ("two\n\n lines  here \n", ["two\n\n lines  here \n"]),
        ("你好世界今天，天气很好。", ["你好世界", "今天，", "天气很好。"]),
        ("a你好 b", ["a你好 b"]),
        ("one two three four ", ["one two three four", " "]),
        ("", [""]),
        (" \n ", [" \n "]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_where_chunks_end(text: str, chunks: list[str], size: int) -> None:
    assert grouped([text[at : at + size] for at in range(0, len(text), size)]) == chunks


@pytest.mark.parametrize("words", [1, 2, 3, 8, 64])
def test_the_size_is_a_setting(words: int) -> None:
    text = " ".join(f"w{index}" for index in range(130))
    counts = [len(chunk.split()) for chunk in grouped([text], words)]
    assert counts[:-1] == [words] * (len(counts) - 1)
    assert 1 <= counts[-1] <= words


text_pieces = st.lists(st.text(st.sampled_from("ab ,.?!\n\t“”。，你好")), max_size=40)


@given(text_pieces, st.integers(1, 6))
@example(["a" * 3000, " ", "\n" * 3000, "b"], 4)
def test_chunks_are_the_text_in_whole_words_and_not_too_many(pieces: list[str], words: int) -> None:
    text = "".join(pieces)
    chunks = grouped(pieces, words)
    assert "".join(chunks) == text
    assert all(chunk.strip() for chunk in chunks[:-1])
    assert all(len(chunk.split()) <= words for chunk in chunks)
    ends = [sum(map(len, chunks[: number + 1])) for number in range(len(chunks) - 1)]
    inside = [end for end in ends if text[end - 1 : end + 1].isascii() and text[end - 1 : end + 1].isalpha()]
    assert not inside, "a word was cut"


@given(text_pieces, st.integers(1, 6), st.integers(1, 9))
def test_how_the_text_comes_makes_no_difference(pieces: list[str], words: int, size: int) -> None:
    text = "".join(pieces)
    again = [text[at : at + size] for at in range(0, len(text), size)]
    assert grouped(pieces, words) == grouped([text], words) == grouped(again, words)


def test_whole_words_wait_no_longer_than_they_may() -> None:
    clock = Clock()
    grouper = WordGrouper(4, 0.5, clock)
    assert grouper.due_in_s is None
    assert grouper.push("half") == []
    assert grouper.due_in_s is None, "a word that may go on is not waited for"
    clock.now += 10
    assert grouper.push(" a wor") == []
    assert grouper.due_in_s == 0.5
    clock.now += 0.4
    assert grouper.push("d is") == []
    assert grouper.due_in_s == pytest.approx(0.1)
    assert grouper.cut_due() == []
    clock.now += 0.11
    assert grouper.cut_due() == ["half a word"]
    assert grouper.cut_due() == []
    assert grouper.finish() == " is"


def test_what_is_left_after_a_chunk_waits_anew() -> None:
    clock = Clock()
    grouper = WordGrouper(2, 0.5, clock)
    assert grouper.push("one ") == []
    clock.now += 0.4
    assert grouper.push("two three four! five six") == ["one two", " three four!"]
    assert grouper.due_in_s == 0.5
    clock.now += 0.5
    assert grouper.cut_due() == [" five"]
    assert grouper.due_in_s is None
    assert grouper.finish() == " six"
