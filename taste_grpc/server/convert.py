"""Messages to the engine's dataclasses, and back.

Messages are taken to be valid (`validate`); what decoding their audio brings to light is
raised here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.audio import Encoding, encode_pcm
from taste_grpc.engine.protocol import (
    CompletionReason,
    DetokenizeChunk,
    DetokenizeConfig,
    EmitPolicy,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    Role,
    SegmentInput,
    SpokenWord,
    TokenizeRequest,
    TokenizeResult,
)
from taste_grpc.server.checks import int64_array
from taste_grpc.server.clips import ClipReader
from taste_grpc.server.validate import is_spoken
from taste_grpc.settings import LimitSettings

API_VERSION = "1.0"
"""Version of the contract this server speaks."""


_ROLES: dict[int, Role] = {
    common_pb2.ROLE_UNSPECIFIED: "assistant",
    common_pb2.ROLE_SYSTEM: "system",
    common_pb2.ROLE_USER: "user",
    common_pb2.ROLE_ASSISTANT: "assistant",
}
_REASONS: dict[CompletionReason, taste_pb2.CompletionReason.ValueType] = {
    "continuing": taste_pb2.COMPLETION_REASON_CONTINUING,
    "segment_end": taste_pb2.COMPLETION_REASON_SEGMENT_END,
    "finished": taste_pb2.COMPLETION_REASON_FINISHED,
    "no_speech": taste_pb2.COMPLETION_REASON_NO_SPEECH,
    "max_length": taste_pb2.COMPLETION_REASON_MAX_LENGTH,
}
_DEFAULTS = GenerateRequest(segments=())
_DEFAULT_RATE_HZ = 16_000
_SUMS = frozenset({"queued", "total", "since_start"})
"""Times an engine tells that are no stages."""
_MAX_CHAR_BYTES = 4  # in UTF-8
_FILLINGS = 64
"""How often one message is filled; until it is dropped, it keeps the memory of all it ever held."""


def tokenize_request(request: taste_pb2.TokenizeRequest, clips: ClipReader) -> TokenizeRequest:
    """Raises InvalidInputError for audio that cannot be read."""
    return TokenizeRequest(
        audio=clips.clip("audio", request.audio),
        text=request.text if request.HasField("text") else None,
        text_ids=int64_array(request.text_ids) if request.text_ids else None,
    )


def generate_request(request: taste_pb2.GenerateRequest, clips: ClipReader) -> GenerateRequest:
    """Raises InvalidInputError for audio that cannot be read."""
    return GenerateRequest(
        segments=tuple(
            segment_input(f"segments[{index}]", segment, clips) for index, segment in enumerate(request.segments)
        ),
        emit=_emit_policy(request.emit_policy),
        **_generate_options(request, clips.limits),
    )


def _generate_options(request: taste_pb2.GenerateRequest, limits: LimitSettings) -> dict[str, Any]:
    """What the request sets; a default above the limits gives way to them."""
    options: dict[str, Any] = {
        "max_length": min(_DEFAULTS.max_length, limits.max_length),
        "extra_words": min(_DEFAULTS.extra_words, limits.max_extra_words),
    }
    given = {
        name: getattr(request, name)
        for name in (
            "text_top_p",
            "taste_top_p",
            "text_temperature",
            "repetition_penalty",
            "max_length",
            "extra_words",
            "eos_id",
            "seed",
            "conversation_format",
        )
        if request.HasField(name)
    }
    return options | given


def _emit_policy(policy: taste_pb2.EmitPolicy) -> EmitPolicy:
    kind = policy.WhichOneof("policy")
    if kind == "every_words":
        return EmitPolicy(every_words=policy.every_words)
    return EmitPolicy(at_sentence_end=kind == "sentence_end")


def detokenize_config(config: taste_pb2.DetokenizeConfig, clips: ClipReader) -> DetokenizeConfig:
    """Raises InvalidInputError for a reference clip that cannot be read."""
    speaker = config.WhichOneof("speaker")
    embedding = reference = None
    if speaker == "speaker_embedding":
        vector = np.fromiter(config.speaker_embedding.values, np.float64)
        embedding = (vector / np.linalg.norm(vector)).astype(np.float32)
    elif speaker == "reference":
        reference = clips.reference("config.reference", config.reference)
    return DetokenizeConfig(
        speaker_embedding=embedding,
        reference=reference,
        out_sample_rate_hz=config.out_sample_rate_hz or _default_rate_hz(config, clips.limits),
        seed=config.seed if config.HasField("seed") else None,
        resume_state=config.resume_state if config.HasField("resume_state") else None,
        max_chunk_words=config.max_chunk_words if config.HasField("max_chunk_words") else None,
        look_ahead_words=config.look_ahead_words if config.HasField("look_ahead_words") else None,
    )


def _default_rate_hz(config: taste_pb2.DetokenizeConfig, limits: LimitSettings) -> int | None:
    """None, for the engine's default, unless the limits exclude it."""
    lowest, highest = limits.min_sample_rate_hz, limits.max_sample_rate_hz
    if config.HasField("resume_state") or lowest <= _DEFAULT_RATE_HZ <= highest:
        return None
    return max(lowest, min(_DEFAULT_RATE_HZ, highest))


