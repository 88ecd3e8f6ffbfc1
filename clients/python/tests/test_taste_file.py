"""The `.taste.json` file."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc_client import SpokenText, TasteFileError, Word

TEXT = SpokenText(
    [Word("Grüße,", (1, 2), (10, 11)), Word("世界", (3, 4)), Word('"quoted"', (5, 6), (12,))],
    speaker=(0.5, -0.25),
    audio_ms=1234.5,
    model_id="taste-tiny",
    revision="r1",
)
FILE = """{
 "taste_json": 1,
 "model": {"id": "taste-tiny", "revision": "r1"},
 "layout": "codes",
 "audio_ms": 1234.5,
 "speaker": [0.5, -0.25],
 "words": [
  {"text": "Grüße,", "codes": [1, 2], "text_ids": [10, 11]},
  {"text": "世界", "codes": [3, 4]},
  {"text": "\\"quoted\\"", "codes": [5, 6], "text_ids": [12]}
 ]
}
"""

_floats = st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda value: abs(value) < 3.4e38)
_letters = st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"))
_ids = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)


@st.composite
def spoken_texts(draw: st.DrawFn) -> SpokenText:
    vq_dim = draw(st.integers(1, 4))
    codes = st.tuples(*[st.integers(0, 2**31 - 1)] * vq_dim)
    words = st.builds(Word, st.text(_letters, min_size=1, max_size=8), codes, _ids)
    return SpokenText(
        draw(st.lists(words, max_size=5)),
        speaker=draw(st.none() | st.lists(_floats, min_size=1, max_size=5).filter(any).map(tuple)),
        audio_ms=draw(st.none() | st.floats(0, 1e9)),
        model_id=draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=8)),
        revision=draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=8)),
    )


@settings(deadline=None)
@given(spoken_texts())
def test_what_is_saved_is_loaded(text: SpokenText) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.taste.json"
        text.save(path)
        assert SpokenText.load(path) == text
        saved = path.read_bytes()
        SpokenText.load(path).save(path)
        assert path.read_bytes() == saved
        assert os.listdir(folder) == ["x.taste.json"]


def test_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "x.taste.json"
    TEXT.save(path)
    assert path.read_text(encoding="utf-8") == FILE
    SpokenText().save(path)
    assert path.read_text(encoding="utf-8") == '{\n "taste_json": 1,\n "layout": "codes",\n "words": []\n}\n'


def test_an_edited_word_is_one_line_of_difference(tmp_path: Path) -> None:
    path = tmp_path / "x.taste.json"
    TEXT.save(path)
    text = SpokenText.load(path)
    text.replace_word(1, "Welt")
    text.save(path)
    changed = set(path.read_text(encoding="utf-8").splitlines()) ^ set(FILE.splitlines())
    assert changed == {'  {"text": "世界", "codes": [3, 4]},', '  {"text": "Welt", "codes": [3, 4]},'}


def test_any_layout_and_order_is_read(tmp_path: Path) -> None:
    content = json.loads(FILE)
    path = tmp_path / "x.taste.json"
    path.write_text(json.dumps(dict(reversed(content.items())), indent=4), encoding="utf-8")
    assert SpokenText.load(path) == TEXT


def edit(change: Callable[[Any], object]) -> bytes:
    content = json.loads(FILE)
    change(content)
    return json.dumps(content).encode()


def put(*place: str | int, value: Any) -> bytes:
    def change(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return edit(change)


BAD: list[tuple[str, bytes, str]] = [
    ("$", b"", "is no JSON: line 1, column 1"),
    ("$", FILE.encode()[:-5], "is no JSON: line"),
    ("$", b"\xff{}", "is no UTF-8: byte 0"),
    ("$", FILE.encode("utf-16"), "is no UTF-8"),
    ("$", b"\xef\xbb\xbf{}", "is no JSON"),
    ("$", b"[" * 100_000, "is no JSON this can read"),
    ("$", b"9" * 10_000, "is no JSON this can read"),
    ("$", b"[]", 'an object with "taste_json" was expected'),
    ("$", b"{}", 'an object with "taste_json" was expected'),
    ("$", FILE.replace("1234.5", "NaN").encode(), "NaN is no number in JSON"),
    ("$", FILE.replace("1234.5", "-Infinity").encode(), "-Infinity is no number in JSON"),
    (
        "$",
        FILE.replace('"layout": "codes"', '"layout": "codes", "layout": "codes"').encode(),
        "'layout' is there twice",
    ),
    ("$.taste_json", put("taste_json", value=2), "version 1 was expected, not 2"),
    ("$.taste_json", put("taste_json", value=True), "version 1 was expected, not True"),
    ("$.taste_json", put("taste_json", value="1"), "version 1 was expected, not '1'"),
    ("$", edit(lambda content: content.pop("layout")), "'layout' is missing"),
    ("$", edit(lambda content: content.pop("words")), "'words' is missing"),
    ("$", put("wrods", value=[]), "'wrods' is not known here"),
    ("$.layout", put("layout", value="continuous"), "'codes' was expected, not 'continuous'"),
    ("$.layout", put("layout", value=1), "a string was expected, not the number 1"),
    ("$.model", put("model", value="taste-tiny"), "an object was expected, not a string"),
    ("$.model", put("model", value={"id": "x"}), "'revision' is missing"),
    ("$.model.id", put("model", "id", value=None), "a string was expected, not null"),
    ("$.model.id", put("model", "id", value="\ud800"), "half of a surrogate pair"),
    ("$.audio_ms", put("audio_ms", value=-1), "a duration was expected, not -1"),
    ("$.audio_ms", put("audio_ms", value="1"), "a number was expected, not a string"),
    ("$.audio_ms", put("audio_ms", value=False), "a number was expected, not true or false"),
    ("$.audio_ms", FILE.replace("1234.5", "1e999").encode(), "is too large a number"),
    ("$.speaker", put("speaker", value=None), "a list was expected, not null"),
    ("$.speaker", put("speaker", value=[]), "not all zero"),
    ("$.speaker", put("speaker", value=[0, 0.0]), "not all zero"),
    ("$.speaker[1]", put("speaker", value=[1, "2"]), "a number was expected, not a string"),
    ("$.speaker[0]", put("speaker", value=[10**400]), "is too large a number"),
    ("$.words", put("words", value={}), "a list was expected, not an object"),
    ("$.words[1]", put("words", 1, value=[]), "an object was expected, not a list"),
    ("$.words[1]", put("words", 1, "code", value=[1]), "'code' is not known here"),
    ("$.words[1]", put("words", 1, value={"text": "a"}), "'codes' is missing"),
    ("$.words[1].text", put("words", 1, "text", value="two words"), "one word without blanks was expected"),
    ("$.words[1].text", put("words", 1, "text", value=""), "one word without blanks was expected"),
    ("$.words[1].text", put("words", 1, "text", value="nul\0"), "control characters are not allowed"),
    ("$.words[1].codes", put("words", 1, "codes", value=[]), "at least one is needed"),
    ("$.words[1].codes", put("words", 1, "codes", value=[1, 2, 3]), "2 were expected, as in the first word, not 3"),
    ("$.words[1].codes[1]", put("words", 1, "codes", value=[1, -1]), "a whole number from 0 up was expected, not -1"),
    (
        "$.words[1].codes[0]",
        put("words", 1, "codes", value=[1.5, 1]),
        "a whole number was expected, not the number 1.5",
    ),
    ("$.words[1].codes[0]", put("words", 1, "codes", value=[True, 1]), "a whole number was expected"),
    ("$.words[0].text_ids[1]", put("words", 0, "text_ids", value=[1, 2**31]), "a whole number from 0 up was expected"),
    ("$.words[0].text_ids", put("words", 0, "text_ids", value=1), "a list was expected, not the number 1"),
]


@pytest.mark.parametrize(("place", "content", "words"), BAD)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, place: str, content: bytes, words: str) -> None:
    path = tmp_path / "x.taste.json"
    path.write_bytes(content)
    with pytest.raises(TasteFileError) as wrong:
        SpokenText.load(path)
    assert wrong.value.path == place
    assert words in wrong.value.description
    assert str(wrong.value) == f"{path}: {place}: {wrong.value.description}"
    assert isinstance(wrong.value, ValueError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"words": [Word("a", (1,)), Word("b", (1, 2))]}, r"words\[1\]\.codes: 1 were expected"),
        ({"speaker": (0.0,)}, "speaker: "),
        ({"speaker": (float("nan"),)}, "NaN is no number in JSON"),
        ({"audio_ms": -1.0}, "audio_ms: a duration was expected"),
        ({"model_id": "\ud800"}, "'\\\\ud800' cannot be written as UTF-8"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "x.taste.json"
    TEXT.save(path)
    with pytest.raises(ValueError, match=words):
        SpokenText(**{**vars(TEXT), **change}).save(path)
    assert SpokenText.load(path) == TEXT
    assert os.listdir(tmp_path) == ["x.taste.json"]


def test_it_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real.taste.json", tmp_path / "link.taste.json"
    TEXT.save(real)
    real.chmod(0o640)
    link.symlink_to(real)
    SpokenText().save(link)
    assert link.is_symlink()
    assert SpokenText.load(real) == SpokenText()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640

    def full(source: object, target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        TEXT.save(real)
    assert SpokenText.load(real) == SpokenText()
    assert sorted(os.listdir(tmp_path)) == ["link.taste.json", "real.taste.json"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SpokenText.load(tmp_path / "absent.taste.json")
    with pytest.raises(FileNotFoundError):
        TEXT.save(tmp_path / "absent" / "x.taste.json")
