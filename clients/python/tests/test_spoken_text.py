"""Text and how it is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServicer

from taste.v1 import common_pb2, taste_pb2
from taste_grpc_client import SpokenText, Word, text_segment

VOICE = [0.1, -0.25, 1 / 3]
INFO = taste_pb2.GetModelInfoResponse(model_id="tiny", revision="r1", vq_dim=2, codebook_size=8)


def tokens(words: Sequence[str], word_ids: Sequence[int], codes: Sequence[int]) -> common_pb2.SegmentTokens:
    return common_pb2.SegmentTokens(
        text_ids=[10 + place for place in range(len(word_ids))],
        word_ids=word_ids,
        words=words,
        taste_tokens=common_pb2.TasteTokens(codes=common_pb2.TasteCodes(vq_dim=2, ids=codes)),
        text=" ".join(words),
    )


def tokenized(**changes: Any) -> taste_pb2.TokenizeResponse:
    given = tokens(["Good", "morning,", "all"], [0, 1, 1, 2], [1, 2, 3, 4, -1, -1, 5, 6])
    fields: dict[str, Any] = {
        name: getattr(given, name) for name in ("text_ids", "word_ids", "words", "taste_tokens", "text")
    }
    embedding = common_pb2.SpeakerEmbedding(values=VOICE)
    return taste_pb2.TokenizeResponse(**{**fields, "speaker_embedding": embedding, "audio_ms": 1234.5, **changes})


@pytest.fixture
def text() -> SpokenText:
    return SpokenText.from_tokenized(tokenized(), INFO)


def test_what_was_heard(text: SpokenText) -> None:
    assert text.words == [
        Word("Good", (1, 2), (10,)),
        Word("morning,", (3, 4), (11, 12)),
        Word("all", (5, 6), (13,)),
    ]
    assert text.text == "Good morning, all"
    assert (text.model_id, text.revision, text.audio_ms, text.vq_dim) == ("tiny", "r1", 1234.5, 2)
    assert text.speaker == (0.1, -0.25, 0.33333334), "as short as 32 bits can be written"
    assert list(common_pb2.SpeakerEmbedding(values=text.speaker).values) == list(tokenized().speaker_embedding.values)
    bare = SpokenText.from_tokenized(tokenized(speaker_embedding=None))
    assert (bare.speaker, bare.model_id, bare.revision) == (None, "", "")


def test_what_was_answered() -> None:
    results = [
        taste_pb2.StreamingResult(segment=common_pb2.Segment(tokens=tokens(["Oh"], [0, 0], [1, 2, -1, -1]))),
        taste_pb2.StreamingResult(segment=common_pb2.Segment(tokens=tokens(["my", "dear"], [1, 2], [3, 4, 5, 6]))),
        taste_pb2.StreamingResult(is_complete=True),
    ]
    said = SpokenText.from_results(results, INFO, speaker=common_pb2.SpeakerEmbedding(values=VOICE))
    assert [word.text for word in said.words] == ["Oh", "my", "dear"]
    assert [word.codes for word in said.words] == [(1, 2), (3, 4), (5, 6)]
    assert [word.text_ids for word in said.words] == [(10, 11), (10,), (11,)]
    assert said.speaker == (0.1, -0.25, 0.33333334)
    assert said.audio_ms is None
    assert SpokenText.from_results([]) == SpokenText()


def test_ids_that_spell_nothing_are_left_out() -> None:
    response = tokenized()
    response.words[1] = ""
    assert SpokenText.from_tokenized(response).text == "Good all"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"words": []}, "words: 3 were expected, one for each word id; the server sent 0"),
        ({"word_ids": [0, 1]}, "taste_tokens: a row of codes for each text id"),
        ({"taste_tokens": None}, "taste_tokens: a row of codes for each text id"),
        ({"words": ["a", "b c", "d"]}, "text: one word without blanks was expected, not 'b c'"),
        ({"text_ids": [1]}, "taste_tokens: a row of codes for each text id"),
    ],
)
def test_responses_without_words_or_codes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        SpokenText.from_tokenized(tokenized(**changes))


def test_a_replaced_word_keeps_its_codes(text: SpokenText) -> None:
    text.replace_word(1, "evening,")
    text.replace_word(-1, "folks")
    assert text.words[1:] == [Word("evening,", (3, 4)), Word("folks", (5, 6))]
    with pytest.raises(IndexError):
        text.replace_word(3, "none")
    with pytest.raises(ValueError, match="one word without blanks"):
        text.replace_word(0, "two words")
    assert text.text == "Good evening, folks"


def test_words_come_and_go(text: SpokenText) -> None:
    text.insert_word(1, "old", text.words[0].codes)
    text.insert_word(99, "together", [7, 7])
    assert text.delete_word(0).text == "Good"
    assert text.text == "old morning, all together"
    with pytest.raises(ValueError, match="codes: 2 were expected, as in the other words, not 3"):
        text.insert_word(0, "long", [1, 2, 3])
    with pytest.raises(IndexError):
        text.delete_word(9)


@pytest.mark.parametrize("wrong", ["", " ", "two words", " padded", "tab\t", "nul\0", "\x85", "\ud800", 7, None])
def test_texts_that_are_no_word(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^text: "):
        Word(wrong, (1,))


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.0, True, "1", None])
def test_numbers_that_are_no_code_or_id(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^codes\[1\]: a whole number from 0 up was expected"):
        Word("a", (0, wrong))
    with pytest.raises(ValueError, match=r"^text_ids\[0\]: a whole number from 0 up was expected"):
        Word("a", (0,), (wrong,))
    with pytest.raises(ValueError, match=r"^codes: at least one"):
        Word("a", ())


def test_its_segment(text: SpokenText) -> None:
    text.replace_word(1, "évening,")
    segment = text.segment("user")
    assert (segment.role, segment.modality) == (common_pb2.ROLE_USER, common_pb2.MODALITY_AUDIO)
    words = segment.words.words
    assert [word.text for word in words] == ["Good", "évening,", "all"]
    assert [list(word.taste_tokens.codes.ids) for word in words] == [[1, 2], [3, 4], [5, 6]]
    assert {word.taste_tokens.codes.vq_dim for word in words} == {2}
    assert [list(word.text_ids) for word in words] == [[10], [], [13]]
    assert text.segment().role == common_pb2.ROLE_ASSISTANT
    with pytest.raises(ValueError, match="there is nothing to say"):
        SpokenText().segment()
    text.words.append(Word("odd", (1, 2, 3)))
    with pytest.raises(ValueError, match=r"^words\[3\]\.codes: 2 were expected, as in words\[0\], not 3"):
        text.segment()


def test_models_that_read_its_codes(text: SpokenText) -> None:
    text.require_model(INFO)
    SpokenText(text.words).require_model(INFO)
    for name, value, words in (
        ("model_id", "huge", "model_id: the codes are those of 'tiny', and the server's model is 'huge'"),
        ("revision", "r2", "revision: the codes are those of 'r1'"),
        ("vq_dim", 4, "words: each has 2 codes, and the server's model wants 4"),
        ("codebook_size", 6, r"words\[2\].codes: the server's model has codes up to 5"),
    ):
        other = taste_pb2.GetModelInfoResponse()
        other.CopyFrom(INFO)
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"^{words}"):
            text.require_model(other)


def test_it_is_spoken_with_its_own_voice_unless_another_is_given(
    client: Any, servicer: FakeServicer, text: SpokenText
) -> None:
    spoken = [b"".join(chunk.audio for chunk in client.detokenize(text, **options)) for options in VOICES]
    assert spoken == [b"Good morning, all"] * 3
    configs = [request.config for request in servicer.received if request.HasField("config")]
    assert [list(config.speaker_embedding.values) for config in configs] == [
        list(tokenized().speaker_embedding.values),
        [2.0],
        [],
    ]
    assert configs[2].resume_state == b"state"
    chunks = list(client.detokenize([text, text_segment("and"), text], speaker=[1.0]))
    assert [chunk.audio for chunk in chunks] == [b"Good morning, all", b"and", b"Good morning, all"]


VOICES: list[dict[str, Any]] = [{}, {"speaker": [2.0]}, {"resume_state": b"state"}]


def test_generate_wants_to_know_who_says_it(client: Any, text: SpokenText) -> None:
    with pytest.raises(TypeError, match=r"not SpokenText; its \.segment\(role\) is one"):
        client.generate([text])
    assert len(list(client.generate([text.segment("user")], seed=1))) == 1


def test_saving_and_loading(text: SpokenText, tmp_path: Path) -> None:
    text.save(tmp_path / "a.taste.json")
    assert SpokenText.load(str(tmp_path / "a.taste.json")) == text
