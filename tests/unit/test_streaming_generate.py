"""Answers, word by word: how they end, what repeats, what a callback can do."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from taste_grpc.errors import CallAbortedError
from taste_grpc.streaming import (
    EmitStatus,
    StreamingResult,
)
from tests.answers import answer, codes_of, greedy, ids_of, threads
from tests.conftest import Loaded


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if threads():  # an iterator that is gone, but not collected yet
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


def ended_by(loaded: Loaded, reason: str, **options: Any) -> list[StreamingResult]:
    """The first answer, seed by seed, that ends for `reason`."""
    for seed in range(40):
        results = list(answer(loaded, seed=seed, **options))
        if results[-1].completion_reason == reason:
            return results
    raise AssertionError(f"no answer ends with {reason}")


def test_finished_after_a_sentence(chat: Loaded) -> None:
    results = ended_by(chat, "finished", extra_words=4)
    well_formed(results, chat)
    words = [row for row in codes_of(results) if row[0] >= 0]
    assert 4 <= len(words) < 12
    assert "." in chat.processor.text_tokenizer.decode(ids_of(results)[-1:])


def test_max_length_after_three_times_extra_words(chat: Loaded) -> None:
    results = ended_by(chat, "max_length", extra_words=4, max_length=200)
    well_formed(results, chat)
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