def segment_input(path: str, segment: common_pb2.Segment, clips: ClipReader) -> SegmentInput:
    """A segment; `path` names it in errors about its audio, which are InvalidInputError."""
    role, content = _ROLES[segment.role], segment.WhichOneof("content")
    if content == "text":
        return SegmentInput(role, "text", text=segment.text)
    if content == "audio":
        recording = segment.audio
        return SegmentInput(
            role,
            "audio",
            text=recording.transcript if recording.HasField("transcript") else None,
            audio=clips.clip(f"{path}.audio.clip", recording.clip),
        )
    if content == "words":
        return SegmentInput(role, "audio", words=tuple(_spoken_word(word) for word in segment.words.words))
    tokens, codes = segment.tokens, segment.tokens.taste_tokens.codes
    return SegmentInput(
        role,
        "audio" if is_spoken(segment) else "text",
        text_ids=int64_array(tokens.text_ids),
        word_ids=int64_array(tokens.word_ids) if tokens.word_ids else None,
        taste_ids=int64_array(codes.ids).reshape(-1, codes.vq_dim) if is_spoken(segment) else None,
    )


def _spoken_word(word: common_pb2.SpokenWord) -> SpokenWord:
    text_ids = int64_array(word.text_ids) if word.text_ids else None
    return SpokenWord(word.text, int64_array(word.taste_tokens.codes.ids), text_ids)


def tokenize_response(result: TokenizeResult, elapsed_ms: float) -> taste_pb2.TokenizeResponse:
    """What Tokenize answers."""
    return taste_pb2.TokenizeResponse(
        text=result.text,
        text_ids=result.text_ids.tolist(),
        word_ids=result.word_ids.tolist(),
        taste_tokens=_taste_tokens(result.taste_ids),
        speaker_embedding=common_pb2.SpeakerEmbedding(values=result.speaker_embedding.tolist()),
        audio_ms=result.audio_ms,
        words=result.words,
        timing=_timing(result.timing_ms, elapsed_ms),
    )


class StreamingResults:
    """The results of one Generate as messages.

    They share one message, which is filled anew for each: send what was made, or copy it, before the next is. Making
    the message takes several times as long as filling it.

    Args:
        max_text_bytes: limit of the text of a segment.
        queued_ms: to be added to what the engine says the call was queued.
    """

    def __init__(self, max_text_bytes: int, queued_ms: float = 0.0) -> None:
        self._max_text_bytes = max_text_bytes
        self._queued_ms = queued_ms
        self._renew()

    def _renew(self) -> None:
        self._fillings_left = _FILLINGS
        self._reason: CompletionReason | None = None
        self._message = taste_pb2.StreamingResult()
        self._timing = self._message.timing
        self._stages = self._timing.stages_ms
        self._told: list[str] = []
        segment = self._message.segment
        segment.role = common_pb2.ROLE_ASSISTANT
        segment.modality = common_pb2.MODALITY_AUDIO
        self._tokens = segment.tokens
        self._text_ids, self._word_ids, self._words = self._tokens.text_ids, self._tokens.word_ids, self._tokens.words
        self._codes = self._tokens.taste_tokens.codes
        self._code_ids = self._codes.ids

    def message(self, result: GenerateResult, elapsed_ms: float) -> taste_pb2.StreamingResult:
        """`result`, `elapsed_ms` after the call came in; to be used until the next is asked for."""
        if not self._fillings_left:
            self._renew()
        self._fillings_left -= 1
        message = self._message
        message.index = result.index
        reason = result.completion_reason
        if reason != self._reason:
            message.completion_reason = _REASONS[reason]
            self._reason = reason
        if result.is_complete:
            message.is_complete = True
            self._fillings_left = 0
        self._fill_timing(result.timing_ms, elapsed_ms)
        if result.text_ids:
            self._fill_tokens(result)
        else:
            message.ClearField("segment")
            self._fillings_left = 0
        return message

    def _fill_tokens(self, result: GenerateResult) -> None:
        rows, text, limit = result.taste_ids, result.text, self._max_text_bytes
        self._text_ids[:] = result.text_ids
        self._word_ids[:] = result.word_ids
        self._codes.vq_dim = len(rows[0])
        self._code_ids[:] = rows[0] if len(rows) == 1 else chain.from_iterable(rows)
        if len(text) * _MAX_CHAR_BYTES > limit:
            # A segment that was sent must be fit to be sent back.
            text = text.encode()[:limit].decode(errors="ignore")
        self._tokens.text = text
        self._words[:] = result.words

    def _fill_timing(self, stages_ms: Mapping[str, float], elapsed_ms: float) -> None:
        timing, stages = self._timing, self._stages
        told = [name for name in stages_ms if name not in _SUMS]
        if told != self._told:
            stages.clear()
            self._told = told
        for name in told:
            stages[name] = stages_ms[name]
        timing.queued_ms = self._queued_ms + stages_ms.get("queued", 0.0)
        timing.elapsed_ms = elapsed_ms


