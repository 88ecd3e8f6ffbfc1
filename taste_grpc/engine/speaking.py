"""One Detokenize call: what it has spoken so far, and how it speaks on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.protocol import DetokenizeChunk, DetokenizeConfig, Float32Array, SegmentInput
from taste_grpc.engine.resume import ResumeState
from taste_grpc.engine.resume_check import check_state
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck
from taste_grpc.model.speech_decoder.inputs import SpokenWords
from taste_grpc.streaming import TASTESegment
from taste_grpc.streaming.conversation import spoken_word_ids
from taste_grpc.streaming.phrases import Phrasing, cut_phrases
from taste_grpc.streaming.speech_stream import MAX_CHUNK_TOKENS, SpeechPiece, SpeechState, SpeechStream, Voice
from taste_grpc.streaming.spelling import spelled_words
from taste_grpc.streaming.work import Emit, Work

DEFAULT_RATE_HZ = 16_000

_CHUNK_SAMPLES = 1 << 18
"""The audio of a phrase leaves in chunks of at most so many samples, which are 1 MiB as FLOAT32LE: with the audio that
is held back and a resume state, a message stays well below the 4 MiB that gRPC clients receive when nothing is set."""


class Utterance:
    """Speech that grows segment by segment, at a cost that does not depend on what was spoken before.

    The methods that return `Work` run on the model thread, one at a time.

    Args:
        loaded: the model.
        config: of the call.
        voice: speaker embedding; None with a resume state, which has its own.
        abort: called between layers and steps.

    Raises InvalidInputError when the voice or the resume state in `config` cannot be used.
    """

    def __init__(
        self, loaded: LoadedModel, config: DetokenizeConfig, voice: Float32Array | None, abort: AbortCheck
    ) -> None:
        self._loaded = loaded
        self._phrasing = _phrasing(config)
        self._index = 0
        self._segment_index = 0
        self._units = 0
        generator = loaded.processor.get_generator(loaded.model.device)
        state = SpeechState.empty(generator.config.flow.mel_bins)
        if config.resume_state is not None:
            resumed = ResumeState.unpack(config.resume_state, loaded.info.revision)
            self._voice = _resumed_voice(resumed, config, loaded.info.speaker_embedding_dim)
            state = resumed.speech()
        elif voice is not None:
            self._voice = Voice(
                speaker=_checked_speaker(voice, loaded.info.speaker_embedding_dim, "config.speaker_embedding"),
                seed=secrets.randbits(63) if config.seed is None else config.seed % 2**64,
                sample_rate_hz=config.out_sample_rate_hz or DEFAULT_RATE_HZ,
            )
        else:
            raise InvalidInputError("config.speaker", "is missing: give a speaker embedding or a reference clip")
        self._stream = SpeechStream(loaded.model, generator, self._voice, state, abort=abort)
        if config.resume_state is not None:
            check_state(loaded, state, resumed.out_sample_rate_hz, self._stream.windowing)
            state.resampler = state.resampler.at_rate(
                generator.sampling_rate_hz, resumed.out_sample_rate_hz, self._voice.sample_rate_hz
            )

    @property
    def unit_count(self) -> int:
        """Speech units made in this call."""
        return self._units

    def say(self, given: SegmentInput, segment: TASTESegment) -> Work[DetokenizeChunk]:
        """Speak one more segment: emits the chunks of each phrase, several of a long one, and returns the very last.

        Close the segment with `close_segment` afterwards.
        """
        words, rows = self._spell(given, segment)
        tokenizer = self._loaded.processor.audio_tokenizer
        chunk: DetokenizeChunk | None = None
        for start, end, seen in self._chunks(words, given):
            if chunk is not None:
                yield Emit(chunk)
            spoken = SpokenWords.of(words[start:end], rows[start:end], tokenizer)
            ahead = SpokenWords.of(words[end:seen], rows[end:seen], tokenizer)
            piece = yield from self._stream.speak(spoken, ahead)
            self._units += len(piece.units)
            *earlier, chunk = self._chunks_of(piece)
            for filled in earlier:
                yield Emit(filled)
        if chunk is None:
            raise InvalidInputError(_field_of(given, "text_ids"), "has no word that can be spoken")
        return chunk

    def close_segment(self, chunk: DetokenizeChunk | None, *, flush: bool) -> Work[DetokenizeChunk]:
        """The segment's last chunk, made of its last phrase's unless that has left already (None).

        With `flush` it carries the audio that was held back as well.
        """
        rest: SpeechPiece | None = None
        if flush:
            rest = yield from self._stream.finish()
        if chunk is None:
            position = self._stream.state.resampler.emitted
            chunk = self._empty_chunk(position if rest is None else rest.first_sample)
        if rest is not None:
            chunk = replace(chunk, samples=np.concatenate([chunk.samples, rest.audio.samples]))
        self._segment_index += 1
        state = ResumeState.of(self._stream.state, self._voice, self._loaded.info.revision)
        return replace(chunk, is_final=True, resume_state=state.pack())

    def _chunks_of(self, piece: SpeechPiece) -> list[DetokenizeChunk]:
        """At least one; the first has the units."""
        samples, chunks = piece.audio.samples, []
        for start in range(0, max(1, len(samples)), _CHUNK_SAMPLES):
            chunk = self._empty_chunk(piece.first_sample + start)
            chunks.append(replace(chunk, samples=samples[start : start + _CHUNK_SAMPLES]))
        return [replace(chunks[0], speech_ids=np.asarray(piece.units, np.int64)), *chunks[1:]]

    def _empty_chunk(self, first_sample: int) -> DetokenizeChunk:
        self._index += 1
        return DetokenizeChunk(
            samples=np.zeros(0, np.float32),
            sample_rate_hz=self._voice.sample_rate_hz,
            first_sample=first_sample,
            speech_ids=np.zeros(0, np.int64),
            index=self._index - 1,
            segment_index=self._segment_index,
            is_final=False,
        )

    def _chunks(self, words: list[str], given: SegmentInput) -> Iterator[tuple[int, int, int]]:
        """Phrases of `words` as (start, end, seen), none with more tokens than can be spoken, or shown, at once."""
        tokenizer = self._loaded.processor.audio_tokenizer
        sizes = [len(tokenizer.encode(word, add_special_tokens=False, split_special_tokens=True)) for word in words]
        for index, size in enumerate(sizes):
            if size > MAX_CHUNK_TOKENS:
                raise InvalidInputError(
                    _field_of(given, "text_ids"),
                    f"has a word of {size} tokens of speech (word {index}); at most {MAX_CHUNK_TOKENS} are allowed",
                )
        for cut in cut_phrases(words, self._phrasing):
            start = cut.start
            for end in range(cut.start + 1, cut.end + 1):
                if end == cut.end or sum(sizes[start : end + 1]) > MAX_CHUNK_TOKENS:
                    seen = cut.seen if end == cut.end else end
                    while sum(sizes[start:seen]) > MAX_CHUNK_TOKENS and seen > end:
                        seen -= 1
                    yield start, end, seen
                    start = end

    def _spell(self, given: SegmentInput, segment: TASTESegment) -> tuple[list[str], list[tuple[int, ...]]]:
        """The words that spell anything, and their codes."""
        if segment.taste_ids is None or segment.length == 0:
            raise InvalidInputError("segment", "must be of modality AUDIO and carry words with codes")
        word_ids = torch.tensor([self._word_ids(given, segment.text_ids, segment.taste_ids)])
        loaded = self._loaded
        try:
            spelled, rows = spelled_words(
                loaded.model, loaded.processor, "", segment.text_ids, segment.taste_ids, word_ids
            )
        except InvalidInputError as error:
            raise InvalidInputError(_field_of(given, error.field), error.description) from None
        spoken = [(word, tuple(row)) for word, row in zip(spelled, rows, strict=True) if word.strip()]
        return [word for word, _ in spoken], [row for _, row in spoken]

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


def _phrasing(config: DetokenizeConfig) -> Phrasing:
    usual = Phrasing()
    most = usual.max_words if config.max_chunk_words is None else config.max_chunk_words
    ahead = usual.look_ahead_words if config.look_ahead_words is None else config.look_ahead_words
    return Phrasing(min(usual.min_words, most), most, ahead)


def _resumed_voice(state: ResumeState, config: DetokenizeConfig, width: int) -> Voice:
    return Voice(
        speaker=_checked_speaker(state.speaker.numpy(), width, "resume_state"),
        seed=state.seed if config.seed is None else config.seed % 2**64,
        sample_rate_hz=config.out_sample_rate_hz or state.out_sample_rate_hz,
    )


def _checked_speaker(voice: Float32Array, width: int, where: str) -> Tensor:
    if voice.shape != (width,):
        raise InvalidInputError(where, f"has {voice.size} values; the model has {width}")
    if not np.isfinite(voice).all() or not voice.any():
        raise InvalidInputError(where, "is all zero, or has values that are NaN or infinite")
    return torch.from_numpy(voice.astype(np.float32))[None]


def _field_of(given: SegmentInput, name: str) -> str:
    """Path of what a segment's argument `name` of `spelled_words` came from."""
    if given.words is not None:
        return "segment.words.words"
    if given.audio is not None:
        return "segment.audio" if given.text is None else "segment.audio.transcript"
    return "segment.tokens.taste_tokens" if name == "taste_ids" else f"segment.tokens.{name}"
