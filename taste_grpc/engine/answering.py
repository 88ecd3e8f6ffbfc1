"""Between the engine's messages of Generate and the answers of `taste_grpc.streaming`."""

from __future__ import annotations

from functools import partial

from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.protocol import EmitPolicy, GenerateRequest, GenerateResult
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.text.words import written_words
from taste_grpc.streaming import EmitStatus, GenerateOptions, NewWords
from taste_grpc.streaming.conversation import completion_mode

RESULTS_AHEAD = 64
"""Results an answer may be ahead of its reader: they are small, and handing over several at once costs less."""


def check_format(loaded: LoadedModel, request: GenerateRequest) -> None:
    """Refuse a format the model lacks, and segments the format has no place for, before they are listened to."""
    formats = loaded.info.conversation_formats
    chosen = request.conversation_format or loaded.default_format
    if chosen not in formats:
        raise InvalidInputError("conversation_format", f"{chosen!r} is not one of {', '.join(formats)}")
    if chosen == "completion":
        try:
            completion_mode((segment.role, segment.modality) for segment in request.segments)
        except InvalidInputError as error:
            raise InvalidInputError("segments", error.description) from None


def answer_options(loaded: LoadedModel, request: GenerateRequest) -> GenerateOptions:
    """The settings of a checked request."""
    chosen = request.conversation_format or loaded.default_format
    return GenerateOptions(
        text_top_p=request.text_top_p,
        taste_top_p=request.taste_top_p,
        text_temperature=request.text_temperature,
        repetition_penalty=request.repetition_penalty,
        max_length=request.max_length,
        eos_id=request.eos_id,
        should_emit_segment=partial(_at_word, request.emit),
        extra_words=request.extra_words,
        seed=request.seed,
        conversation_format="conversation" if chosen == "conversation" else "completion",
    )


def _at_word(policy: EmitPolicy, _text_id: int, _action: str, status: EmitStatus) -> bool:
    if policy.at_sentence_end:
        return status.word.rstrip().endswith((".", "!", "?"))
    return status.pending_words >= policy.every_words


class Results:
    """Numbers the results of one answer, and its words."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._index = 0
        self._words = 0

    def next(self, new: NewWords, timing_ms: dict[str, float]) -> GenerateResult:
        """`new` as a message."""
        tokenizer, ids = self._loaded.processor.text_tokenizer, new.text_ids
        word_ids = [number for number, (text_ids, _) in enumerate(new.words, self._words) for _ in text_ids]
        message = GenerateResult(
            is_complete=new.is_complete,
            completion_reason=new.completion_reason,
            text=tokenizer.decode(ids),
            text_ids=tuple(ids),
            word_ids=tuple(word_ids),
            taste_ids=tuple(new.rows(self._loaded.info.vq_dim)),
            index=self._index,
            words=tuple(written_words(ids, word_ids, tokenizer)),
            timing_ms=timing_ms,
        )
        self._index += 1
        self._words += len(new.words)
        return message
