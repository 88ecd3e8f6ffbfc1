"""The sampler: what may be drawn, and the state machine of words, codes and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.errors import InvalidInputError, InvalidTypeError
from taste_grpc.model.spoken_lm.candidates import Candidates, find_candidates
from taste_grpc.model.spoken_lm.sampler import (
    BANNED_LOGIT,
    Action,
    EndReason,
    Sampler,
    SamplerStep,
    SamplingParams,
    SeededDraws,
    TasteAction,
    ban,
    draw_texts,
)
from taste_grpc.model.text.tokens import TokenSets

# ids: 0..3 begin words, 4..6 go on with one, 6 has a full stop, 7 is banned, 8 stops (goes on with a word), 9 stops
# and begins a word
START, GO_ON, DOT, BANNED, STOP, STOP_AT_START = 1, 4, 6, 7, 8, 9
SETS = TokenSets.from_ids(10, [0, 1, 2, 3, STOP_AT_START], [BANNED, STOP], [DOT])
CODEBOOKS, CODES = 4, 6
TASTE = torch.eye(CODES)[:CODEBOOKS] * 1000  # codes 0, 1, 2, 3


class Fixed:
    """Draws that always give the same number."""

    def __init__(self, u: float = 0.5) -> None:
        self.u = u

    def text(self, step: int) -> float:
        return self.u

    def taste(self, step: int, codebook: int) -> float:
        return self.u


def sampler(delay: int = 1, has_prefix: bool = False, history: Sequence[int] = (), **params: Any) -> Sampler:
    params = {"text_top_p": 0.0} | params
    return Sampler(SamplingParams(**params), SETS, delay=delay, has_prefix=has_prefix, history=history, draws=Fixed())


def wanting(text_id: int) -> Tensor:
    """Logits by which a greedy sampler takes `text_id`."""
    logits = torch.zeros(SETS.vocab_size)
    logits[text_id] = 5.0
    return logits


def feed(own: Sampler, ids: Sequence[int]) -> list[SamplerStep]:
    steps = []
    for text_id in ids:
        steps.append(own.step(wanting(text_id), TASTE))
        if steps[-1].action == Action.TERMINATE:
            break
    return steps


def codes_of(steps: Sequence[SamplerStep]) -> int:
    return sum(step.taste_ids[0] != -1 for step in steps)


# --- what may be drawn


def full_sort(logits: Tensor, top_p: float) -> set[int]:
    values, ids = logits.sort(descending=True)
    kept = values.softmax(-1).cumsum(-1) <= top_p
    kept[0] = True
    return set(ids[kept].tolist())


def kept(logits: Tensor, top_p: float) -> tuple[list[int], list[float]]:
    """Ids and logits top-p keeps of one row."""
    ids, values = find_candidates(logits[None], [top_p])[0][0].kept(top_p)
    return ids.tolist(), values.tolist()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9000), st.floats(0.01, 0.999), st.floats(0.1, 3.0))
def test_top_p_is_what_sorting_everything_gives(seed: int, size: int, top_p: float, spread: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    ids, values = kept(logits, top_p)
    expected = full_sort(logits, top_p)
    assert set(ids) == expected
    assert values == logits[ids].tolist()
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("size", [1000, 20_000])
def test_top_p_widens_its_search(size: int) -> None:
    logits = torch.zeros(size)  # nothing stands out: most ids are needed
    logits += torch.linspace(0, 1e-3, size)
    ids, _ = kept(logits, 0.9)
    assert abs(len(ids) - 0.9 * size) < 0.01 * size
    assert set(ids) == set(range(size - len(ids), size))


def test_the_id_that_crosses_the_threshold_is_dropped_and_the_best_stays() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(logits, 0.75)[0] == [0, 1]
    assert kept(logits, 0.1)[0] == [0]
    assert len(kept(logits, 1.0)[0]) >= 3


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([3, 64, 130, 4097, 9000]), st.integers(2, 300))
def test_rows_of_a_batch_have_the_candidates_of_each_alone(seed: int, rows: int, size: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (rows, size), generator=generator).float() * 0.05  # many equal scores
    top_ps = [(0.0, 0.3, 0.95, 1.0)[row % 4] for row in range(rows)]
    codes = torch.randint(0, 512, (rows, 4), generator=generator).int()
    together, beside = find_candidates(logits, top_ps, codes)
    assert beside is not None
    assert beside.tolist() == codes.tolist()
    for row, (own, top_p) in enumerate(zip(together, top_ps, strict=True)):
        alone = find_candidates(logits[row : row + 1], [top_p])[0][0]
        assert own.ids.tolist() == alone.ids.tolist()
        assert own.logits.tolist() == logits[row, own.ids].tolist()
        assert own.cumulative.tolist() == alone.cumulative.tolist()
        assert own.ids[0] == logits[row].argmax()
        best = sorted(range(size), key=lambda k, row=row: (-float(logits[row, k]), k))
        count = len(own.kept(top_p)[0])
        assert own.kept(top_p)[0].tolist() == best[:count]


def test_a_batch_draws_what_each_call_draws_alone() -> None:
    settings_of = [
        {"text_top_p": 0.0},
        {"text_top_p": 0.9, "repetition_penalty": 3.0, "history": [START, 2]},
        {"text_top_p": 0.5, "text_temperature": 2.0, "stop_id": STOP},
        {"text_top_p": 1.0, "stop_id": STOP_AT_START},
    ]
    logits = torch.randn(len(settings_of), 10, generator=torch.Generator().manual_seed(3)) * 2
    for k in range(20):
        samplers = [sampler(**given) for given in settings_of]
        for own in samplers:
            own.draws = Fixed(k / 20)
        together, _ = draw_texts(samplers, logits + k * 0.1)
        assert together == [own.draw_text(row) for own, row in zip(samplers, logits + k * 0.1, strict=True)]


def test_calls_of_two_tokenizers_do_not_share_a_batch() -> None:
    other = sampler()
    other.sets = TokenSets.from_ids(10, [], [], [])
    with pytest.raises(ValueError, match="share their token sets"):
        draw_texts([sampler(), other], torch.zeros(2, 10))


def candidates_of(own: Sampler, logits: Tensor) -> Candidates:
    return find_candidates(ban(logits[None], [own]), [own.params.text_top_p])[0][0]


def test_banned_ids_are_never_drawn_but_the_own_stop_id_may_be() -> None:
    logits = wanting(STOP)
    logits[BANNED] = 9.0
    assert sampler().draw_text(logits) not in (BANNED, STOP)
    assert sampler(stop_id=STOP).draw_text(logits) == STOP
    # and only its own
    assert sampler(stop_id=START).draw_text(logits) not in (BANNED, STOP)
    banned = ban(logits[None], [sampler(stop_id=STOP)])[0]
    assert banned[BANNED] == BANNED_LOGIT
    assert banned[STOP] == 5.0


@pytest.mark.parametrize("top_p", [0.3, 1.0])
def test_banned_ids_have_no_probability(top_p: float) -> None:
    own = sampler(text_top_p=top_p, text_temperature=100.0)
    ids, probabilities = own.text_probabilities(candidates_of(own, torch.zeros(10)))
    assert probabilities[(ids == BANNED) | (ids == STOP)].sum() == 0
    assert probabilities.sum() == pytest.approx(1)


def test_ids_of_the_history_are_penalised_after_top_p() -> None:
    logits = torch.full((10,), -50.0)
    logits[[1, 2, 3, 5]] = torch.tensor([2.0, 1.5, -1.0, -1.5])
    own = sampler(text_top_p=0.99, repetition_penalty=2.0, text_temperature=0.5, history=[1, 3])
    ids, probabilities = own.text_probabilities(candidates_of(own, logits))
    assert ids.tolist() == [1, 2, 3]  # ascending, as they are drawn
    expected = (torch.tensor([2.0 / 2, 1.5, -1.0 * 2]) / 0.5).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(probabilities), expected)


@pytest.mark.parametrize("history", [[], [3], [0, 7, 9, 12, 400], list(range(500))])
def test_the_history_is_found_among_few_ids_and_among_many(history: list[int]) -> None:
    for ids in ([3, 5], list(range(0, 300, 3))):
        logits = torch.full((500,), -50.0)
        logits[ids] = torch.linspace(1.0, 1.1, len(ids))
        penalised = sampler(text_top_p=0.999, repetition_penalty=2.0, text_temperature=1.0, history=history)
        found = find_candidates(logits[None], [0.999])[0][0]
        got, probabilities = penalised.text_probabilities(found)
        values = torch.tensor([float(logits[k]) / (2.0 if k in history else 1.0) for k in got.tolist()])
        torch.testing.assert_close(torch.from_numpy(probabilities), values.softmax(-1))


def test_what_was_drawn_is_history_too() -> None:
    own = sampler(history=[])
    feed(own, [START, GO_ON, 2])
    assert own.history == {START, GO_ON, 2}


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-9])
def test_the_lowest_temperatures_take_the_likeliest(temperature: float) -> None:
    own = sampler(text_top_p=1.0, text_temperature=temperature)
    logits = torch.linspace(3, -3, SETS.vocab_size) * 1000
    ids, probabilities = own.text_probabilities(candidates_of(own, logits))
    assert np.isfinite(probabilities).all()
    likeliest = int(ids[probabilities.argmax()])
    assert own.draw_text(logits) == likeliest
    allowed = [text_id for text_id in range(SETS.vocab_size) if text_id not in (BANNED, STOP)]
    assert likeliest == allowed[0]
    assert own.draw_text(logits.flip(0)) == allowed[-1]


def test_greedy_knows_neither_penalty_nor_temperature() -> None:
    own = sampler(repetition_penalty=100.0, text_temperature=0.01, history=[START])
    assert own.draw_text(wanting(START)) == START


def test_seeds_repeat() -> None:
    def run(seed: int) -> list[int]:
        own = Sampler(
            SamplingParams(text_top_p=0.9, extra_words=50),
            SETS,
            delay=1,
            has_prefix=False,
            history=[],
            draws=SeededDraws(seed, CODEBOOKS),
        )
        logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(1))
        return [own.step(row, TASTE).text_id for row in logits]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_codes_are_drawn_from_each_codebook() -> None:
    own = sampler(taste_top_p=0.9)
    logits = torch.zeros(CODEBOOKS, CODES)
    logits[:, 3] = 0.1
    assert all(0 <= code < CODES for code in own.draw_taste(logits))
    torch.testing.assert_close(own.taste_probabilities(TASTE).argmax(-1), torch.arange(CODEBOOKS))
    assert sampler(taste_top_p=0.9).draw_taste(TASTE) == sampler().draw_taste(TASTE) == (0, 1, 2, 3)


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3, 0.999999, 1.0])
@pytest.mark.parametrize("u", [0.0, 1e-17, 0.5, 1 - 2**-53])
def test_scores_of_a_thousand_for_one_code_leave_no_choice(top_p: float, u: float) -> None:
    """Generation takes the nearest code without drawing: this is why it may."""
    own = sampler(taste_top_p=top_p)
    own.draws = Fixed(u)
    codes = torch.tensor([0, 511, 100, 7])
    assert own.draw_taste(torch.nn.functional.one_hot(codes, 512) * 1000.0) == tuple(codes.tolist())


# --- the state machine


def test_codes_come_one_word_late() -> None:
    steps = feed(sampler(), [START, GO_ON, 2, GO_ON, 3])
    assert [step.taste_ids[0] for step in steps] == [-1, -1, 0, -1, 0]
    assert [step.action for step in steps] == [
        Action.CONTINUE_AT_WORD_START,
        Action.CONTINUE_NOT_AT_WORD_START,
        Action.CONTINUE_AT_WORD_START,
        Action.CONTINUE_NOT_AT_WORD_START,
        Action.CONTINUE_AT_WORD_START,
    ]
    assert [step.taste_action for step in steps] == [TasteAction.WAIT] * 2 + [TasteAction.SAMPLE] * 3


def test_the_first_id_begins_a_word_whatever_it_is() -> None:
    assert feed(sampler(), [GO_ON])[0].action == Action.CONTINUE_AT_WORD_START


def test_speech_before_is_heard_until_own_codes_are_drawn() -> None:
    steps = feed(sampler(has_prefix=True), [START, GO_ON, 2])
    assert [step.taste_action for step in steps] == [
        TasteAction.USE_PREFIX,
        TasteAction.USE_PREFIX_IGNORE,
        TasteAction.SAMPLE,
    ]


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_after_a_sentence_every_word_gets_its_codes(delay: int) -> None:
    own = sampler(delay, extra_words=3)
    steps = feed(own, [0, 1, 2, DOT] + [GO_ON] * 9)
    text = [step for step in steps if step.action < Action.WAIT_FOR_TASTE]
    assert len(text) == 4
    assert own.end_reason == EndReason.SENTENCE_END
    assert len(steps) == 4 + delay
    assert codes_of(steps) == 3
    assert steps[-1].action == Action.TERMINATE
    assert [step.action for step in steps[4:-1]] == [Action.WAIT_FOR_TASTE] * (delay - 1)


def test_a_sentence_that_ends_too_early_goes_on() -> None:
    own = sampler(extra_words=3)
    feed(own, [0, DOT, 1])
    assert not own.ended


def test_three_times_extra_words_end_it_anywhere() -> None:
    own = sampler(extra_words=2)
    steps = feed(own, [0] * 20)
    assert own.end_reason == EndReason.MAX_WORDS
    # the count before the word is what counts, so one more gets in
    assert len([step for step in steps if step.action < Action.WAIT_FOR_TASTE]) == 7
    assert codes_of(steps) == 7


@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_max_length_bounds_the_text(max_length: int) -> None:
    own = sampler(max_length=max_length)
    steps = feed(own, [START, GO_ON, 2, GO_ON, GO_ON, GO_ON, GO_ON])
    text = [step for step in steps if step.action < Action.WAIT_FOR_TASTE]
    assert len(text) == max_length
    assert own.end_reason == EndReason.MAX_LENGTH
    assert codes_of(steps) == (2 if max_length > 2 else 1)


def test_a_stop_id_at_once() -> None:
    own = sampler(stop_id=STOP)
    (step,) = feed(own, [STOP])
    assert step.action == Action.TERMINATE
    assert own.end_reason == EndReason.STOP_ID
    assert step.taste_ids == (-1,) * CODEBOOKS


@pytest.mark.parametrize(
    ("stop_id", "completes", "codes"),
    [(STOP, False, 1), (STOP, True, 2), (STOP_AT_START, False, 2), (STOP_AT_START, True, 2)],
)
def test_a_stop_id_and_the_last_words_codes(stop_id: int, completes: bool, codes: int) -> None:
    # as published, a stop id that begins no word loses the codes of the word before it
    own = sampler(stop_id=stop_id, stop_completes_word=completes)
    steps = feed(own, [0, 1, GO_ON, stop_id, 0, 0])
    assert len(steps) == 4
    assert steps[-1].action == Action.TERMINATE
    assert codes_of(steps) == codes
    assert own.end_reason == EndReason.STOP_ID


@pytest.mark.parametrize("delay", [2, 3])
def test_stop_ids_while_codes_are_awaited_do_not_hold_up_the_end(delay: int) -> None:
    own = sampler(delay, stop_id=STOP, stop_completes_word=True)
    steps = feed(own, [0, 1, 2] + [STOP] * 20)
    assert steps[-1].action == Action.TERMINATE
    assert len(steps) == 3 + delay
    assert codes_of(steps) == 3


def test_a_stop_id_on_the_last_allowed_place_is_a_stop() -> None:
    own = sampler(stop_id=STOP, max_length=3, stop_completes_word=True)
    feed(own, [0, 1, STOP])
    assert own.end_reason == EndReason.STOP_ID


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 9), min_size=60, max_size=60),
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from([None, STOP, STOP_AT_START]),
    st.sampled_from([None, 1, 7, 20]),
)
def test_every_generation_ends_with_codes_for_every_word(
    ids: list[int], delay: int, extra_words: int, stop_id: int | None, max_length: int | None
) -> None:
    own = sampler(delay, extra_words=extra_words, stop_id=stop_id, max_length=max_length, stop_completes_word=True)
    steps = feed(own, ids + [START] * 40)
    assert steps[-1].action == Action.TERMINATE
    words = sum(step.action == Action.CONTINUE_AT_WORD_START for step in steps)
    assert codes_of(steps) == words <= 3 * extra_words + 1
    if max_length is not None:
        assert sum(step.action < Action.WAIT_FOR_TASTE for step in steps) <= max_length
    assert all(step.text_id not in (BANNED, None if stop_id == STOP else STOP) for step in steps)


# --- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_top_p", -0.1),
        ("text_top_p", 1.1),
        ("text_top_p", float("nan")),
        ("taste_top_p", 2.0),
        ("text_temperature", 0.0),
        ("text_temperature", float("inf")),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("nan")),
        ("extra_words", -1),
        ("max_length", 0),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{name}: ") as raised:
        SamplingParams(**{name: value})
    assert f"{value}" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_top_p", "0.3"),
        ("text_temperature", None),
        ("repetition_penalty", True),
        ("extra_words", 1.5),
        ("max_length", "many"),
        ("stop_id", 1.0),
    ],
)
def test_settings_of_the_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(InvalidTypeError, match=rf"^{name}: {value!r}"):
        SamplingParams(**{name: value})
