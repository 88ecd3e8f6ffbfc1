"""How a Whisper model is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from taste_grpc.errors import InvalidInputError
from taste_grpc.speech import parse_whisper_model


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("small-int8", ("small", "int8")),
        ("small", ("small", None)),
        ("small.en-float16", ("small.en", "float16")),
        ("large-v3", ("large-v3", None)),
        ("large-v3-turbo-int8_float16", ("large-v3-turbo", "int8_float16")),
        ("someone/whisper-ct2-int8", ("someone/whisper-ct2", "int8")),
        (" tiny ", ("tiny", None)),
    ],
)
def test_model_and_compute_type(text: str, parsed: tuple[str, str | None]) -> None:
    assert parse_whisper_model(text) == parsed


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "whisper-int8"
    directory.mkdir()
    assert parse_whisper_model(str(directory)) == (str(directory), None)


@pytest.mark.parametrize("text", ["", "  ", "-int8"])
def test_no_model(text: str) -> None:
    with pytest.raises(InvalidInputError, match="names no model"):
        parse_whisper_model(text)
