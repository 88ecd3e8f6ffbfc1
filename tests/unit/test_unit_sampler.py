"""Drawing speech units."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from taste_grpc.model.speech_decoder.unit_sampler import UnitChoice, UnitSampler, candidates, choose_units, draw

PROBABILITIES = np.array([0.5, 0.3, 0.2])
IDS = np.array([7, 3, 9])


def test_a_rejected_id_costs_one_number_each_time() -> None:
    uniforms = iter([0.1, 0.4, 0.6, 0.9])
    assert draw(PROBABILITIES, IDS, uniforms, rejected=7) == 3
    assert next(uniforms) == 0.9


def test_used_up_numbers_end_in_a_draw_among_the_others() -> None:
    assert draw(PROBABILITIES, IDS, [0.1], rejected=7) == 3
    assert draw(PROBABILITIES, IDS, [0.499, 0.45], rejected=7) == 3


def test_the_best_other_id_stands_in_when_nothing_else_has_probability() -> None:
    assert draw(np.array([1.0, 0.0, 0.0]), IDS, iter(lambda: 0.5, None), rejected=7) == 3


def test_probabilities_are_the_best_ones_and_not_renormalised() -> None:
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    probabilities, ids = candidates(logits, 25)
    assert probabilities.shape == ids.shape == (2, 25)
    assert (probabilities.diff(dim=1) <= 0).all()
    assert (probabilities.sum(1) < 1).all()
    torch.testing.assert_close(probabilities, logits.exp().gather(1, ids))
    assert candidates(logits[:, :10], 25)[0].shape == (2, 10)


def test_a_choice_depends_on_seed_and_index_only() -> None:
    log_probs = torch.zeros(3, 30).log_softmax(-1)
    alone = [choose_units(log_probs[:1], [UnitChoice(UnitSampler(seed=5), index)])[0] for index in (4, 5, 6)]
    together = choose_units(log_probs, [UnitChoice(UnitSampler(seed=5), index) for index in (4, 5, 6)])
    assert alone == together
    assert together != choose_units(log_probs, [UnitChoice(UnitSampler(seed=6), index) for index in (4, 5, 6)])


def test_draws_follow_the_distribution_without_the_rejected_id() -> None:
    log_probs = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(3000, 3)
    units = Counter(choose_units(log_probs, [UnitChoice(UnitSampler(), index, rejected=0) for index in range(3000)]))
    assert units[0] == 0
    assert abs(units[1] / 3000 - 0.75) < 0.03


def test_only_the_best_top_k_are_drawn() -> None:
    log_probs = torch.linspace(0, 0.1, 60).log_softmax(-1).expand(400, 60)
    units = choose_units(log_probs, [UnitChoice(UnitSampler(top_k=3), index) for index in range(400)])
    assert set(units) == {57, 58, 59}


def test_greedy_takes_the_best_that_is_allowed() -> None:
    log_probs = torch.tensor([[0.2, 0.5, 0.3]]).log()
    sampler = UnitSampler(greedy=True)
    assert choose_units(log_probs, [UnitChoice(sampler, 0)]) == [1]
    assert choose_units(log_probs, [UnitChoice(sampler, 0, rejected=1)]) == [2]
    assert choose_units(log_probs, [UnitChoice(UnitSampler(top_k=1), 0, rejected=1)]) == [2]
