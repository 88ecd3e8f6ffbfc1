"""Answers that are stopped, gone on with, or given side by side; and arguments that are refused."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import taste_grpc.streaming.generate as generate_module
from taste_grpc.errors import InvalidInputError, InvalidTypeError
from taste_grpc.streaming import (
    Answer,
    GenerateOptions,
    StreamingResult,
    drive,
    taste_detokenize,
)
from taste_grpc.streaming.model_lock import TurnLock, model_lock
from taste_grpc.streaming.work import Emit, Slot, TextSlot, TextStep
from tests.answers import QUESTION, answer, codes_of, greedy, ids_of, threads
from tests.conftest import Loaded


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if threads():  # an iterator that is gone, but not collected yet
        gc.collect()
    assert threads() == []


# --- stopping and going on


class Steps:
    """Counts decode steps and makes them slow enough to be caught."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.005) -> None:
        self.count = 0
        real = drive.decode_step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            time.sleep(seconds)
            return real(*args, **kwargs)

        monkeypatch.setattr(drive, "decode_step", counted)


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
        with pytest.raises(RuntimeError, match="from outside"), results:
            raise RuntimeError("from outside")
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
    monkeypatch.setattr(generate_module, "_RESULTS_AHEAD", 2)
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


def test_whoever_waits_for_the_model_comes_before_who_takes_it_again() -> None:
    lock = TurnLock()
    for _ in range(10):
        order: list[str] = []

        def wait(order: list[str] = order) -> None:
            with lock:
                order.append("waiting")

        thread = threading.Thread(target=wait)
        with lock, lock:  # whoever has it may take it once more
            thread.start()
            time.sleep(0.01)
        with lock:
            order.append("again")
        thread.join()
        assert order == ["waiting", "again"]


def test_a_model_has_one_lock() -> None:
    first, second = torch.nn.Identity(), torch.nn.Identity()
    assert model_lock(first) is model_lock(first)
    assert model_lock(first) is not model_lock(second)


def test_a_finished_answer_has_given_its_slot_back(chat: Loaded) -> None:
    given_back: list[int] = []
    work = Answer(chat.model, chat.processor, [QUESTION], GenerateOptions(max_length=3)).work()
    want = next(work)
    assert isinstance(want, TextSlot)
    cache = chat.model.spoken_lm.new_cache(slots=1, capacity=want.positions)
    want = work.send(Slot(cache, 0, want.positions, lambda: given_back.append(1)))
    with torch.inference_mode():
        while not (isinstance(want, Emit) and want.value.is_complete):
            step = isinstance(want, TextStep)
            want = work.send(drive._answer(chat.model, want) if step else None)
    assert given_back == [1]
    with pytest.raises(StopIteration):
        next(work)


def test_an_iterator_may_be_closed_from_another_thread_while_it_is_read(chat: Loaded) -> None:
    results = answer(chat, extra_words=150, max_length=400)
    next(results)
    closer = threading.Thread(target=results.close)
    closer.start()
    rest = list(results)
    closer.join()
    assert len(rest) < 400
    assert not any(result.is_complete for result in rest)


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
