"""What the contract says of answers, as assertions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import Engine, ModelInfo
from tests.support.messages import code_rows


def model_work(engine: Engine) -> dict[str, int]:
    """What the model has done so far, in counters that are not zero; nothing of it is done for a refused request."""
    stats = engine.stats()
    extra = {
        name: stats.extra.get(name, 0) for name in ("abort_checks", "recogniser", "audio_tower", "speaker_encoder")
    }
    counters = {
        "decode_steps": stats.decode_steps,
        "prefill_tokens": stats.prefill_tokens,
        "speech_units": stats.speech_units,
        **extra,
    }
    return {name: count for name, count in counters.items() if count}


def check_tokenized(answer: taste_pb2.TokenizeResponse, info: ModelInfo) -> None:
    """TokenizeResponse: ids, words and codes go together; the voice has unit length."""
    assert answer.text_ids
    check_words(answer.text_ids, answer.word_ids, answer.taste_tokens, answer.words, info, first_word=0)
    assert len(answer.speaker_embedding.values) == info.speaker_embedding_dim
    np.testing.assert_allclose(np.linalg.norm(answer.speaker_embedding.values), 1, atol=1e-4)
    assert answer.audio_ms > 0
    assert answer.timing.elapsed_ms > 0


def check_words(
    text_ids: Sequence[int],
    word_ids: Sequence[int],
    taste_tokens: common_pb2.TasteTokens,
    words: Sequence[str],
    info: ModelInfo,
    *,
    first_word: int,
) -> None:
    """Words count up from `first_word`, each has a text, and a row of codes at its first id unless it is silent."""
    assert all(0 <= text_id < info.text_vocab_size for text_id in text_ids)
    assert len(word_ids) == len(text_ids)
    assert list(dict.fromkeys(word_ids)) == list(range(first_word, first_word + len(words)))
    assert list(word_ids) == sorted(word_ids)
    assert not any(char.isspace() or ord(char) < 32 for word in words for char in word)
    rows = code_rows(taste_tokens, len(text_ids))
    assert rows.shape[1] == info.vq_dim
    assert rows.max() < info.codebook_size
    assert rows.min() >= -1
    coded = rows[:, 0] >= 0
    assert (coded == (rows >= 0).all(axis=1)).all(), "a row is partly -1"
    starts = np.diff(np.array(word_ids), prepend=-1) > 0
    assert not coded[~starts].any(), "codes inside a word"
    assert all(has or not word for word, has in zip(words, coded[starts], strict=True)), "a word without codes"


def check_answer(results: Sequence[taste_pb2.StreamingResult], info: ModelInfo) -> None:
    """All results of a Generate call that ended well."""
    assert [result.is_complete for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1].completion_reason != taste_pb2.COMPLETION_REASON_CONTINUING
    check_results(results, info)


def check_results(results: Sequence[taste_pb2.StreamingResult], info: ModelInfo) -> None:
    """Results of a Generate call, maybe cut short."""
    words = 0
    assert [result.index for result in results] == list(range(len(results)))
    for result in results:
        assert (result.completion_reason == taste_pb2.COMPLETION_REASON_CONTINUING) is not result.is_complete
        assert result.HasField("segment") or result.is_complete
        if not result.HasField("segment"):
            continue
        segment = result.segment
        assert (segment.role, segment.modality) == (common_pb2.ROLE_ASSISTANT, common_pb2.MODALITY_AUDIO)
        tokens = segment.tokens
        assert tokens.text_ids
        check_words(tokens.text_ids, tokens.word_ids, tokens.taste_tokens, tokens.words, info, first_word=words)
        assert all(tokens.words), "a generated word that cannot be written"
        assert (code_rows(tokens.taste_tokens, len(tokens.text_ids)) >= 0).all(axis=1).sum() == len(tokens.words)
        words += len(tokens.words)


def check_speech(responses: Sequence[taste_pb2.DetokenizeResponse], segments: int) -> None:
    """All responses of a Detokenize call of `segments` segments that ended well."""
    assert [response.segment_index for response in responses if response.is_final] == list(range(segments))
    assert not responses or responses[-1].is_final
    check_chunks(responses)


def check_chunks(responses: Sequence[taste_pb2.DetokenizeResponse]) -> None:
    """Responses of a Detokenize call, maybe cut short."""
    if not responses:
        return
    assert [response.index for response in responses] == list(range(len(responses)))
    assert [response.HasField("format") for response in responses] == [True] + [False] * (len(responses) - 1)
    form = responses[0].format
    width = {common_pb2.AUDIO_ENCODING_LINEAR16: 2, common_pb2.AUDIO_ENCODING_FLOAT32LE: 4}[form.encoding]
    assert form.channels == 1
    position, segment = responses[0].first_sample, 0
    for response in responses:
        assert response.segment_index == segment
        assert response.first_sample == position
        assert len(response.audio) % width == 0
        samples = len(response.audio) // width
        np.testing.assert_allclose(response.chunk_duration_ms, 1000 * samples / form.sample_rate_hz, atol=1e-3)
        assert response.HasField("resume_state") <= response.is_final
        position += samples
        segment += response.is_final
