"""The program that runs Piper, as far as it goes without a voice."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.speech import piper_process
from taste_grpc.speech.piper_process import cut_phonemes


@given(st.lists(st.sampled_from("aei  "), max_size=700))
def test_the_parts_of_a_sentence_are_short_and_all_of_it(phonemes: list[str]) -> None:
    parts = list(cut_phonemes(phonemes))
    assert [phoneme for part in parts for phoneme in part] == phonemes
    assert all(len(part) <= 150 for part in parts)


def test_sentences_are_cut_between_words() -> None:
    parts = list(cut_phonemes(list("wordy " * 100)))
    assert len(parts) == 4
    assert all(part[-1] == " " for part in parts)


def test_short_sentences_stay_whole() -> None:
    assert list(cut_phonemes(["a", " ", "b"])) == [["a", " ", "b"]]


def test_the_program_needs_nothing_of_ours() -> None:
    # it is run by its path, and is the one place that imports what is under the GPL
    tree = ast.parse(Path(piper_process.__file__).read_text("utf-8"))
    names = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not {name for name in names if name.startswith("taste_grpc")}


def test_no_other_module_imports_piper() -> None:
    package = Path(piper_process.__file__).parents[1]
    for path in package.rglob("*.py"):
        if path != Path(piper_process.__file__):
            source = path.read_text("utf-8")
            assert "import piper\n" not in source, path
            assert "from piper" not in source, path
