"""Slots of the cache: what one call stores is what it sees, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.errors import CallAbortedError, InvalidInputError
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots, SlotPass
from taste_grpc.model.spoken_lm.network import SpokenLM
from tests.conftest import Loaded

TOLERANCE = 1e-4


def storage(slots: int = 3, capacity: int = 12) -> KeyValueSlots:
    return KeyValueSlots(
        layers=2,
        slots=slots,
        kv_heads=2,
        capacity=capacity,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def rows_for(lm: SpokenLM, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, lm.hidden_dim, generator=generator) * 0.05


@torch.inference_mode()
def alone(lm: SpokenLM, rows: Tensor) -> Tensor:
    """Hidden states `[T, D]` of one call that reads everything at once, without any cache of the project's."""
    mask = torch.full((len(rows), len(rows)), torch.finfo(torch.float32).min).triu(1)[None, None]
    hidden: Tensor = lm.llama.model(inputs_embeds=rows[None], attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[0]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4),
    st.permutations(range(5)),
)
def test_slots_out_of_step_equal_each_call_alone(tiny: Loaded, passes: list[list[int]], order: list[int]) -> None:
    lm = tiny.model.spoken_lm
    slots = order[: len(passes)]
    rows = {slot: rows_for(lm, sum(steps), seed=slot) for slot, steps in zip(slots, passes, strict=True)}
    cache = lm.new_cache(slots=5, capacity=30)
    hidden: dict[int, list[Tensor]] = {slot: [] for slot in slots}
    with torch.inference_mode():
        for k in range(max(map(len, passes))):
            going = [(slot, steps[k]) for slot, steps in zip(slots, passes, strict=True) if k < len(steps)]
            start = {slot: cache.lengths[slot] for slot, _ in going}
            batch = torch.nn.utils.rnn.pad_sequence(
                [rows[slot][start[slot] : start[slot] + new] for slot, new in going], batch_first=True
            )
            out = lm(batch, cache, [slot for slot, _ in going], [new for _, new in going])
            for row, (slot, new) in enumerate(going):
                hidden[slot].append(out[row, :new])
    for slot in slots:
        assert cache.lengths[slot] == len(rows[slot])
        assert (torch.cat(hidden[slot]) - alone(lm, rows[slot])).abs().max() < TOLERANCE


def test_one_row_at_a_time_equals_a_full_recompute(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    rows = rows_for(lm, 24, seed=1)
    cache = lm.new_cache(slots=1, capacity=24)
    with torch.inference_mode():
        steps = torch.cat([lm(rows[None, k : k + 1], cache, [0])[0] for k in range(24)])
        assert (steps - alone(lm, rows)).abs().max() < TOLERANCE
        logits, expected = lm.text_logits(steps), lm.text_logits(alone(lm, rows))
        assert (logits - expected).abs().max() < TOLERANCE
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_both_attentions_read_in_parts_what_they_read_at_once(
    tiny: Loaded, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.model.spoken_lm
    monkeypatch.setattr(lm, "config", replace(lm.config, attn_implementation=kind))
    rows = rows_for(lm, 20, seed=4)
    cache = lm.new_cache(slots=2, capacity=24)
    with torch.inference_mode():
        whole = lm(rows[None], cache, [0])[0]
        parts = [lm(rows[None, start:end], cache, [1])[0] for start, end in ((0, 9), (9, 10), (10, 20))]
    assert (whole - alone(lm, rows)).abs().max() < TOLERANCE
    assert (torch.cat(parts) - whole).abs().max() < TOLERANCE


def test_a_slot_is_clean_after_a_call_that_went_wrong(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    cache = lm.new_cache(slots=2, capacity=16)
    with torch.inference_mode():
        lm(torch.full((1, 8, lm.hidden_dim), torch.nan), cache, [0])
        cache.reset(0)
        short, long = rows_for(lm, 3, seed=1), rows_for(lm, 12, seed=2)
        batch = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
        out = lm(batch, cache, [0, 1], [3, 12])
    # the short call looks over the rows the broken one left behind
    assert (out[0, :3] - alone(lm, short)).abs().max() < TOLERANCE


def test_a_pass_beyond_the_capacity_is_refused_and_changes_nothing(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    cache = lm.new_cache(slots=1, capacity=4)
    with torch.inference_mode():
        lm(rows_for(lm, 3, seed=0)[None], cache, [0])
        with pytest.raises(InvalidInputError, match="5 positions are needed, but the cache holds 4"):
            lm(rows_for(lm, 2, seed=0)[None], cache, [0])
    assert cache.lengths == [3]


def test_an_aborted_pass_counts_for_nothing(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    rows = rows_for(lm, 6, seed=3)
    cache = lm.new_cache(slots=1, capacity=8)
    calls = []

    def abort() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise CallAbortedError("enough")

    with torch.inference_mode():
        lm(rows[None, :4], cache, [0])
        with pytest.raises(CallAbortedError):
            lm(rows[None, 4:], cache, [0], abort=abort)
        assert cache.lengths == [4]
        out = lm(rows[None, 4:], cache, [0])
    assert (out[0] - alone(lm, rows)[4:]).abs().max() < TOLERANCE


def test_memory_is_counted_in_bytes() -> None:
    cache = storage()
    assert cache.nbytes == 2 * 2 * 3 * 2 * 16 * 4 * 4  # slots begin at whole cache lines, with a spare position


@pytest.mark.parametrize("slots", [[0, 1], [2, 0], [1]])
def test_a_pass_keeps_what_it_is_given_and_shows_no_more_than_its_slots_hold(slots: list[int]) -> None:
    cache = storage()
    cache.lengths[slots[0]] = 4
    news = [2, 3][: len(slots)]
    run = SlotPass(cache, slots, news, rows=7)
    keys = torch.randn(7, 2, 4)
    run.store(1, keys, -keys)
    for index, (slot, (first, end, window)) in enumerate(zip(slots, run.spans, strict=True)):
        start = cache.lengths[slot]
        seen, values = run.window(1, index)
        assert seen.shape == (1, 2, window, 4)
        assert window == start + news[index]
        assert run.positions[first:end].tolist() == list(range(start, window))
        assert torch.equal(seen[0, :, start:].transpose(0, 1), keys[first:end])
        assert torch.equal(values, -seen)
        assert not cache.keys[1, slot, :, window:].any()
    assert run.positions[run.used :].tolist() == [0] * (7 - sum(news))
    run.commit()
    assert [cache.lengths[slot] for slot in slots] == [window for _, _, window in run.spans]
    assert not cache.keys[0].any()


def test_a_reset_slot_holds_zeros_also_where_a_dropped_pass_wrote() -> None:
    cache = storage()
    SlotPass(cache, [1], [5]).store(0, torch.full((5, 2, 4), torch.nan), torch.full((5, 2, 4), torch.nan))
    assert cache.lengths == [0, 0, 0]
    cache.reset(1)
    assert not cache.keys.any()
    assert not cache.values.any()


def test_more_rows_than_a_pass_has_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="3 rows do not fit into a pass of 2"):
        SlotPass(storage(), [0, 1], [1, 2], rows=2)
