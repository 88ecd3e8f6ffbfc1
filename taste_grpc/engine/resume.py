"""The state with which another call goes on speaking where a segment ended."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from taste_grpc.audio import ResamplerState
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.speech_decoder.inputs import SpokenWords
from taste_grpc.model.text.words import WordTokens
from taste_grpc.model.voice_generator.mel_stream import MelState
from taste_grpc.model.voice_generator.wave_stream import WaveState
from taste_grpc.streaming.speech_stream import SpeechState, SpokenChunk, Voice

MAX_STATE_BYTES = 256 * 1024
_MAX_TEXT_BYTES = 1024 * 1024  # of the unpacked state, so that a small one cannot unpack into much more
_FIELD = "resume_state"

Count = Annotated[int, Field(ge=0, lt=2**53)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Array(_Part):
    """Finite float32 numbers: `shape`, and the bytes (little endian, row-major) in base64."""

    shape: tuple[Annotated[int, Field(ge=0, le=1 << 20)], ...]
    data: str

    @classmethod
    def of(cls, values: Any) -> Self:
        """From a tensor or an array."""
        array = np.ascontiguousarray(values.cpu().numpy() if isinstance(values, Tensor) else values, "<f4")
        return cls(shape=array.shape, data=base64.b64encode(array.tobytes()).decode())

    def numpy(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The numbers. Raises InvalidInputError when shape and bytes disagree, or one is not finite."""
        try:
            flat = np.frombuffer(base64.b64decode(self.data, validate=True), "<f4").astype(np.float32)
            array = flat.reshape(self.shape)
        except (binascii.Error, ValueError):
            raise InvalidInputError(_FIELD, "is damaged") from None
        if not np.isfinite(array).all():
            raise InvalidInputError(_FIELD, "has numbers that are NaN or infinite")
        return array

    def tensor(self) -> Tensor:
        """The numbers as a tensor."""
        return torch.from_numpy(self.numpy())


Ids = Annotated[tuple[Id, ...], Field(max_length=4096)]


class _Chunk(_Part):
    ids: Ids
    word_ids: Ids
    codes: Annotated[tuple[Ids, ...], Field(max_length=4096)]
    units: Ids


class _Mel(_Part):
    units: Ids
    frame_count: Count
    held: Array


class _Wave(_Part):
    mel: Array
    f0: Array
    first_frame: Count
    frame_count: Count
    cycles: Annotated[Finite, Field(ge=0, le=1)]


class _Resampler(_Part):
    history: Array
    start: Count
    emitted: Count


class ResumeState(_Part):
    """What going on needs, and no more: its size does not grow with what was spoken.

    Random numbers are functions of the seed and of absolute positions, so the seed is all there is to carry of them.
    Only a server with the same model (`model_revision`) accepts a state.
    """

    version: Literal[2] = 2
    model_revision: str
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    out_sample_rate_hz: Annotated[int, Field(ge=8_000, le=96_000)]
    speaker: Array
    unit_count: Count
    window: Annotated[tuple[_Chunk, ...], Field(max_length=8)]
    mel: _Mel
    wave: _Wave
    resampler: _Resampler

    @classmethod
    def of(cls, state: SpeechState, voice: Voice, model_revision: str) -> Self:
        """The state of a stream, with what it was begun with."""
        chunks = [
            _Chunk(
                ids=tuple(chunk.words.tokens.ids),
                word_ids=tuple(chunk.words.tokens.word_ids),
                codes=chunk.words.taste_rows,
                units=chunk.units,
            )
            for chunk in state.window
        ]
        mel, wave, resampler = state.mel, state.wave, state.resampler
        return cls(
            model_revision=model_revision,
            seed=voice.seed,
            out_sample_rate_hz=voice.sample_rate_hz,
            speaker=Array.of(voice.speaker[0]),
            unit_count=state.unit_count,
            window=tuple(chunks),
            mel=_Mel(units=tuple(mel.units), frame_count=mel.frame_count, held=Array.of(mel.held)),
            wave=_Wave(**{**asdict(wave), "mel": Array.of(wave.mel), "f0": Array.of(wave.f0)}),
            resampler=_Resampler(**{**asdict(resampler), "history": Array.of(resampler.history)}),
        )

    def speech(self) -> SpeechState:
        """The state of a stream. Raises InvalidInputError for arrays that are damaged."""
        window = tuple(
            SpokenChunk(SpokenWords(WordTokens(list(c.ids), list(c.word_ids)), c.codes), c.units) for c in self.window
        )
        wave, resampler = self.wave, self.resampler
        return SpeechState(
            unit_count=self.unit_count,
            window=window,
            mel=MelState(list(self.mel.units), self.unit_count, self.mel.frame_count, self.mel.held.tensor()),
            wave=WaveState(wave.mel.tensor(), wave.f0.tensor(), wave.first_frame, wave.frame_count, wave.cycles),
            resampler=ResamplerState(resampler.history.numpy(), resampler.start, resampler.emitted),
        )

    def pack(self) -> bytes:
        """The state as bytes."""
        return zlib.compress(self.model_dump_json().encode(), level=6)

    @classmethod
    def unpack(cls, data: bytes, model_revision: str) -> Self:
        """Read a state. Raises InvalidInputError for anything that is not one of this model."""
        if len(data) > MAX_STATE_BYTES:
            raise InvalidInputError(_FIELD, f"is {len(data)} bytes; at most {MAX_STATE_BYTES} are allowed")
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(data, _MAX_TEXT_BYTES)
        except zlib.error:
            raise InvalidInputError(_FIELD, "is not a resume state") from None
        if not unpacker.eof:
            raise InvalidInputError(_FIELD, "is damaged or too large")
        try:
            state = cls.model_validate_json(text)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InvalidInputError(_FIELD, f"is not a resume state of this version ({where})") from None
        if state.model_revision != model_revision:
            raise InvalidInputError(
                _FIELD, f"belongs to the model {state.model_revision}; this server has {model_revision}"
            )
        return state
