"""The state with which another call goes on speaking where a segment ended."""

from __future__ import annotations

import zlib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taste_grpc.errors import InvalidInputError

MAX_STATE_BYTES = 256 * 1024
_MAX_TEXT_BYTES = 1024 * 1024  # of the unpacked state: twice the longest utterance, and not what few bytes unpack into
_FIELD = "resume_state"

Id = Annotated[int, Field(ge=0, lt=2**31)]
Code = Annotated[int, Field(ge=-1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ResumeState(BaseModel):
    """What was spoken so far, and how.

    Random numbers are functions of the seed and of absolute positions, so the seed is all there is to
    carry of them. Only a server with the same model (`model_revision`) accepts a state.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    model_revision: str
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    out_sample_rate_hz: Annotated[int, Field(ge=8_000, le=96_000)]
    samples: Annotated[int, Field(ge=0)] = 0
    audio_ms: Annotated[Finite, Field(ge=0)] = 0.0
    speaker: tuple[Finite, ...]
    text_ids: tuple[Id, ...] = ()
    word_ids: tuple[Id, ...] = ()
    taste_ids: tuple[tuple[Code, ...], ...] = ()
    speech_ids: tuple[Id, ...] = ()

    def pack(self) -> bytes | None:
        """The state as bytes; None when it has outgrown what a client may send back."""
        packed = zlib.compress(self.model_dump_json().encode(), level=6)
        return packed if len(packed) <= MAX_STATE_BYTES else None

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
        if not len(state.text_ids) == len(state.word_ids) == len(state.taste_ids):
            raise InvalidInputError(_FIELD, "has text ids, word ids and codes of different lengths")
        return state
