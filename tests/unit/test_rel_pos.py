"""The rel-pos encoder against its formula, and its incremental use against a full pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from taste_grpc.errors import CallAbortedError, CheckpointError, InvalidInputError
from taste_grpc.model.layers.rel_pos import RelPosAttention, RelPosEncoder, RelPosEncoderConfig
from taste_grpc.model.layers.sinusoids import sinusoids
from taste_grpc.model.tensor_shapes import TensorShapes

CONFIG = RelPosEncoderConfig(input_size=6, width=16, heads=4, ffn_size=24, layers=2)


def make(config: RelPosEncoderConfig, seed: int = 0) -> RelPosEncoder:
    torch.manual_seed(seed)
    encoder = RelPosEncoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder.eval()


def distance_row(distance: int, width: int) -> Tensor:
    row = torch.zeros(width, dtype=torch.float64)
    for m in range(width // 2):
        w = 10000.0 ** (-2 * m / width)
        row[2 * m], row[2 * m + 1] = math.sin(distance * w), math.cos(distance * w)
    return row


def attention_pair_by_pair(attention: RelPosAttention, x: Tensor, *, causal: bool) -> Tensor:
    """`[T, width]`, every score from its own formula, in float64."""
    attention = attention.double()
    x = x.double()
    rows, width = x.shape
    heads, size = attention.heads, attention.head_size
    query, key, value = (
        linear(x).view(rows, heads, size) for linear in (attention.linear_q, attention.linear_k, attention.linear_v)
    )
    mixed = torch.zeros(rows, heads, size, dtype=torch.float64)
    for head in range(heads):
        u, v = attention.pos_bias_u[head], attention.pos_bias_v[head]
        for i in range(rows):
            seen = range(i + 1) if causal else range(rows)
            scores = []
            for j in seen:
                projected = (attention.linear_pos.weight @ distance_row(i - j, width)).view(heads, size)[head]
                content = (query[i, head] + u) @ key[j, head]
                scores.append((content + (query[i, head] + v) @ projected) / math.sqrt(size))
            weights = torch.stack(scores).softmax(0)
            mixed[i, head] = sum(weight * value[j, head] for weight, j in zip(weights, seen, strict=True))
    return attention.linear_out(mixed.flatten(1))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_formula_for_every_pair(causal: bool) -> None:
    attention = make(replace(CONFIG, layers=1)).encoders[0].self_attn
    x = torch.randn(1, 7, 16)
    rows = torch.arange(7)
    distances = 6 - rows if causal else 6 - torch.arange(13)
    visible = (rows[None, :] <= rows[:, None])[None, None] if causal else None
    got = attention(x, sinusoids(distances, 16, x.dtype), visible)[0]
    wanted = attention_pair_by_pair(attention, x[0], causal=causal)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


def test_an_encoder_is_input_layer_blocks_and_norm() -> None:
    encoder = make(replace(CONFIG, input_layer="linear_legacy", activation="relu", norm_names=("norm1", "norm2")))
    x = torch.randn(1, 5, 6)
    got = encoder(x)[0]
    h = torch.relu(encoder.embed.out(x)) * 4.0  # square root of the width 16
    encoder.double()
    h = h.double()
    for layer in encoder.encoders:
        h = h + attention_pair_by_pair(layer.self_attn, layer.norm1(h)[0], causal=True)[None]
        h = h + layer.feed_forward.w_2(torch.relu(layer.feed_forward.w_1(layer.norm2(h))))
    torch.testing.assert_close(got.double(), encoder.after_norm(h)[0], atol=1e-4, rtol=1e-4)


def test_only_linear_legacy_has_a_relu_after_its_norm() -> None:
    plain, legacy = make(CONFIG), make(replace(CONFIG, input_layer="linear_legacy"))
    x = torch.randn(1, 4, 6)
    assert (plain.embed(x) < 0).any()
    torch.testing.assert_close(legacy.embed(x), plain.embed(x).relu())


def test_padding_does_not_reach_valid_rows_of_a_full_context_encoder() -> None:
    encoder = make(replace(CONFIG, causal=False))
    x = torch.randn(2, 6, 6)
    together = encoder(x, torch.tensor([6, 3]))
    torch.testing.assert_close(together[1, :3], encoder(x[1:, :3])[0], atol=1e-5, rtol=1e-5)


def test_slots_at_different_positions_equal_full_passes() -> None:
    encoder = make(CONFIG)
    full = {2: torch.randn(11, 6), 0: torch.randn(9, 6), 3: torch.randn(13, 6)}
    wanted = {slot: encoder(x[None])[0] for slot, x in full.items()}
    cache = encoder.new_cache(4, 32)
    got: dict[int, list[Tensor]] = {slot: [] for slot in full}

    def extend(parts: dict[int, int]) -> None:
        slots = list(parts)
        rows = torch.zeros(len(slots), max(parts.values()), 6)
        for row, slot in enumerate(slots):
            start = cache.lengths[slot]
            rows[row, : parts[slot]] = full[slot][start : start + parts[slot]]
        out = encoder.prefill(rows, list(parts.values()), cache, slots)
        for row, slot in enumerate(slots):
            got[slot].append(out[row, : parts[slot]])

    extend({2: 5, 0: 3})  # different lengths at once
    extend({3: 4})  # joins later
    extend({0: 1, 3: 1, 2: 1})  # a step of three slots, out of order
    extend({2: 4, 3: 2})  # more of a prompt, from different positions
    extend({3: 6, 0: 5, 2: 1})
    for slot, x in wanted.items():
        torch.testing.assert_close(torch.cat(got[slot]), x, atol=2e-5, rtol=1e-4)


def test_a_reset_slot_forgets() -> None:
    encoder = make(CONFIG)
    cache = encoder.new_cache(1, 8)
    x = torch.randn(1, 4, 6)
    encoder.prefill(torch.randn(1, 6, 6), [6], cache, [0])
    cache.reset(0)
    torch.testing.assert_close(encoder.prefill(x, [4], cache, [0]), encoder(x), atol=1e-5, rtol=1e-5)


def test_a_full_slot_is_an_error_that_says_so() -> None:
    encoder = make(CONFIG)
    cache = encoder.new_cache(1, 5)
    with pytest.raises(InvalidInputError, match="6 positions are needed, but the cache holds 5"):
        encoder.prefill(torch.randn(1, 6, 6), [6], cache, [0])


def test_an_abort_between_layers_leaves_the_length_as_it_was() -> None:
    encoder = make(CONFIG)
    cache = encoder.new_cache(1, 8)
    calls = 0

    def abort() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise CallAbortedError("stop")

    with pytest.raises(CallAbortedError):
        encoder.prefill(torch.randn(1, 3, 6), [3], cache, [0], abort)
    assert cache.lengths == [0]


def test_distances_beyond_what_was_projected_before_are_added() -> None:
    encoder = make(CONFIG)
    cache = encoder.new_cache(1, 700)
    x = torch.randn(1, 600, 6)
    out = torch.cat([encoder.prefill(x[:, a:b], [b - a], cache, [0]) for a, b in ((0, 100), (100, 599), (599, 600))], 1)
    torch.testing.assert_close(out, encoder(x), atol=1e-4, rtol=1e-4)


def test_sizes_come_from_tensors_and_must_agree_with_what_is_stated() -> None:
    shapes = {f"x.{name}": tuple(value.shape) for name, value in make(CONFIG).state_dict().items()}
    stated: dict[str, int | None] = dict.fromkeys(("input_size", "width", "heads", "ffn_size", "layers"))
    read = RelPosEncoderConfig.from_tensors(TensorShapes(shapes, "dims.json"), "x", keys={}, stated=stated)
    assert read == CONFIG
    with pytest.raises(CheckpointError, match=r"dims.json says blocks = 3, but the tensors x.encoders.\* say 2"):
        RelPosEncoderConfig.from_tensors(
            TensorShapes(shapes, "dims.json"), "x", keys={"layers": "blocks"}, stated={**stated, "layers": 3}
        )
