"""Answers, word by word: how they end, how they stop, what a callback can do."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from taste_grpc.errors import CallAbortedError, InvalidInputError, InvalidTypeError
from taste_grpc.streaming import (
    EmitStatus,
    StreamingResult,
    TASTESegment,
    generate,
    streaming_generate,
    taste_detokenize,
)
from taste_grpc.streaming.model_lock import TurnLock, model_lock
from tests.conftest import Loaded

QUESTION = TASTESegment("user", "text", torch.tensor([[377, 487, 315, 13]]))


def answer(loaded: Loaded, segments: list[TASTESegment] | None = None, **options: Any) -> Iterator[StreamingResult]:
    options = {"seed": 0, "max_length": 60} | options
    return streaming_generate(loaded.model, loaded.processor, [QUESTION] if segments is None else segments, **options)


def greedy(loaded: Loaded, segments: list[TASTESegment] | None = None, **options: Any) -> list[StreamingResult]:
    return list(answer(loaded, segments, **{"text_top_p": 0.0, "extra_words": 60} | options))


def ids_of(results: list[StreamingResult]) -> list[int]:
    return [text_id for result in results if result.segment for text_id in result.segment.text_ids[0].tolist()]


def codes_of(results: list[StreamingResult]) -> list[list[int]]:
    segments = [result.segment for result in results if result.segment is not None]
    return [row for segment in segments if segment.taste_ids is not None for row in segment.taste_ids[0].tolist()]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "taste-generate"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


# --- ends


def well_formed(results: list[StreamingResult], loaded: Loaded) -> None:
    """Whole words with codes at their first ids; complete once, at the end."""
    assert [result.is_complete for result in results] == [False] * (len(results) - 1) + [True]
    assert {result.completion_reason for result in results[:-1]} <= {"continuing"}
    for result in results:
        segment = result.segment
        if segment is None:
            assert result.is_complete
            continue
        assert (segment.role, segment.modality) == ("assistant", "audio")
        assert segment.taste_ids is not None
        assert segment.taste_ids.shape == (1, segment.length, loaded.model.vq_dim)
        coded = segment.taste_ids[0, :, 0] >= 0
        assert coded[0]
        starts = loaded.processor.text_tokenizer.sets(loaded.model.spoken_lm.vocab_size).word_start
        assert torch.equal(coded[1:], starts[segment.text_ids[0, 1:]])


def test_finished_after_a_sentence(chat: Loaded) -> None:
    results = list(answer(chat, extra_words=4, seed=0))
    well_formed(results, chat)
    assert results[-1].completion_reason == "finished"
    words = [row for row in codes_of(results) if row[0] >= 0]
    assert 4 <= len(words) < 12
    assert "." in chat.processor.text_tokenizer.decode(ids_of(results)[-1:])


def test_max_length_after_three_times_extra_words(chat: Loaded) -> None:
    results = list(answer(chat, extra_words=4, seed=1, max_length=200))
    well_formed(results, chat)
    assert results[-1].completion_reason == "max_length"
    assert len([row for row in codes_of(results) if row[0] >= 0]) == 13


@pytest.mark.parametrize("max_length", [1, 2, 9])
def test_max_length_in_ids(chat: Loaded, max_length: int) -> None:
    results = list(answer(chat, max_length=max_length))
    well_formed(results, chat)
    assert results[-1].completion_reason == "max_length"
    assert len(ids_of(results)) == max_length


def test_segment_end_when_the_stop_id_comes_after_words(chat: Loaded) -> None:
    ids = ids_of(greedy(chat))
    stop_id = next(text_id for k, text_id in enumerate(ids) if k > 4 and text_id not in ids[:5])
    results = greedy(chat, eos_id=stop_id)
    well_formed(results, chat)
    assert results[-1].completion_reason == "segment_end"
    assert ids_of(results) == ids[: ids.index(stop_id)]


def test_no_speech_when_the_stop_id_comes_first(chat: Loaded) -> None:
    results = greedy(chat, eos_id=ids_of(greedy(chat))[0])
    assert results == [StreamingResult(True, "no_speech", None)]


@pytest.mark.parametrize("eos_id", [None, 513])
def test_the_segment_end_marker_is_the_stop_id(
    chat: Loaded, eos_id: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = chat.model.spoken_lm
    real = type(lm).text_logits
    steps = []

    def prefer_the_end(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        logits = real(self, hidden)
        steps.append(1)
        logits[..., 513] = 1e3 if len(steps) == 6 else -1e3
        return logits

    monkeypatch.setattr(type(lm), "text_logits", prefer_the_end)
    results = greedy(chat, eos_id=eos_id)
    well_formed(results, chat)
    assert results[-1].completion_reason == "segment_end"
    assert len(ids_of(results)) == 5
    assert 513 not in ids_of(results)


def test_the_end_of_text_can_be_the_stop_id_though_it_is_banned(chat: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = chat.model.spoken_lm
    real = type(lm).text_logits

    def prefer(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        logits = real(self, hidden)
        logits[..., 497] = 1e3
        return logits

    assert chat.processor.text_tokenizer.sets(lm.vocab_size).banned[497]
    monkeypatch.setattr(type(lm), "text_logits", prefer)
    assert [result.completion_reason for result in greedy(chat, eos_id=497)] == ["no_speech"]
    assert 497 not in ids_of(greedy(chat, max_length=8))


def test_completion_without_conversation_markers(tiny: Loaded) -> None:
    results = list(answer(tiny, conversation_format="completion", extra_words=3))
    well_formed(results, tiny)
    assert results[-1].is_complete


# --- repeatable


def test_a_seed_repeats_and_no_seed_does_not(chat: Loaded) -> None:
    def run(seed: int | None) -> list[StreamingResult]:
        return list(answer(chat, seed=seed, text_top_p=0.9, text_temperature=1.0))

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert ids_of(run(None)) != ids_of(run(None))


# --- emitting


def test_a_word_at_a_time(chat: Loaded) -> None:
    results = greedy(chat, max_length=30)
    well_formed(results, chat)
    assert all([row[0] >= 0 for row in codes_of([result])].count(True) == 1 for result in results[:-1])


def test_the_callback_is_asked_at_each_completed_word(chat: Loaded) -> None:
    asked: list[tuple[int, str, EmitStatus]] = []

    def every_third(text_id: int, action: str, status: EmitStatus) -> bool:
        asked.append((text_id, action, status))
        return status.pending_words == 3

    plain = greedy(chat)
    results = greedy(chat, should_emit_segment=every_third)
    well_formed(results, chat)
    assert ids_of(results) == ids_of(plain)
    assert codes_of(results) == codes_of(plain)
    counts = [sum(row[0] >= 0 for row in codes_of([result])) for result in results]
    assert counts[:-1] == [3] * (len(counts) - 1)
    words = [ids_of([result]) for result in plain]
    assert len(asked) == len(words) - 1  # the last one is emitted without asking
    decode = chat.processor.text_tokenizer.decode
    for k, (text_id, action, status) in enumerate(asked):
        assert text_id == words[k][-1]
        assert action == "continue_at_word_start"
        assert status == EmitStatus(pending_words=k % 3 + 1, emitted_words=k - k % 3, word=decode(words[k]))


def test_completion_is_emitted_whatever_the_callback_says(chat: Loaded) -> None:
    (result,) = greedy(chat, should_emit_segment=lambda *_: False)
    assert result.is_complete
    assert ids_of([result]) == ids_of(greedy(chat))


@pytest.mark.parametrize("error", [RuntimeError("my mistake"), CallAbortedError("my own"), KeyboardInterrupt()])
def test_an_exception_in_the_callback_is_raised_here(chat: Loaded, error: BaseException) -> None:
    def fail(*_: object) -> bool:
        raise error

    results = answer(chat, should_emit_segment=fail)
    with pytest.raises(type(error)) as raised:
        next(results)
    assert raised.value is error
    with pytest.raises(StopIteration):
        next(results)
    assert threads() == []


# --- stopping and going on


class Steps:
    """Counts decode steps and makes them slow enough to be caught."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.005) -> None:
        self.count = 0
        real = generate.decode_step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            time.sleep(seconds)
            return real(*args, **kwargs)

        monkeypatch.setattr(generate, "decode_step", counted)


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_an_iterator_that_is_closed_stops_within_a_step(
    chat: Loaded, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    steps = Steps(monkeypatch)
    results: Any = answer(chat, extra_words=150, max_length=400)
    next(results)
    assert len(threads()) == 1
    before = steps.count
    if how == "close":
        results.close()
    elif how == "raise":
        with pytest.raises(RuntimeError, match="from outside"):
            results.throw(RuntimeError("from outside"))
    else:
        del results
        gc.collect()
    after = steps.count
    assert threads() == []
    assert after - before <= 2
    time.sleep(0.05)
    assert steps.count == after


def test_a_reader_that_never_reads_holds_up_the_thread_not_the_close(
    chat: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_RESULTS_AHEAD", 2)
    steps = Steps(monkeypatch, 0.0)
    results: Any = answer(chat, extra_words=150, max_length=400)
    next(results)
    deadline = time.monotonic() + 20
    seen = -1
    while steps.count != seen and time.monotonic() < deadline:
        seen = steps.count
        time.sleep(0.2)
    assert steps.count == seen < 100  # it waits for its reader
    results.close()
    assert threads() == []


def test_nothing_runs_before_the_first_result_is_asked_for(chat: Loaded) -> None:
    results: Any = answer(chat)
    assert threads() == []
    results.close()


@pytest.mark.parametrize("words", [1, 2, 5, 9])
def test_an_interrupted_answer_is_gone_on_with(chat: Loaded, words: int) -> None:
    whole = greedy(chat, max_length=50)
    results: Any = answer(chat, text_top_p=0.0, extra_words=60, max_length=50)
    said = [next(results) for _ in range(words)]
    results.close()
    fragments = [result.segment for result in said if result.segment is not None]
    rest = greedy(chat, [QUESTION, *fragments], max_length=50 - len(ids_of(said)))
    assert ids_of(said) + ids_of(rest) == ids_of(whole)
    assert codes_of(said) + codes_of(rest) == codes_of(whole)


def test_a_stop_after_the_words_of_an_open_answer_ends_it(chat: Loaded) -> None:
    whole = greedy(chat, max_length=20)
    said = [result.segment for result in whole[:3] if result.segment is not None]
    following = ids_of(whole[3:])[0]
    results = greedy(chat, [QUESTION, *said], eos_id=following)
    assert results == [StreamingResult(True, "segment_end", None)]


def test_answers_side_by_side_do_not_disturb_each_other(chat: Loaded) -> None:
    alone = [list(answer(chat, seed=seed, max_length=25)) for seed in range(3)]
    iterators = [answer(chat, seed=seed, max_length=25) for seed in range(3)]
    together: list[list[StreamingResult]] = [[] for _ in iterators]
    while iterators:
        for iterator, results in [*zip(iterators, together, strict=False)]:
            result = next(iterator, None)
            if result is not None:
                results.append(result)
        if all(results and results[-1].is_complete for results in together):
            break
    assert together == alone
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]


def test_speaking_between_the_words_does_not_deadlock(chat: Loaded) -> None:
    speaker = torch.randn(1, 192, generator=torch.Generator().manual_seed(0))
    plain = list(answer(chat, seed=3, max_length=12))
    results = []
    for result in answer(chat, seed=3, max_length=12):
        results.append(result)
        if result.segment is not None and len(results) <= 3:
            chunk = taste_detokenize(
                chat.model,
                chat.processor,
                speaker,
                None,
                None,
                None,
                0,
                result.segment.text_ids,
                result.segment.taste_ids,
            )
            assert chunk["audio_waveform"].shape[1] > 0
    assert results == plain


def test_the_lock_gives_everybody_a_turn() -> None:
    lock, stop, turns = TurnLock(), threading.Event(), []

    def hog() -> None:
        while not stop.is_set():
            with lock:
                turns.append(1)
                time.sleep(0.002)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        waited = []
        for _ in range(20):
            time.sleep(0.003)
            before = len(turns)
            with lock, lock:  # whoever has it may take it again
                waited.append(len(turns) - before)
    finally:
        stop.set()
        thread.join()
    assert max(waited) <= 3


def test_a_model_has_one_lock() -> None:
    first, second = torch.nn.Identity(), torch.nn.Identity()
    assert model_lock(first) is model_lock(first)
    assert model_lock(first) is not model_lock(second)


def test_a_finished_answer_holds_no_cache(chat: Loaded) -> None:
    stream = generate.GenerationStream(chat.model, chat.processor, [QUESTION], generate.GenerateOptions(max_length=3))
    stream.start()
    while not stream.done:
        stream.step()
    assert stream._cache is None
    with pytest.raises(RuntimeError, match="between start"):
        stream.step()


# --- arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"text_top_p": 1.5}, InvalidInputError),
        ({"text_top_p": "greedy"}, InvalidTypeError),
        ({"taste_top_p": -0.5}, InvalidInputError),
        ({"text_temperature": 0}, InvalidInputError),
        ({"repetition_penalty": 0.0}, InvalidInputError),
        ({"max_length": 0}, InvalidInputError),
        ({"max_length": None}, InvalidTypeError),
        ({"max_length": 200_000}, InvalidInputError),
        ({"extra_words": 0}, InvalidInputError),
        ({"extra_words": 2.5}, InvalidTypeError),
        ({"eos_id": 517}, InvalidInputError),
        ({"eos_id": -1}, InvalidInputError),
        ({"eos_id": "<|eot_id|>"}, InvalidTypeError),
        ({"seed": "x"}, InvalidTypeError),
        ({"should_emit_segment": 5}, InvalidTypeError),
        ({"conversation_format": "chatml"}, InvalidInputError),
    ],
)
def test_arguments_are_checked_before_anything_runs(chat: Loaded, options: dict[str, Any], error: type) -> None:
    (name,) = options
    with pytest.raises(error, match=rf"^{name}: ") as raised:
        answer(chat, **options)
    assert isinstance(raised.value, (ValueError, TypeError))
    assert threads() == []
