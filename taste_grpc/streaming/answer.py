"""One answer to a conversation, word by word."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from taste_grpc.errors import InvalidInputError, InvalidTypeError, type_name
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.arguments import check_integer
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.spoken_lm.generation import PromptReading, StepResult
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.sampler import EndReason, SamplingParams, SeededDraws
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming.conversation import (
    ConversationFormat,
    build_completion_prompt,
    build_conditional_prompt,
    conversation_formats,
)
from taste_grpc.streaming.segments import CompletionReason, StreamingResult, TASTESegment, check_range
from taste_grpc.streaming.work import Emit, Slot, TextSlot, TextStep, Turn, Work


@dataclass(frozen=True)
class EmitStatus:
    """What an emit callback may want to know beside the id and the action.

    Attributes:
        pending_words: completed words that have not been emitted, the newest one included.
        emitted_words: words emitted so far.
        word: text of the word just completed, with its leading blank.
    """

    pending_words: int
    emitted_words: int
    word: str


ShouldEmitSegment = Callable[[int, str, EmitStatus], bool]
"""Asked at each completed word: `(text_id, action, status)` with the word's last id and the name of the
sampler's action that completed it. True emits all completed words as a segment."""


@dataclass(frozen=True)
class GenerateOptions:
    """Settings of a generation; see `streaming_generate`."""

    text_top_p: float = 0.3
    taste_top_p: float = 0.0
    text_temperature: float = 0.5
    repetition_penalty: float = 1.1
    max_length: int = 512
    eos_id: int | None = None
    should_emit_segment: ShouldEmitSegment | None = None
    extra_words: int = 32
    seed: int | None = None
    conversation_format: ConversationFormat | None = None


@dataclass(slots=True)
class NewWords:
    """What is new of an answer, in whole words, as plain numbers.

    Attributes:
        is_complete, completion_reason: as in `StreamingResult`.
        words: for each word, its text ids and, where they were sampled, its codes.
    """

    is_complete: bool
    completion_reason: CompletionReason
    words: list[tuple[list[int], tuple[int, ...] | None]]

    @property
    def text_ids(self) -> list[int]:
        """Of all words."""
        return [text_id for text_ids, _ in self.words for text_id in text_ids]

    def rows(self, vq_dim: int) -> list[tuple[int, ...]]:
        """A row of codes for each of `text_ids`; of -1 where an id begins no word, or its codes are not known."""
        empty = (-1,) * vq_dim
        return [row for text_ids, codes in self.words for row in [codes or empty, *([empty] * (len(text_ids) - 1))]]

    def result(self, vq_dim: int) -> StreamingResult:
        """The same as tensors."""
        if not self.words:
            return StreamingResult(self.is_complete, self.completion_reason, None)
        ids, rows = torch.tensor([self.text_ids]), torch.tensor([self.rows(vq_dim)])
        return StreamingResult(self.is_complete, self.completion_reason, TASTESegment("assistant", "audio", ids, rows))


@dataclass
class _Word:
    ids: list[int] = field(default_factory=list)
    codes: tuple[int, ...] | None = None


