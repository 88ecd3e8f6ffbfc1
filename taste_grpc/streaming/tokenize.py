"""Speech to codes, one row per word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.extraction import SpokenClips
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ, Float32Array, TasteProcessor, mono_clip
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text.words import WordTokens, derive_word_ids, encode_words, words_of
from taste_grpc.streaming.drive import run_alone
from taste_grpc.streaming.segments import check_text_ids, check_word_ids
from taste_grpc.streaming.work import Work, in_turns


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
    features = processor.features(samples)
    codes = run_alone(model, tokenize_in_pieces(model, processor, features, ids, words, abort=abort))
    return codes.clone()  # an ordinary tensor, not one of inference mode


def tokenize_in_pieces(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    features: tuple[Tensor, Tensor],
    text_ids: Sequence[int],
    word_ids: Sequence[int],
    *,
    rows: int | None = None,
    abort: AbortCheck = never_abort,
) -> Work[Tensor]:
    """`taste_tokenize` as work whose pieces are bounded.

    Args:
        model: the model.
        processor: of the same checkpoint.
        features: of the audio, what `processor.features` makes of 16 kHz samples. It is the longest piece without
            the model, and may be computed on any thread.
        text_ids: what is said, in ids of the LLM's tokenizer.
        word_ids: word of each id, not decreasing.
        rows: a piece is one layer of the audio tower for at most so many rows (it has 1500); None takes whole layers.
            The codes of a call are the same for the same `rows`, whatever runs between its pieces.
        abort: called before each piece.

    Returns:
        See `taste_tokenize`.

    Raises:
        InvalidInputError: naming `text_ids`, when they spell no word or too many.
    """
    asr = asr_tokens(model, processor, text_ids, word_ids)
    ranks = {word: rank for rank, word in enumerate(dict.fromkeys(word_ids))}
    clips = SpokenClips(
        torch.tensor([asr.ids]),
        torch.tensor([len(asr.ids)]),
        torch.tensor([asr.word_ids]),
        torch.tensor([list(text_ids)]),
        torch.tensor([len(text_ids)]),
        torch.tensor([[ranks[word] for word in word_ids]]),
        *features,
    )
    codes = yield from in_turns(model.extract_vq_in_pieces(clips, rows=rows, abort=abort))
    return codes.llm_indices.cpu()


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
