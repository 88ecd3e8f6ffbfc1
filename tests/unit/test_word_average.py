"""Word averaging against the rule, written out position by position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.model.audio_tower.word_average import average_words


def average_one_by_one(features: Tensor, word_ids: Tensor, lengths: Tensor) -> Tensor:
    averaged = features.clone()
    for row in range(word_ids.shape[0]):
        ids = word_ids[row].tolist()
        start = 0
        while start < len(ids):
            end = start
            while end < len(ids) and ids[end] == ids[start]:
                end += 1
            if end - start > 1 and end <= int(lengths[row]):
                averaged[row, start:end] = features[row, start:end].mean(dim=0)
            start = end
    return averaged


word_sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(st.lists(word_sizes, min_size=1, max_size=3), st.integers(0, 2**31))
@settings(deadline=None)
def test_equal_to_the_rule_in_any_batch(rows: list[list[int]], seed: int) -> None:
    ids = [[word for word, size in enumerate(sizes) for _ in range(size)] for sizes in rows]
    width = max(map(len, ids))
    word_ids = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    lengths = torch.tensor([len(row) + 1 for row in ids], dtype=torch.int32)
    features = torch.randn(len(rows), width + 1, 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        average_words(features, word_ids, lengths), average_one_by_one(features, word_ids, lengths)
    )


def test_a_row_alone_shares_the_mean_within_each_word() -> None:
    features = torch.tensor([[[1.0], [3.0], [5.0], [7.0], [9.0], [100.0]]])
    averaged = average_words(features, torch.tensor([[0, 0, 1, 2, 2]]), torch.tensor([6]))
    assert averaged.flatten().tolist() == [2.0, 2.0, 5.0, 8.0, 8.0, 100.0]


@pytest.mark.parametrize(
    ("padding", "expected"),
    [(0, [2.0, 2.0]), (1, [3.0, 3.0]), (2, [1.0, 3.0])],
)
def test_a_single_word_runs_on_into_its_padding(padding: int, expected: list[float]) -> None:
    features = torch.tensor([[[1.0], [3.0], [5.0], [7.0], [9.0]]])[:, : 3 + padding]
    word_ids = torch.zeros(1, 2 + padding, dtype=torch.long)
    averaged = average_words(features, word_ids, torch.tensor([3]))
    assert averaged[0, :2, 0].tolist() == expected


def test_low_precision_features_lose_nothing_but_the_last_rounding() -> None:
    features = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    word_ids, lengths = torch.zeros(1, 7, dtype=torch.long), torch.tensor([8])
    expected = average_words(features.float(), word_ids, lengths).bfloat16()
    assert average_words(features, word_ids, lengths).equal(expected)


def test_no_tokens() -> None:
    features = torch.randn(1, 1, 4)
    assert average_words(features, torch.zeros(1, 0, dtype=torch.long), torch.tensor([1])).equal(features)
