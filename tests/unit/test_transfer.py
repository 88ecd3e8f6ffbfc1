"""Codes move from the first token of a word to the first token of that word."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.model.audio_tower.transfer import transfer_codes, word_start_mapping

counts = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def ids_of(token_counts: list[int]) -> list[int]:
    return [word for word, count in enumerate(token_counts) for _ in range(count)]


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_word_by_word(rows: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    sources, targets = [ids_of(row[0]) for row in rows], [ids_of(row[1]) for row in rows]
    width_s, width_t = max(map(len, sources)), max(map(len, targets))

    def padded(ids: list[list[int]], width: int) -> torch.Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in ids]).reshape(len(ids), width)

    codes = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.lists(st.integers(0, 31), min_size=2, max_size=2), min_size=width_s, max_size=width_s),
                min_size=len(rows),
                max_size=len(rows),
            )
        ),
        dtype=torch.long,
    ).reshape(len(rows), width_s, 2)
    mapping = word_start_mapping(
        padded(sources, width_s),
        padded(targets, width_t),
        torch.tensor([len(row) for row in sources]),
        torch.tensor([len(row) for row in targets]),
    )
    moved = transfer_codes(codes, mapping)
    assert moved.shape == (len(rows), width_t, 2)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        for position in range(width_t):
            expected = [-1, -1]
            first = position < len(target) and target.index(target[position]) == position
            if first and target[position] in source:
                expected = codes[row, source.index(target[position])].tolist()
            assert moved[row, position].tolist() == expected
