"""Speech to codes, one row per word."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ, TasteProcessor, mono_clip
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text import derive_word_ids, encode_words, words_of
from taste_grpc.streaming.model_lock import model_lock
from taste_grpc.streaming.segments import check_ids


def taste_tokenize(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    audio: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.float32]],
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
        audio: `(1, T)` mono float in [-1, 1], at most 30 s.
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
    ids = check_ids("text_ids", text_ids, 2)[0].tolist()
    samples = resample(mono_clip("audio", audio, sampling_rate), sampling_rate, MODEL_SAMPLE_RATE_HZ)
    vocab = model.spoken_lm.vocab_size
    if not ids:
        raise InvalidInputError("text_ids", "is empty; at least one id is expected")
    if min(ids) < 0 or max(ids) >= vocab:
        raise InvalidInputError("text_ids", f"has ids outside 0..{vocab - 1}")
    sets = processor.text_tokenizer.sets(vocab)
    words = derive_word_ids(ids, sets) if word_ids is None else check_ids("word_ids", word_ids, 2)[0].tolist()
    if len(words) != len(ids):
        raise InvalidInputError("word_ids", f"has S = {len(words)}, but text_ids has S = {len(ids)}")
    asr = encode_words(processor.audio_tokenizer, words_of(ids, words, processor.text_tokenizer))
    if not asr.ids:
        raise InvalidInputError("text_ids", "spell no word")
    room = model.config.audio_tower.decoder.max_positions - 5
    if len(asr.ids) > room:
        raise InvalidInputError("text_ids", f"are {len(asr.ids)} tokens of the recogniser; at most {room} fit")
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
    return codes.llm_indices.cpu()
