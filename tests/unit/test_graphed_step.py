"""Steps of fixed shape, which CUDA graphs record, against steps of whatever shape there is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.layers.graphed_step import GraphedStep
from taste_grpc.model.layers.rel_pos import RelPosEncoder, RelPosEncoderConfig
from taste_grpc.model.layers.rel_pos_static import graphed_row_step
from taste_grpc.model.layers.shapes import FixedShape
from taste_grpc.model.layers.stepping import StaticPlaces
from taste_grpc.model.spoken_lm.static_step import graphed_text_step
from tests.conftest import Loaded

SLOTS = 5

prefixes = st.lists(st.integers(0, 20), min_size=SLOTS, max_size=SLOTS)
steps = st.lists(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True), min_size=1, max_size=8)
shapes = st.sampled_from([None, FixedShape(SLOTS, 8)])


@torch.inference_mode()
@settings(deadline=None, max_examples=25)
@given(prefixes, steps, shapes)
def test_the_spoken_lm_steps_the_same_either_way(
    tiny: Loaded, lengths: list[int], schedule: list[list[int]], fixed: FixedShape | None
) -> None:
    lm = tiny.model.spoken_lm
    generator = torch.Generator().manual_seed(1)
    caches = [lm.new_cache(slots=SLOTS, capacity=300, fixed=fixed) for _ in range(2)]
    for slot, length in enumerate(lengths):
        rows = torch.randn(1, length, lm.hidden_dim, generator=generator) * 0.05
        for cache in caches:
            if length:
                lm(rows, cache, [slot])
    graphed = graphed_text_step(lm, caches[1])
    for slots in schedule:
        rows = torch.randn(len(slots), lm.hidden_dim, generator=generator) * 0.05
        torch.testing.assert_close(graphed(rows, slots), lm.step(rows, caches[0], slots), atol=1e-4, rtol=1e-4)
    assert caches[0].lengths == caches[1].lengths
    for slot, length in enumerate(caches[0].lengths):
        torch.testing.assert_close(caches[0].keys[:, slot, :, :length], caches[1].keys[:, slot, :, :length])


@settings(deadline=None, max_examples=25)
@given(prefixes, steps, shapes)
def test_an_encoder_steps_the_same_either_way(
    lengths: list[int], schedule: list[list[int]], fixed: FixedShape | None
) -> None:
    torch.manual_seed(0)
    encoder = RelPosEncoder(RelPosEncoderConfig(input_size=6, width=16, heads=4, ffn_size=24, layers=2)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    caches = [encoder.new_cache(SLOTS, 300, fixed=fixed) for _ in range(2)]
    for slot, length in enumerate(lengths):
        rows = torch.randn(1, length, 6)
        for cache in caches:
            if length:
                encoder.prefill(rows, [length], cache, [slot])
    graphed = graphed_row_step(encoder, caches[1])
    for slots in schedule:
        rows = torch.randn(len(slots), 6)
        torch.testing.assert_close(graphed(rows, slots), encoder.step(rows, caches[0], slots), atol=1e-4, rtol=1e-4)
    assert caches[0].lengths == caches[1].lengths


class Recorder:
    """A static step that notes its shapes."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.places: list[StaticPlaces] = []

    def __call__(self, rows: Tensor, places: StaticPlaces) -> Tensor:
        self.seen.append((len(rows), places.window))
        self.places.append(places)
        return rows + 1


def stepping(
    capacity: int, slots: int, lengths: Sequence[int], fixed: FixedShape | None
) -> tuple[Recorder, GraphedStep]:
    encoder = RelPosEncoder(RelPosEncoderConfig(input_size=2, width=4, heads=1, ffn_size=4, layers=1))
    cache = encoder.new_cache(slots, capacity, fixed=fixed)
    cache.lengths = list(lengths)
    recorder = Recorder()
    return recorder, GraphedStep(recorder, cache, 2, torch.float32)


def test_few_shapes_serve_every_number_of_calls_and_length() -> None:
    lengths = [0, 254, 255, 256, 511, 599, 3]
    recorder, graphed = stepping(600, 7, lengths, None)
    assert graphed.batch_sizes == [1, 2, 4, 7]
    assert graphed.windows == [256, 512, 600]
    for slots in ([0], [0, 6, 1], [2], [3, 0, 1, 2, 6]):
        out = graphed(torch.ones(len(slots), 2), slots)
        assert out.tolist() == [[2.0, 2.0]] * len(slots)
    assert recorder.seen == [(1, 256), (4, 256), (1, 256), (7, 512)]
    idle = recorder.places[1]
    assert idle.slots.tolist() == [0, 6, 1, 0]
    assert idle.positions.tolist() == [1, 3, 254, 600]  # the spare position
    assert idle.hidden_keys().sum(1).tolist() == [254, 252, 1, 0]


def test_a_fixed_shape_is_the_only_one() -> None:
    recorder, graphed = stepping(600, 7, [0] * 7, FixedShape(7, 4))
    graphed(torch.zeros(7, 2), [3])
    graphed(torch.zeros(7, 2), [3, 4, 5, 6])
    assert set(recorder.seen) == {(7, 600)}


def test_a_full_slot_is_refused_before_anything_runs() -> None:
    recorder, graphed = stepping(600, 2, [600, 0], None)
    with pytest.raises(InvalidInputError, match="601 positions are needed, but the cache holds 600"):
        graphed(torch.zeros(1, 2), [0])
    assert recorder.seen == []


def test_warming_up_leaves_the_slots_alone(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    with torch.inference_mode():
        cache = lm.new_cache(slots=2, capacity=20)
        lm(torch.ones(1, 4, lm.hidden_dim), cache, [0])
        before = cache.keys[:, :, :, :20].clone()
        graphed_text_step(lm, cache).warm_up()
        assert cache.lengths == [4, 0]
        assert torch.equal(cache.keys[:, :, :, :20], before)
