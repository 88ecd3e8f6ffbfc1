"""Speech to codes, one row per word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ, Float32Array, TasteProcessor, mono_clip
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text.words import WordTokens, derive_word_ids, encode_words, words_of
from taste_grpc.streaming.model_lock import model_lock
from taste_grpc.streaming.segments import check_text_ids, check_word_ids


def taste_tokenize(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    audio: Tensor | Float32Array,
    text_ids: Tensor,
    sampling_rate: int = 16000,
    *,
    word_ids: Tensor | None = None,
    abort: AbortCheck = never_abort,
) -> Tensor:
    """Codes of spoken words.

    Args:
        model: the model.
        processor: of the same checkpoint.
        audio: `(1, T)` mono float in [-1, 1], T > 0, at most 30 s.
        text_ids: `(1, S)` what is said, in ids of the LLM's tokenizer.
        sampling_rate: of `audio` in Hz; any.
        word_ids: `(1, S)` word of each id; derived from the tokens when None.
        abort: called between layers.

    Returns:
        `(1, S, vq_dim)` int64 on the CPU, aligned to `text_ids` one to one: each word's codes at its first
        id, -1 in all other rows.

    Raises:
        BatchSizeError: a batch size that is not 1.
        InvalidInputError, InvalidTypeError: naming the argument.
    """
    ids = check_text_ids("text_ids", text_ids, model.spoken_lm.vocab_size)
    samples = _samples(audio, sampling_rate)
    if word_ids is None:
        words = derive_word_ids(ids, processor.text_tokenizer.sets(model.spoken_lm.vocab_size))
    else:
        words = check_word_ids("word_ids", word_ids, len(ids))
    asr = asr_tokens(model, processor, ids, words)
    ranks = {word: rank for rank, word in enumerate(dict.fromkeys(words))}
    features, feature_lengths = processor.features(samples)
    with model_lock(model):
        codes = model.extract_vq(
            torch.tensor([asr.ids]),
            torch.tensor([len(asr.ids)]),
            torch.tensor([asr.word_ids]),
            torch.tensor([ids]),
            torch.tensor([len(ids)]),
            torch.tensor([[ranks[word] for word in words]]),
            features,
            feature_lengths,
            abort,
        )
    return codes.llm_indices.cpu().clone()  # an ordinary tensor, not one of inference mode


def asr_tokens(
    model: TasteForCausalLM, processor: TasteProcessor, text_ids: Sequence[int], word_ids: Sequence[int]
) -> WordTokens:
    """The words of `text_ids` in tokens of the audio tower.

    Raises InvalidInputError naming `text_ids` when there is no word, or more than the audio tower has room for.
    """
    asr = encode_words(processor.audio_tokenizer, words_of(text_ids, word_ids, processor.text_tokenizer))
    if not asr.ids:
        raise InvalidInputError("text_ids", "spell no word")
    room = model.config.audio_tower.decoder.max_positions - 5
    if len(asr.ids) > room:
        raise InvalidInputError("text_ids", f"are {len(asr.ids)} tokens of the recogniser; at most {room} fit")
    return asr


def _samples(audio: Any, sampling_rate: int) -> Float32Array:
    """`audio` at the model's rate, `[T]`."""
    if getattr(audio, "ndim", 2) != 2:
        raise InvalidInputError("audio", f"has shape {tuple(audio.shape)}; (1, T) is expected")
    samples = resample(mono_clip("audio", audio, sampling_rate), sampling_rate, MODEL_SAMPLE_RATE_HZ)
    if not len(samples):
        raise InvalidInputError("audio", f"has shape {tuple(audio.shape)}, less than a sample at 16 kHz")
    return samples
