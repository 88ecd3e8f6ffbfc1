"""Words and their codes to speech, a chunk at a time, without state between calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from taste_grpc.audio import resample
from taste_grpc.errors import BatchSizeError, InvalidInputError, InvalidTypeError, type_name
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.arguments import check_integer, check_number
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.speech_decoder.inputs import SpokenWords, decoder_inputs
from taste_grpc.model.speech_decoder.unit_sampler import UnitSampler
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming.model_lock import model_lock
from taste_grpc.streaming.segments import check_ids, check_range
from taste_grpc.streaming.spelling import spelled_words

MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 96_000
_AUDIO_MS_SLACK = 100.0  # callers add up rounded chunk durations


class DetokenizedChunk(TypedDict):
    """What `taste_detokenize` returns.

    `audio_waveform` `(1, T)` float32, the new part only, at `sampling_rate` Hz; its length in ms;
    `speech_ids` `(1, N)` int64, everything so far.
    """

    audio_waveform: Tensor
    sampling_rate: int
    chunk_duration_ms: float
    speech_ids: Tensor


@dataclass(frozen=True)
class _Utterance:
    words: SpokenWords
    units: list[int]


def taste_detokenize(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    speaker_embeds: Tensor,
    prev_text_ids: Tensor | None,
    prev_taste_ids: Tensor | None,
    prev_speech_ids: Tensor | None,
    prev_audio_ms: float,
    text_ids: Tensor,
    taste_ids: Tensor,
    text_word_ids: Tensor | None = None,
    prev_text_word_ids: Tensor | None = None,
    out_sampling_rate: int = 16000,
    *,
    seed: int | None = None,
    abort: AbortCheck = never_abort,
) -> DetokenizedChunk:
    """Speak more words after those already spoken; returns the new audio only.

    Nothing is kept between calls: what was spoken so far is handed back in, and the cost grows with it.
    The chunks of an utterance, put together, have exactly the samples of its speech units.

    Args:
        model: the model.
        processor: of the same checkpoint.
        speaker_embeds: `(1, 192)` the voice.
        prev_text_ids: `(1, P)` ids of the words spoken so far, None at the beginning; `prev_taste_ids`
            `(1, P, vq_dim)` their codes; `prev_speech_ids` `(1, N)` the units they became.
        prev_audio_ms: milliseconds of audio returned so far (the sum of `chunk_duration_ms`).
        text_ids: `(1, S)` new words; `taste_ids` `(1, S, vq_dim)` with each word's codes at its first id.
        text_word_ids: `(1, S)` word of each id, derived from the tokens when None; likewise
            `prev_text_word_ids`.
        out_sampling_rate: of the audio, 8,000 to 96,000 Hz.
        seed: of everything random; None is 0. Chunks of one utterance must use the same.
        abort: called between steps.

    Raises:
        BatchSizeError, InvalidInputError, InvalidTypeError: naming the argument.
    """
    _check_speaker(speaker_embeds, model.config.speech_decoder.speaker_size)
    if not MIN_RATE_HZ <= check_integer("out_sampling_rate", out_sampling_rate) <= MAX_RATE_HZ:
        raise InvalidInputError("out_sampling_rate", f"{out_sampling_rate} is outside {MIN_RATE_HZ}..{MAX_RATE_HZ} Hz")
    seed = 0 if seed is None else check_integer("seed", seed)
    before = _previous(model, processor, prev_text_ids, prev_taste_ids, prev_speech_ids, prev_text_word_ids)
    new = SpokenWords.of(
        *spelled_words(model, processor, "", text_ids, taste_ids, text_word_ids), processor.audio_tokenizer
    )
    generator = processor.get_generator(model.device)
    config = generator.config.flow
    _check_audio_ms(prev_audio_ms, 1000.0 * len(before.units) / config.unit_rate_hz)
    with model_lock(model), torch.inference_mode():
        inputs = decoder_inputs(before.words + new, model.audio_tower.rvq.output_from_indices, model.device)
        units = before.units + model.speak(
            speaker_embeds, inputs, UnitSampler(seed=seed), previous_units=before.units, abort=abort
        )
        first = config.frames(len(before.units)) * config.hop_samples
        if len(units) == len(before.units):
            waveform, rate = torch.zeros(1, first), generator.sampling_rate_hz
        else:
            waveform, rate = generator.inference(
                torch.tensor([units]), flow_embedding=speaker_embeds, seed=seed, abort=abort
            )
    samples = resample(waveform[0].float().cpu().numpy(), rate, out_sampling_rate)
    # the resampler's filter may overshoot
    fresh = np.clip(samples[round(first * out_sampling_rate / rate) :], -1.0, 1.0)
    return DetokenizedChunk(
        audio_waveform=torch.from_numpy(fresh)[None],
        sampling_rate=out_sampling_rate,
        chunk_duration_ms=1000.0 * len(fresh) / out_sampling_rate,
        speech_ids=torch.tensor([units], dtype=torch.long),
    )


def _check_speaker(speaker_embeds: Any, size: int) -> None:
    if not isinstance(speaker_embeds, Tensor):
        raise InvalidTypeError("speaker_embeds", f"is a {type_name(speaker_embeds)}; a torch.Tensor is expected")
    if not speaker_embeds.is_floating_point():
        raise InvalidTypeError("speaker_embeds", f"has dtype {speaker_embeds.dtype}; floating point is expected")
    shape = f"has shape {tuple(speaker_embeds.shape)}; (1, {size}) is expected"
    if speaker_embeds.dim() == 2 and speaker_embeds.shape[0] != 1:
        raise BatchSizeError("speaker_embeds", shape)
    if speaker_embeds.shape != (1, size):
        raise InvalidInputError("speaker_embeds", shape)
    if not bool(torch.isfinite(speaker_embeds).all()) or not bool(speaker_embeds.any()):
        raise InvalidInputError("speaker_embeds", "is all zero, or has values that are NaN or infinite")


def _check_audio_ms(claimed: float, spoken: float) -> None:
    if not abs(check_number("prev_audio_ms", claimed) - spoken) <= _AUDIO_MS_SLACK + 0.01 * spoken:
        raise InvalidInputError(
            "prev_audio_ms", f"is {claimed:g}, but prev_speech_ids stand for {spoken:g} ms of audio"
        )


def _previous(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    text_ids: Tensor | None,
    taste_ids: Tensor | None,
    speech_ids: Tensor | None,
    word_ids: Tensor | None,
) -> _Utterance:
    for name, given in (("prev_text_ids", text_ids), ("prev_speech_ids", speech_ids)):
        if given is not None and not isinstance(given, Tensor):
            raise InvalidTypeError(name, f"is a {type_name(given)}; a torch.Tensor is expected")
    empty = text_ids is None or text_ids.numel() == 0
    if empty:
        for name, given in (("taste_ids", taste_ids), ("speech_ids", speech_ids), ("text_word_ids", word_ids)):
            if given is not None and given.numel():
                raise InvalidInputError(f"prev_{name}", "are given, but prev_text_ids are not")
        return _Utterance(SpokenWords.of([], [], processor.audio_tokenizer), [])
    if taste_ids is None or speech_ids is None:
        name = "prev_taste_ids" if taste_ids is None else "prev_speech_ids"
        raise InvalidInputError(name, "are missing; prev_text_ids are given")
    units = check_ids("prev_speech_ids", speech_ids, 2)[0].tolist()
    check_range("prev_speech_ids", units, model.config.speech_decoder.units)
    words = spelled_words(model, processor, "prev_", text_ids, taste_ids, word_ids)
    return _Utterance(SpokenWords.of(*words, processor.audio_tokenizer), units)
