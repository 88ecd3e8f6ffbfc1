"""What of a text is left to be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.speech.spoken_text import spoken_text


@pytest.mark.parametrize("text", ["", "  \n", "...", "?!", "***", "—", "\u200d", "\ud800", "\0", "«»"])
def test_nothing_is_said_of_nothing(text: str) -> None:
    assert spoken_text(text) == ""


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Hello,  you.\n", "Hello, you."),
        ("a\0b\ud800c", "a b c"),
        ("😀", "😀"),
        ("100 %", "100 %"),
        ("你好。", "你好。"),
        ("[[[x]]]", "[ [ [x]]]"),
    ],
)
def test_what_is_said(text: str, spoken: str) -> None:
    assert spoken_text(text) == spoken


@given(st.text())
def test_any_text_is_one_line_that_can_be_sent(text: str) -> None:
    line = spoken_text(text)
    assert line.encode().decode() == line
    assert "\0" not in line
    assert "[[" not in line
    assert len(line.splitlines()) <= 1
    assert spoken_text(line) == line
