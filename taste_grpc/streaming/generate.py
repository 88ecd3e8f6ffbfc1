"""Answering a conversation on a thread in the background."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

from taste_grpc.errors import CallAbortedError
from taste_grpc.model.abort import AbortCheck
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.streaming.answer import Answer, GenerateOptions, ShouldEmitSegment
from taste_grpc.streaming.conversation import ConversationFormat
from taste_grpc.streaming.drive import emitted
from taste_grpc.streaming.segments import StreamingResult, TASTESegment

_RESULTS_AHEAD = 64  # results the generating thread may run ahead of its reader


class ResultIterator(Iterator[StreamingResult]):
    """The results of a generation that runs on a thread of its own, from `streaming_generate`.

    It begins when the first result is asked for. One thread at a time may iterate. `close`, leaving a `with` block, or
    dropping the last reference stops the generation within one step.
    """

    def __init__(self, results: Iterator[StreamingResult], closed: threading.Event) -> None:
        self._results: queue.Queue[StreamingResult | BaseException | None] = queue.Queue(_RESULTS_AHEAD)
        self._closed = closed
        self._ended = False
        self._thread = threading.Thread(
            target=_run, args=(results, self._results, closed), name="taste-generate", daemon=True
        )

    def __next__(self) -> StreamingResult:
        """The next result. Raises what the generation raised, once."""
        if self._ended or self._closed.is_set():
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        result = self._results.get()
        if isinstance(result, StreamingResult):
            return result
        self._ended = True
        if result is None:
            raise StopIteration
        raise result

    def close(self) -> None:
        """Stop the generation and wait for its thread; from any thread, as often as one likes."""
        self._closed.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):  # a thread that waits for room goes on and sees that it is closed
                self._results.get_nowait()
            self._thread.join(timeout=0.01)
        with suppress(queue.Full):  # wakes a reader on another thread
            self._results.put_nowait(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if threading.current_thread() is self._thread:  # the garbage collector runs wherever it likes
            self._closed.set()
        else:
            self.close()


def _results(model: TasteForCausalLM, answer: Answer, abort: AbortCheck) -> Iterator[StreamingResult]:
    with closing(emitted(model, answer.work(), abort)) as pieces:
        for new in pieces:
            yield new.result(model.vq_dim)


def _run(
    results: Iterator[StreamingResult],
    out: queue.Queue[StreamingResult | BaseException | None],
    closed: threading.Event,
) -> None:
    end: BaseException | None = None
    try:
        with closing(results):  # type: ignore[type-var]  # a generator
            for result in results:
                _put(out, result, closed)
    except BaseException as error:  # raised again where the results are read
        end = error
    if not (closed.is_set() and isinstance(end, CallAbortedError)):
        with suppress(CallAbortedError):
            _put(out, end, closed)


def _put(
    out: queue.Queue[StreamingResult | BaseException | None],
    item: StreamingResult | BaseException | None,
    closed: threading.Event,
) -> None:
    while True:
        if closed.is_set():
            raise CallAbortedError("the generation was closed")
        with suppress(queue.Full):
            out.put(item, timeout=0.1)
            return


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
) -> ResultIterator:
    """Answer a conversation, word by word.

    Generation runs on a background thread while the caller iterates; closing the iterator, from any thread, stops it
    within one step, and an exception there is raised here. A segment holds whole words
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
    options = GenerateOptions(
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
    )
    closed = threading.Event()

    def abort() -> None:
        if closed.is_set():
            raise CallAbortedError("the generation was closed")

    answer = Answer(model, processor, input_segments, options, abort)
    return ResultIterator(_results(model, answer, abort), closed)
