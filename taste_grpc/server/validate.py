"""Validation of TasteService messages: every field, before any model work.

What only the audio itself can tell (its length, damage, NaN) is found while it is
decoded, see `convert`; that comes before model work too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import ModelInfo
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.server import checks
from taste_grpc.settings import LimitSettings

CONVERSATION_FORMATS = ("conversation", "completion")
"""Formats there are; which of them a model has, its ModelInfo says."""

_MAX_TEMPERATURE = 2.0
_MAX_REPETITION_PENALTY = 2.0
MAX_CHUNK_WORDS = 64
"""Words that are spoken at a time."""
MAX_LOOK_AHEAD_WORDS = 16
"""Words the speech decoder is shown beside them."""
_OUTPUT_ENCODINGS = (
    common_pb2.AUDIO_ENCODING_UNSPECIFIED,
    common_pb2.AUDIO_ENCODING_LINEAR16,
    common_pb2.AUDIO_ENCODING_FLOAT32LE,
)


@dataclass(frozen=True, slots=True)
class RequestValidator:
    """Holds messages against the limits and the loaded model.

    Every method raises InvalidInputError naming the field path, or UnsupportedByModelError
    when the message is in order and the model cannot do what it asks.
    """

    limits: LimitSettings
    info: ModelInfo

    def tokenize(self, request: taste_pb2.TokenizeRequest) -> None:
        """A TokenizeRequest."""
        if not request.HasField("audio"):
            raise InvalidInputError("audio", "is required")
        checks.check_clip("audio", request.audio, self.limits)
        if request.HasField("text"):
            checks.check_text("text", request.text, self.limits.max_text_bytes)
            if request.text_ids:
                raise InvalidInputError("text_ids", "were given beside text; at most one of the two is allowed")
        self._text_ids("text_ids", request.text_ids)
        if not request.HasField("text") and not request.text_ids:
            self._needs_recogniser("text")

    def generate(self, request: taste_pb2.GenerateRequest) -> None:
        """A GenerateRequest."""
        count = len(request.segments)
        if not 1 <= count <= self.limits.max_segments:
            raise InvalidInputError("segments", f"has {count}; 1 to {self.limits.max_segments} are allowed")
        tokens = sum(_text_id_count(segment) for segment in request.segments)
        if tokens > self.limits.max_text_tokens:
            raise InvalidInputError(
                "segments", f"have {tokens} text ids together; at most {self.limits.max_text_tokens} are allowed"
            )
        for index, segment in enumerate(request.segments):
            path = f"segments[{index}]"
            checks.check_enum(f"{path}.role", segment.role, common_pb2.Role)
            self._segment(path, segment)
        self._sampling(request)
        self._emit_policy(request.emit_policy)
        self._format(request)

    def _sampling(self, request: taste_pb2.GenerateRequest) -> None:
        if request.HasField("text_top_p"):
            checks.check_between("text_top_p", request.text_top_p, 0, 1)
        if request.HasField("taste_top_p"):
            checks.check_between("taste_top_p", request.taste_top_p, 0, 1)
        if request.HasField("text_temperature"):
            checks.check_above("text_temperature", request.text_temperature, 0, _MAX_TEMPERATURE)
        if request.HasField("repetition_penalty"):
            checks.check_between("repetition_penalty", request.repetition_penalty, 1, _MAX_REPETITION_PENALTY)
        if request.HasField("max_length"):
            checks.check_between("max_length", request.max_length, 1, self.limits.max_length)
        if request.HasField("extra_words"):
            checks.check_between("extra_words", request.extra_words, 1, self.limits.max_extra_words)
        if request.HasField("eos_id"):
            checks.check_between("eos_id", request.eos_id, 0, self.info.text_vocab_size - 1)

    def _emit_policy(self, policy: taste_pb2.EmitPolicy) -> None:
        if policy.WhichOneof("policy") == "every_words":
            checks.check_between("emit_policy.every_words", policy.every_words, 1, self.limits.max_extra_words)

    def _format(self, request: taste_pb2.GenerateRequest) -> None:
        name = request.conversation_format
        if not request.HasField("conversation_format") or name in self.info.conversation_formats:
            return
        available = ", ".join(self.info.conversation_formats)
        if name in CONVERSATION_FORMATS:
            raise UnsupportedByModelError(
                f"conversation_format: the loaded model has no {name!r} format; it has {available}"
            )
        raise InvalidInputError("conversation_format", f"is none of the formats the model has: {available}")

    def detokenize_config(self, config: taste_pb2.DetokenizeConfig) -> None:
        """The first message of a Detokenize stream."""
        speaker = config.WhichOneof("speaker")
        if config.HasField("resume_state"):
            self._resume_state(config.resume_state)
            if speaker:
                raise InvalidInputError(f"config.{speaker}", "must be unset: resume_state remembers the voice")
        elif speaker is None:
            raise InvalidInputError("config.speaker_embedding", "is required, or config.reference")
        elif speaker == "reference":
            checks.check_clip("config.reference", config.reference, self.limits)
        else:
            values = config.speaker_embedding.values
            checks.check_embedding("config.speaker_embedding.values", values, self.info.speaker_embedding_dim)
        if config.HasField("out_sample_rate_hz"):
            checks.check_rate("config.out_sample_rate_hz", config.out_sample_rate_hz, self.limits)
        if config.HasField("max_chunk_words"):
            checks.check_between("config.max_chunk_words", config.max_chunk_words, 1, MAX_CHUNK_WORDS)
        if config.HasField("look_ahead_words"):
            checks.check_between("config.look_ahead_words", config.look_ahead_words, 0, MAX_LOOK_AHEAD_WORDS)
        if config.encoding not in _OUTPUT_ENCODINGS:
            raise InvalidInputError(
                "config.encoding", f"is {_encoding_name(config.encoding)}; streamed audio is LINEAR16 or FLOAT32LE"
            )

    def _resume_state(self, state: bytes) -> None:
        limit = self.limits.max_resume_state_bytes
        if not 1 <= len(state) <= limit:
            raise InvalidInputError("config.resume_state", f"has {len(state)} bytes; 1 to {limit} are allowed")

    def detokenize_segment(self, segment: common_pb2.Segment) -> None:
        """A later message of a Detokenize stream."""
        checks.check_enum("segment.role", segment.role, common_pb2.Role, required=False)
        if segment.WhichOneof("content") == "text":
            raise InvalidInputError("segment.text", "is written text; only spoken segments can be detokenized")
        self._segment("segment", segment)
        if segment.WhichOneof("content") == "tokens" and not segment.tokens.HasField("taste_tokens"):
            raise InvalidInputError("segment.tokens.taste_tokens", "is required: the segment is to be spoken")

    def _segment(self, path: str, segment: common_pb2.Segment) -> None:
        """What all segments have in common; roles are the callers'."""
        checks.check_enum(f"{path}.modality", segment.modality, common_pb2.Modality, required=False)
        content = segment.WhichOneof("content")
        if content is None:
            raise InvalidInputError(f"{path}.content", "is required: text, tokens, audio or words")
        if content == "text":
            checks.check_text(f"{path}.text", segment.text, self.limits.max_text_bytes)
        elif content == "tokens":
            self._tokens(f"{path}.tokens", segment.tokens)
        elif content == "words":
            self._words(f"{path}.words.words", segment.words.words)
        else:
            self._recording(f"{path}.audio", segment.audio)
        spoken = is_spoken(segment)
        if segment.modality == common_pb2.MODALITY_TEXT and spoken:
            raise InvalidInputError(f"{path}.modality", "is TEXT, but the content is spoken")
        if segment.modality == common_pb2.MODALITY_AUDIO and not spoken:
            raise InvalidInputError(f"{path}.modality", "is AUDIO, but the content is written")

    def _tokens(self, path: str, tokens: common_pb2.SegmentTokens) -> None:
        if not tokens.text_ids:
            raise InvalidInputError(f"{path}.text_ids", "is empty; at least one id is needed")
        self._text_ids(f"{path}.text_ids", tokens.text_ids)
        checks.check_word_ids(f"{path}.word_ids", tokens.word_ids, len(tokens.text_ids))
        size = len(tokens.text.encode())
        if size > self.limits.max_text_bytes:  # not read, so nothing else about it matters
            raise InvalidInputError(
                f"{path}.text", f"has {size} bytes; at most {self.limits.max_text_bytes} are allowed"
            )
        if not tokens.HasField("taste_tokens"):
            return
        if tokens.taste_tokens.WhichOneof("layout") != "codes":
            raise InvalidInputError(f"{path}.taste_tokens.codes", "is required")
        checks.check_codes(
            f"{path}.taste_tokens.codes",
            tokens.taste_tokens.codes,
            len(tokens.text_ids),
            self.info.vq_dim,
            self.info.codebook_size,
        )

    def _words(self, path: str, words: Sequence[common_pb2.SpokenWord]) -> None:
        limit = self.limits.max_text_tokens
        if not 1 <= len(words) <= limit:
            raise InvalidInputError(path, f"has {len(words)}; 1 to {limit} are allowed")
        checks.check_words(path, [word.text for word in words], self.limits.max_text_bytes)
        text_ids = [text_id for word in words for text_id in word.text_ids]
        if len(text_ids) > limit:
            raise InvalidInputError(path, f"have {len(text_ids)} text ids together; at most {limit} are allowed")
        # All at once, as there may be thousands; one by one only to name what is wrong.
        if not self._are_coded(words) or not all(0 <= i < self.info.text_vocab_size for i in text_ids):
            for index, word in enumerate(words):
                self._word(f"{path}[{index}]", word)

    def _are_coded(self, words: Sequence[common_pb2.SpokenWord]) -> bool:
        """Whether each word has one row of codes of the model's."""
        rows = [word.taste_tokens.codes for word in words]
        shapes = {(row.vq_dim, len(row.ids)) for row in rows}
        size = self.info.codebook_size
        return shapes == {(self.info.vq_dim, self.info.vq_dim)} and all(0 <= i < size for row in rows for i in row.ids)

    def _word(self, path: str, word: common_pb2.SpokenWord) -> None:
        """What sets a word apart from its text, which was checked with the others'."""
        if not word.HasField("taste_tokens"):
            raise InvalidInputError(f"{path}.taste_tokens", "is required: how the word is said")
        if word.taste_tokens.WhichOneof("layout") != "codes":
            raise InvalidInputError(f"{path}.taste_tokens.codes", "is required")
        checks.check_word_codes(
            f"{path}.taste_tokens.codes", word.taste_tokens.codes, self.info.vq_dim, self.info.codebook_size
        )
        self._text_ids(f"{path}.text_ids", word.text_ids)

    def _recording(self, path: str, recording: common_pb2.SegmentAudio) -> None:
        if not recording.HasField("clip"):
            raise InvalidInputError(f"{path}.clip", "is required")
        checks.check_clip(f"{path}.clip", recording.clip, self.limits)
        if recording.HasField("transcript"):
            checks.check_text(f"{path}.transcript", recording.transcript, self.limits.max_text_bytes)
        else:
            self._needs_recogniser(f"{path}.transcript")

    def _text_ids(self, path: str, ids: Sequence[int]) -> None:
        checks.check_ids(path, ids, self.info.text_vocab_size, self.limits.max_text_tokens)

    def _needs_recogniser(self, path: str) -> None:
        if not self.info.asr:
            raise UnsupportedByModelError(
                f"{path}: is not given, and this server has no recogniser to transcribe audio"
            )


def _text_id_count(segment: common_pb2.Segment) -> int:
    """Text ids the segment brings or, as each word has one at least, will have in any case."""
    words = segment.words.words
    return len(segment.tokens.text_ids) + max(len(words), sum(len(word.text_ids) for word in words))


def is_spoken(segment: common_pb2.Segment) -> bool:
    """Whether the content is audio or words, or has speech tokens."""
    content = segment.WhichOneof("content")
    return content in ("audio", "words") or (content == "tokens" and segment.tokens.HasField("taste_tokens"))


def _encoding_name(value: int) -> str:
    names = common_pb2.AudioEncoding
    return names.Name(value) if value in names.values() else str(value)  # type: ignore[arg-type]