def detokenize_response(chunk: DetokenizeChunk, encoding: Encoding, elapsed_ms: float) -> taste_pb2.DetokenizeResponse:
    """One message of Detokenize; `format` is set in the first of a call."""
    message = taste_pb2.DetokenizeResponse(
        audio=encode_pcm(chunk.samples, encoding),
        chunk_duration_ms=chunk.chunk_duration_ms,
        first_sample=chunk.first_sample,
        speech_ids=chunk.speech_ids.tolist(),
        index=chunk.index,
        segment_index=chunk.segment_index,
        is_final=chunk.is_final,
        resume_state=chunk.resume_state,
        timing=_timing(chunk.timing_ms, elapsed_ms),
    )
    if chunk.index == 0:
        wire = f"AUDIO_ENCODING_{encoding.name}"
        message.format.encoding = common_pb2.AudioEncoding.Value(wire)
        message.format.sample_rate_hz = chunk.sample_rate_hz
        message.format.channels = 1
    return message


def model_info_response(info: ModelInfo, limits: LimitSettings) -> taste_pb2.GetModelInfoResponse:
    """What GetModelInfo answers."""
    return taste_pb2.GetModelInfoResponse(
        model_id=info.model_id,
        revision=info.revision,
        parts=[taste_pb2.ModelPart(name=name, trained=trained) for name, trained in info.parts_trained.items()],
        text_vocab_size=info.text_vocab_size,
        asr_vocab_size=info.asr_vocab_size,
        taste_layout=taste_pb2.TASTE_LAYOUT_CODES,
        vq_dim=info.vq_dim,
        codebook_size=info.codebook_size,
        speaker_embedding_dim=info.speaker_embedding_dim,
        input_sample_rate_hz=info.input_sample_rate_hz,
        output_sample_rate_hz=info.output_sample_rate_hz,
        speech_unit_rate_hz=info.speech_unit_rate_hz,
        special_tokens=[taste_pb2.SpecialToken(name=name, id=token) for name, token in info.special_tokens.items()],
        conversation_formats=info.conversation_formats,
        device=info.device,
        dtype=info.dtype,
        recogniser=info.asr,
        api_version=API_VERSION,
        server_version=server_version(),
        limits=limits_message(limits),
    )


def limits_message(limits: LimitSettings) -> common_pb2.Limits:
    """The limits, as far as the contract has a field for them."""
    values = limits.model_dump()
    return common_pb2.Limits(**{field.name: values[field.name] for field in common_pb2.Limits.DESCRIPTOR.fields})


@cache
def server_version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version("taste-grpc")
    except metadata.PackageNotFoundError:
        return "unknown"


def _taste_tokens(rows: npt.NDArray[np.int64]) -> common_pb2.TasteTokens:
    codes = common_pb2.TasteCodes(vq_dim=rows.shape[1], ids=cast(Sequence[int], rows.reshape(-1).tolist()))
    return common_pb2.TasteTokens(codes=codes)


def _timing(stages_ms: Mapping[str, float], elapsed_ms: float) -> common_pb2.Timing:
    return common_pb2.Timing(
        queued_ms=stages_ms.get("queued", 0.0),
        elapsed_ms=elapsed_ms,
        stages_ms={name: ms for name, ms in stages_ms.items() if name not in _SUMS},
    )
