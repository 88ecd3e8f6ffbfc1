"""Validation of single messages; over the wire the same table is sent in tests/integration/test_server_inputs.py."""

from __future__ import annotations

import dataclasses

import pytest

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.server import checks
from taste_grpc.server.clips import ClipReader
from taste_grpc.server.validate import RequestValidator
from taste_grpc.settings import LimitSettings
from tests.support import messages
from tests.support.bad_clips import flac
from tests.support.recording_engine import INFO

VALIDATOR = RequestValidator(LimitSettings(), INFO)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "👩‍👩‍👧 family",
        "שלום עולם",
        "مرحبا بالعالم",
        "你好，世界",
        "tab\tand\nnewline",
        "\u200fmark",
        "é" * 4096,
        "...",
    ],
)
def test_text_of_any_language_passes(text):
    VALIDATOR.tokenize(messages.tokenize_request(text))
    VALIDATOR.generate(taste_pb2.GenerateRequest(segments=[messages.text_segment(text)]))


def test_values_at_the_limits_pass():
    VALIDATOR.generate(
        taste_pb2.GenerateRequest(
            segments=[messages.text_segment()] * 256,
            text_top_p=0,
            taste_top_p=1,
            text_temperature=2,
            repetition_penalty=1,
            max_length=4096,
            extra_words=1024,
            eos_id=INFO.text_vocab_size - 1,
            emit_policy=taste_pb2.EmitPolicy(every_words=1024),
        )
    )
    VALIDATOR.generate(taste_pb2.GenerateRequest(segments=[messages.token_segment((0, 999) * 4096)]))
    VALIDATOR.detokenize_segment(messages.token_segment((1,) * 8192))


def test_word_ids_may_start_above_zero_and_be_left_out():
    segment = messages.token_segment()
    segment.tokens.word_ids[:] = [7, 7, 8]
    VALIDATOR.detokenize_segment(segment)
    segment.tokens.ClearField("word_ids")
    VALIDATOR.detokenize_segment(segment)


def test_rows_without_codes_pass():
    segment = messages.token_segment()
    segment.tokens.taste_tokens.codes.ids[4:8] = [-1] * 4
    VALIDATOR.detokenize_segment(segment)


def test_spoken_words_pass():
    for texts in (("a",), ("Hi,", "👩‍👩‍👧", "שלום", "你好，世界", "\u200fmark", "..."), ("w",) * 4096):
        segment = messages.word_segment(texts)
        VALIDATOR.detokenize_segment(segment)
        VALIDATOR.generate(taste_pb2.GenerateRequest(segments=[segment]))
        segment.modality = common_pb2.MODALITY_AUDIO
        segment.words.words[0].text_ids[:] = range(3)
        VALIDATOR.detokenize_segment(segment)


def test_spoken_words_count_as_text_ids_or_bring_theirs():
    segments = [messages.word_segment(("w",) * 4096)] * 2
    VALIDATOR.generate(taste_pb2.GenerateRequest(segments=segments))
    for last in (messages.word_segment(), messages.token_segment(), messages.word_segment(("w",), text_ids=(1, 2))):
        with pytest.raises(InvalidInputError) as refused:
            VALIDATOR.generate(taste_pb2.GenerateRequest(segments=[*segments, last]))
        assert refused.value.field == "segments"
    segments[0].words.words[7].text_ids[:] = [1] * 4097
    with pytest.raises(InvalidInputError, match="8194"):
        VALIDATOR.generate(taste_pb2.GenerateRequest(segments=segments))


def test_modality_may_be_left_to_the_content():
    segment = messages.token_segment()
    segment.modality = common_pb2.MODALITY_UNSPECIFIED
    VALIDATOR.generate(taste_pb2.GenerateRequest(segments=[segment]))


def test_audio_without_text_needs_a_recogniser():
    deaf = RequestValidator(LimitSettings(), dataclasses.replace(INFO, asr=""))
    deaf.tokenize(messages.tokenize_request("hi"))
    with pytest.raises(UnsupportedByModelError, match="recogniser"):
        deaf.tokenize(messages.tokenize_request(None))
    segment = common_pb2.Segment(role=common_pb2.ROLE_USER, audio=common_pb2.SegmentAudio(clip=messages.clip()))
    with pytest.raises(UnsupportedByModelError, match=r"segments\[0\]\.audio\.transcript"):
        deaf.generate(taste_pb2.GenerateRequest(segments=[segment]))


def test_a_format_only_other_models_have_is_no_invalid_argument():
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment()], conversation_format="conversation")
    with pytest.raises(UnsupportedByModelError, match="completion"):
        VALIDATOR.generate(request)
    able = dataclasses.replace(INFO, conversation_formats=("conversation", "completion"))
    RequestValidator(LimitSettings(), able).generate(request)


def test_limits_are_read_from_the_settings():
    strict = RequestValidator(LimitSettings(max_text_bytes=3, min_sample_rate_hz=16_000), INFO)
    with pytest.raises(InvalidInputError) as refused:
        strict.tokenize(messages.tokenize_request("four"))
    assert refused.value.field == "text"
    with pytest.raises(InvalidInputError) as refused:
        strict.tokenize(taste_pb2.TokenizeRequest(audio=messages.clip(rate_hz=8000)))
    assert refused.value.field == "audio.format.sample_rate_hz"


def test_a_file_must_keep_the_limits_of_the_settings_too():
    clip = common_pb2.AudioClip(data=flac(1, 8_000, 2))
    clip.format.encoding = common_pb2.AUDIO_ENCODING_FLAC
    assert ClipReader(LimitSettings()).clip("audio", clip).duration_ms == 1000
    for limits in (LimitSettings(min_sample_rate_hz=16_000), LimitSettings(max_channels=1)):
        with pytest.raises(InvalidInputError) as refused:
            ClipReader(limits).clip("audio", clip)
        assert refused.value.field == "audio.data"


def test_clips_of_one_request_have_a_limit_together():
    """Ten minutes of silence weigh a few kilobytes as FLAC."""
    clip = common_pb2.AudioClip(data=flac(25))
    clip.format.encoding = common_pb2.AUDIO_ENCODING_FLAC
    assert len(clip.data) < 20_000
    reader = ClipReader(LimitSettings(max_request_audio_ms=60_000))
    reader.clip("segments[0].audio.clip", clip)
    reader.clip("segments[1].audio.clip", clip)
    with pytest.raises(InvalidInputError) as refused:
        reader.clip("segments[2].audio.clip", clip)
    assert refused.value.field == "segments[2].audio.clip.data"


def test_every_encoding_of_the_contract_is_known():
    named = set(common_pb2.AudioEncoding.values()) - {common_pb2.AUDIO_ENCODING_UNSPECIFIED}
    assert set(checks.ENCODINGS) == named
