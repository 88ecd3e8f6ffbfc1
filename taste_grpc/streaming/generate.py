"""Answering a conversation word by word."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from taste_grpc.errors import CallAbortedError, InvalidInputError, InvalidTypeError, type_name
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.arguments import check_integer
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.spoken_lm.generation import Generation, StepResult, decode_step, start_generations
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.sampler import EndReason, SamplingParams, SeededDraws
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming.conversation import (
    ConversationFormat,
    build_completion_prompt,
    build_conditional_prompt,
    conversation_formats,
)
from taste_grpc.streaming.model_lock import model_lock
from taste_grpc.streaming.segments import CompletionReason, StreamingResult, TASTESegment, check_range

_RESULTS_AHEAD = 64  # results the generating thread may run ahead of its reader


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


@dataclass
class _Word:
    ids: list[int] = field(default_factory=list)
    codes: tuple[int, ...] | None = None


class GenerationStream:
    """One generation, driven step by step.

    Its cost per step does not depend on how much was generated. It owns its state; `close` (or garbage
    collection) frees it. Not to be used from two threads at once.
    """

    def __init__(
        self,
        model: TasteForCausalLM,
        processor: TasteProcessor,
        input_segments: Sequence[TASTESegment],
        options: GenerateOptions,
    ) -> None:
        self._model = model
        self._processor = processor
        self._options = options
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
        self._emitted = 0
        self._cache: KeyValueSlots | None = None
        self._generation: Generation | None = None
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
        return int(self._prompt.rows.shape[0])

    @property
    def done(self) -> bool:
        """Whether the last result was returned."""
        return self._generation is not None and self._generation.done

    def start(self, abort: AbortCheck = never_abort) -> None:
        """Read the prompt."""
        lm = self._model.spoken_lm
        with model_lock(self._model), torch.inference_mode():
            self._cache = lm.new_cache(slots=1, capacity=self.prompt_rows + self._new_rows)
            seed = secrets.randbits(63) if self._options.seed is None else self._options.seed
            (self._generation,) = start_generations(
                lm,
                self._cache,
                [0],
                [self._prompt],
                [self._params],
                [SeededDraws(seed, self._model.vq_dim)],
                self._sets,
                abort,
            )

    def step(self, abort: AbortCheck = never_abort) -> StreamingResult | None:
        """Generate one id; returns a result when there is something to emit."""
        if self._generation is None or self._cache is None or self._generation.done:
            raise RuntimeError("step() goes between start() and the last result")
        with model_lock(self._model), torch.inference_mode():
            (result,) = decode_step(
                self._model.spoken_lm, self._model.audio_tower.rvq, self._cache, [self._generation], abort
            )
        self.steps += 1
        completed, generation = self._take(result), self._generation
        if generation.done:
            self._cache = None
            return StreamingResult(True, self._reason(), self._segment(len(self._words)))
        if completed is not None and self._wants(completed, result):
            return StreamingResult(False, "continuing", self._segment(completed + 1))
        return None

    def close(self) -> None:
        """Free what the generation holds."""
        self._cache = None
        self._generation = None

    def _take(self, result: StepResult) -> int | None:
        """Note what a step brought; returns the index of the word it completed."""
        completed = None
        if result.has_taste:
            completed = next((i for i, word in enumerate(self._words) if word.codes is None), None)
            if completed is not None:
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

    def _segment(self, up_to: int) -> TASTESegment | None:
        words = self._words[self._emitted : up_to]
        self._emitted = up_to
        if not words:
            return None
        empty = (-1,) * self._model.vq_dim
        ids = [text_id for word in words for text_id in word.ids]
        codes = [row for word in words for row in [word.codes or empty, *([empty] * (len(word.ids) - 1))]]
        return TASTESegment("assistant", "audio", torch.tensor([ids]), torch.tensor([codes]))

    def _reason(self) -> CompletionReason:
        reason = self._generation.sampler.end_reason if self._generation else None
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


class _GeneratingThread:
    """Runs a GenerationStream on a thread of its own and hands its results over."""

    def __init__(self, stream: GenerationStream) -> None:
        self._stream = stream
        self._results: queue.Queue[StreamingResult | BaseException] = queue.Queue(_RESULTS_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taste-generate", daemon=True)
        self._thread.start()

    def _abort(self) -> None:
        if self._closed.is_set():
            raise CallAbortedError("the generation was closed")

    def _run(self) -> None:
        try:
            self._stream.start(self._abort)
            while not self._stream.done:
                self._abort()
                result = self._stream.step(self._abort)
                if result is not None:
                    self._results.put(result)
        except BaseException as error:  # raised again where the results are read
            if not (self._closed.is_set() and isinstance(error, CallAbortedError)):
                self._results.put(error)
        finally:
            self._stream.close()

    def results(self) -> Iterator[StreamingResult]:
        """The results, until the complete one."""
        while True:
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
            if result.is_complete:
                return

    def close(self) -> None:
        """Stop within one step and wait for the thread."""
        self._closed.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):  # a thread that waits for room goes on and sees that it is closed
                self._results.get_nowait()
            self._thread.join(timeout=0.01)


def streaming_generate(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    input_segments: Sequence[TASTESegment],
    text_top_p: float = 0.3,
    taste_top_p: float = 0.0,
    text_temperature: float = 0.5,
    repetition_penalty: float = 1.1,
    max_length: int = 512,
    eos_id: int | None = None,
    should_emit_segment: ShouldEmitSegment | None = None,
    extra_words: int = 32,
    *,
    seed: int | None = None,
    conversation_format: ConversationFormat | None = None,
) -> Iterator[StreamingResult]:
    """Answer a conversation, word by word.

    Generation runs on a background thread while the caller iterates; closing the iterator, on the thread
    that iterates, stops it within one step, and an exception there is raised here. A segment holds whole words
    and leaves once the codes of its last word are known, one word later than its text.

    Args:
        model: where the answer comes from.
        processor: of the same checkpoint.
        input_segments: the conversation so far; a last one of the assistant is gone on with.
        text_top_p: share of probability the next id is drawn from; 0 is greedy.
        taste_top_p: the same for codes (the published model's codes are certain, so it changes nothing).
        text_temperature: above 0; no effect when greedy.
        repetition_penalty: above 0; 1 is none; no effect when greedy.
        max_length: most new text ids.
        eos_id: id that ends the answer; the segment-end marker when None and the tokenizer has one.
        should_emit_segment: decides at each completed word; None emits every word. The complete result is
            emitted whatever it says.
        extra_words: a sentence that ends at or after so many words ends the answer; three times as many
            words end it anywhere.
        seed: makes the draws repeatable; None takes a new one.
        conversation_format: `conversation` (default) or `completion`, the published modes for checkpoints
            without conversation markers.

    Raises:
        InvalidInputError, InvalidTypeError: naming the argument, before anything runs.
        UnsupportedByModelError: the tokenizer lacks the conversation markers.
    """
    stream = GenerationStream(
        model,
        processor,
        input_segments,
        GenerateOptions(
            text_top_p=text_top_p,
            taste_top_p=taste_top_p,
            text_temperature=text_temperature,
            repetition_penalty=repetition_penalty,
            max_length=max_length,
            eos_id=eos_id,
            should_emit_segment=should_emit_segment,
            extra_words=extra_words,
            seed=seed,
            conversation_format=conversation_format,
        ),
    )
    return _iterate(stream)


def _iterate(stream: GenerationStream) -> Iterator[StreamingResult]:
    thread = _GeneratingThread(stream)
    try:
        yield from thread.results()
    finally:
        thread.close()