class Answer:
    """One generation, as work in pieces (`taste_grpc.streaming.work`).

    The cost of a step does not depend on how much was generated.

    Args:
        model: where the answer comes from.
        processor: of the same checkpoint.
        input_segments: the conversation so far.
        options: see `streaming_generate`.
        abort: called between layers; raises to stop.

    Raises:
        InvalidInputError, InvalidTypeError: naming the argument.
        UnsupportedByModelError: the tokenizer lacks the conversation markers.
    """

    def __init__(
        self,
        model: TasteForCausalLM,
        processor: TasteProcessor,
        input_segments: Sequence[TASTESegment],
        options: GenerateOptions,
        abort: AbortCheck = never_abort,
    ) -> None:
        self._model = model
        self._processor = processor
        self._options = options
        self._abort = abort
        self._sets = processor.text_tokenizer.sets(model.spoken_lm.vocab_size)
        self._params = _sampling_params(model, processor, options)
        chosen = options.conversation_format or "conversation"
        if chosen == "conversation":
            conversation = build_conditional_prompt(model, processor, input_segments)
            self._prompt, self._goes_on = conversation.prompt, conversation.is_open
        elif chosen in conversation_formats(processor):
            self._prompt, self._goes_on = build_completion_prompt(model, processor, input_segments), False
        else:
            raise InvalidInputError("conversation_format", f"{chosen!r} is not 'conversation' or 'completion'")
        self._check_room()
        self._words: list[_Word] = []
        self._coded = 0  # words whose codes are known
        self._emitted = 0
        self.steps = 0

    def _check_room(self) -> None:
        room = int(self._model.spoken_lm.llama.config.max_position_embeddings)
        if self.prompt_rows + self._new_rows > room:
            raise InvalidInputError(
                "max_length",
                f"{self._options.max_length} new ids after a prompt of {self.prompt_rows} exceed the {room} positions "
                "of the model",
            )

    @property
    def _new_rows(self) -> int:
        return self._options.max_length + self._model.spoken_lm.config.delay + 1

    @property
    def prompt_rows(self) -> int:
        """Positions of the prompt."""
        return self._prompt.length

    def work(self, *, tell_when_read: bool = False) -> Work[None]:
        """Generate the answer; emits `NewWords` as the options want them, the complete ones last.

        With `tell_when_read`, the first thing it emits is None, when the prompt has been read.
        """
        slot = yield TextSlot(self.prompt_rows + self._new_rows)
        try:
            reading = self._reading(slot)
            yield Turn()  # those who begin at the same time are read together
            while not reading.advance(self._abort):
                yield Turn()
            yield Emit(None) if tell_when_read else Turn()
            generation = reading.generation
            while True:
                result: StepResult = yield TextStep(slot, generation)
                self.steps += 1
                completed = self._take(result)
                if generation.done:
                    break
                if completed is not None and self._wants(completed, result):
                    yield Emit(NewWords(False, "continuing", self._new_words(completed + 1)))
        finally:
            slot.release()
        reason = self._reason(generation.sampler.end_reason)
        yield Emit(NewWords(True, reason, self._new_words(len(self._words))))

    def _reading(self, slot: Slot[KeyValueSlots]) -> PromptReading:
        seed = secrets.randbits(63) if self._options.seed is None else self._options.seed
        return PromptReading(
            self._model.spoken_lm,
            slot.cache,
            slot.index,
            self._prompt,
            self._params,
            self._sets,
            SeededDraws(seed, self._model.vq_dim),
            slot.piece,
        )

    def _take(self, result: StepResult) -> int | None:
        """Note what a step brought; returns the index of the word it completed."""
        completed = None
        if result.has_taste and self._coded < len(self._words):
            completed, self._coded = self._coded, self._coded + 1
            self._words[completed].codes = result.sampled.taste_ids
        if result.is_text:
            if result.word_id == len(self._words):
                self._words.append(_Word())
            self._words[result.word_id].ids.append(result.sampled.text_id)
        return completed

    def _wants(self, completed: int, result: StepResult) -> bool:
        callback = self._options.should_emit_segment
        if callback is None:
            return True
        word = self._words[completed]
        status = EmitStatus(
            pending_words=completed + 1 - self._emitted,
            emitted_words=self._emitted,
            word=self._processor.text_tokenizer.decode(word.ids),
        )
        return bool(callback(word.ids[-1], result.sampled.action.name.lower(), status))

    def _new_words(self, up_to: int) -> list[tuple[list[int], tuple[int, ...] | None]]:
        words = self._words[self._emitted : up_to]
        self._emitted = up_to
        return [(word.ids, word.codes) for word in words]

    def _reason(self, reason: EndReason | None) -> CompletionReason:
        if reason == EndReason.STOP_ID:
            # words of an open segment count: a stop id after them ends an answer, it does not decline one
            return "segment_end" if self._words or self._goes_on else "no_speech"
        return "finished" if reason == EndReason.SENTENCE_END else "max_length"


def _sampling_params(model: TasteForCausalLM, processor: TasteProcessor, options: GenerateOptions) -> SamplingParams:
    tokens = processor.text_tokenizer.conversation_tokens()
    stop_id = options.eos_id
    if stop_id is not None:
        check_range("eos_id", [check_integer("eos_id", stop_id)], model.spoken_lm.vocab_size)
    elif tokens is not None:
        stop_id = tokens.segment_end
    if check_integer("extra_words", options.extra_words) < 1:
        raise InvalidInputError("extra_words", f"{options.extra_words} is less than 1")
    check_integer("max_length", options.max_length)
    if options.seed is not None:
        check_integer("seed", options.seed)
    if options.should_emit_segment is not None and not callable(options.should_emit_segment):
        raise InvalidTypeError("should_emit_segment", f"is a {type_name(options.should_emit_segment)}, not a function")
    return SamplingParams(
        text_top_p=options.text_top_p,
        taste_top_p=options.taste_top_p,
        text_temperature=options.text_temperature,
        repetition_penalty=options.repetition_penalty,
        extra_words=options.extra_words,
        stop_id=stop_id,
        max_length=options.max_length,
        stop_completes_word=True,
    )
