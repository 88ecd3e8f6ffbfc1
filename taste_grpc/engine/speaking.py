"""One Detokenize call: what it has spoken so far, and how it speaks on."""

from __future__ import annotations

import secrets
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.protocol import DetokenizeChunk, DetokenizeConfig, Float32Array, SegmentInput
from taste_grpc.engine.resume import ResumeState
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck
from taste_grpc.streaming import DetokenizedChunk, TASTESegment, taste_detokenize
from taste_grpc.streaming.conversation import spoken_word_ids

DEFAULT_RATE_HZ = 16_000
MAX_UTTERANCE_IDS = 1024
"""Text ids of one utterance, over all its segments: each is made from everything before it."""
MAX_UTTERANCE_UNITS = 30_000
"""Speech units of one utterance (ten minutes) after which it takes no more segments."""


class Utterance:
    """Speech that grows segment by segment. Used from one thread at a time.

    Raises InvalidInputError when the voice or the resume state in `config` cannot be used.
    """

    def __init__(self, loaded: LoadedModel, config: DetokenizeConfig, voice: Float32Array | None) -> None:
        self._loaded = loaded
        self._segments = 0
        revision, width = loaded.info.revision, loaded.info.speaker_embedding_dim
        self._flow = loaded.processor.get_generator(loaded.model.device).config.flow
        if config.resume_state is not None:
            self.state = self._resumed(config, revision)
        elif voice is not None:
            self.state = ResumeState(
                model_revision=revision,
                seed=secrets.randbits(63) if config.seed is None else config.seed % 2**64,
                out_sample_rate_hz=config.out_sample_rate_hz or DEFAULT_RATE_HZ,
                speaker=_checked_voice(voice, width),
            )
        else:
            raise InvalidInputError("config.speaker", "is missing: give a speaker embedding or a reference clip")
        self._voice = torch.tensor([self.state.speaker], dtype=torch.float32)

    def _resumed(self, config: DetokenizeConfig, revision: str) -> ResumeState:
        state = ResumeState.unpack(config.resume_state or b"", revision)
        self._check(state)
        rate_hz = config.out_sample_rate_hz or state.out_sample_rate_hz
        spoken = self._flow.frames(len(state.speech_ids)) * self._flow.hop_samples
        return state.model_copy(
            update={
                "seed": state.seed if config.seed is None else config.seed % 2**64,
                "out_sample_rate_hz": rate_hz,
                "samples": round(spoken * rate_hz / self._flow.sampling_rate_hz),
            }
        )

    def _check(self, state: ResumeState) -> None:
        """Hold a state that came from outside against the sizes of the model."""
        info, units = self._loaded.info, self._loaded.model.config.speech_decoder.units
        fits = (
            len(state.speaker) == info.speaker_embedding_dim
            and any(state.speaker)
            and len(state.text_ids) <= MAX_UTTERANCE_IDS
            and len(state.speech_ids) <= MAX_UTTERANCE_UNITS
            and all(text_id < info.text_vocab_size for text_id in state.text_ids)
            and all(unit < units for unit in state.speech_ids)
            and all(len(row) == info.vq_dim for row in state.taste_ids)
            and all(code < info.codebook_size for row in state.taste_ids for code in row)
            and list(state.word_ids) == sorted(state.word_ids)
            and bool(state.text_ids) == bool(state.taste_ids)
            and not (state.speech_ids and not state.text_ids)
        )
        if not fits:
            raise InvalidInputError("resume_state", "does not fit the model, or is longer than an utterance may be")

    def say(self, given: SegmentInput, segment: TASTESegment, abort: AbortCheck) -> DetokenizeChunk:
        """Speak one more segment; the chunk holds the new audio and the state after it."""
        if segment.taste_ids is None or segment.length == 0:
            raise InvalidInputError("segment", "must be of modality AUDIO and carry words with codes")
        state, units_before = self.state, len(self.state.speech_ids)
        total = len(state.text_ids) + segment.length
        if total > MAX_UTTERANCE_IDS or units_before > MAX_UTTERANCE_UNITS:
            raise InvalidInputError(
                _field_of(given, "text_ids"),
                f"makes the utterance {total} text ids long; at most {MAX_UTTERANCE_IDS} are spoken in one go: "
                "begin a new call without resume_state",
            )
        offset = state.word_ids[-1] + 1 if state.word_ids else 0
        word_ids = [offset + word for word in self._word_ids(given, segment.text_ids, segment.taste_ids)]
        spoken = self._detokenize(
            given,
            self._loaded.model,
            self._loaded.processor,
            self._voice,
            _row(state.text_ids),
            torch.tensor([state.taste_ids]) if state.taste_ids else None,
            _row(state.speech_ids),
            state.audio_ms,
            segment.text_ids,
            segment.taste_ids,
            torch.tensor([word_ids]),
            _row(state.word_ids),
            state.out_sample_rate_hz,
            seed=state.seed,
            abort=abort,
        )
        units: list[int] = spoken["speech_ids"][0].tolist()
        samples = spoken["audio_waveform"][0].numpy()
        self.state = state.model_copy(
            update={
                "samples": state.samples + len(samples),
                "audio_ms": state.audio_ms + spoken["chunk_duration_ms"],
                "text_ids": state.text_ids + tuple(segment.text_ids[0].tolist()),
                "word_ids": state.word_ids + tuple(word_ids),
                "taste_ids": state.taste_ids + tuple(tuple(row) for row in segment.taste_ids[0].tolist()),
                "speech_ids": tuple(units),
            }
        )
        self._segments += 1
        return DetokenizeChunk(
            samples=samples,
            sample_rate_hz=state.out_sample_rate_hz,
            first_sample=state.samples,
            speech_ids=np.asarray(units[units_before:], np.int64),
            index=self._segments - 1,
            segment_index=self._segments - 1,
            is_final=True,
            resume_state=self.state.pack(),
        )

    @staticmethod
    def _detokenize(given: SegmentInput, *arguments: Any, **options: Any) -> DetokenizedChunk:
        """`taste_detokenize`, with the argument an error names put in the words of the contract."""
        try:
            return taste_detokenize(*arguments, **options)
        except InvalidInputError as error:
            if error.field.startswith("prev_"):
                raise InvalidInputError("resume_state", error.description) from None
            raise InvalidInputError(_field_of(given, error.field), error.description) from None

    def _word_ids(self, given: SegmentInput, text_ids: Tensor, taste_ids: Tensor) -> list[int]:
        """Word index of each id of a segment, from 0."""
        ids: list[int] = text_ids[0].tolist()
        coded: list[bool] = (taste_ids[0, :, 0] != -1).tolist()
        if given.words is not None:
            return [started - 1 for started in accumulate(coded)]
        if given.word_ids is None:
            sets = self._loaded.processor.text_tokenizer.sets(self._loaded.info.text_vocab_size)
            return spoken_word_ids(ids, coded, sets)
        words: list[int] = given.word_ids.tolist()
        if len(words) != len(ids) or words != sorted(words):
            raise InvalidInputError("segment.tokens.word_ids", "must be one non-decreasing word index per text id")
        ranks = {word: rank for rank, word in enumerate(dict.fromkeys(words))}
        return [ranks[word] for word in words]


def _checked_voice(voice: Float32Array, width: int) -> tuple[float, ...]:
    where = "config.speaker_embedding"
    if len(voice) != width:
        raise InvalidInputError(where, f"has {len(voice)} values; the model has {width}")
    if not np.isfinite(voice).all() or not voice.any():
        raise InvalidInputError(where, "is all zero, or has values that are NaN or infinite")
    return tuple(float(value) for value in voice)


def _field_of(given: SegmentInput, name: str) -> str:
    """Path of what a segment's argument `name` of `taste_detokenize` came from."""
    if given.words is not None:
        return "segment.words.words"
    if given.audio is not None:
        return "segment.audio" if given.text is None else "segment.audio.transcript"
    return "segment.tokens.taste_tokens" if name == "taste_ids" else f"segment.tokens.{name}"


def _row(ids: tuple[int, ...]) -> Tensor | None:
    return torch.tensor([ids]) if ids else None
