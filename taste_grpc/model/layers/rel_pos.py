"""Transformer encoder with relative sinusoidal positions (the Transformer-XL kind, as in ESPnet and WeNet).

Attention scores of query i and key j are

    ((q_i + u) . k_j + (q_i + v) . P R(i - j)) / sqrt(d_k)

with learned vectors u, v per head, a projection P and sinusoids R of the distance. The speech decoder and
the flow share this network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc.errors import CheckpointError, InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.positional_keys import PositionalKeys
from taste_grpc.model.layers.products import fill_rows, product, products
from taste_grpc.model.layers.rel_pos_cache import RelPosCache, SlotPass
from taste_grpc.model.layers.rel_pos_run import EncoderRun, WholeRun
from taste_grpc.model.layers.shapes import FixedShape
from taste_grpc.model.layers.sinusoids import sinusoids
from taste_grpc.model.tensor_shapes import TensorShapes

INPUT_LAYERS = ("linear", "linear_legacy")


@dataclass(frozen=True)
class RelPosEncoderConfig:
    """Sizes and variant of a `RelPosEncoder`.

    Attributes:
        input_size: width of the rows that go in.
        width: width inside and of the rows that come out.
        heads: attention heads; a divisor of `width`.
        ffn_size: units of the feed-forward layers.
        layers: number of blocks.
        input_layer: `linear` (affine, layer norm) or `linear_legacy` (the same, then ReLU).
        activation: of the feed-forward layers.
        norm_names: what the norms before attention and before the feed-forward layers are called.
        causal: a row looks at itself and earlier rows only; otherwise at all rows.
    """

    input_size: int
    width: int
    heads: int
    ffn_size: int
    layers: int
    input_layer: Literal["linear", "linear_legacy"] = "linear"
    activation: Literal["silu", "relu"] = "silu"
    norm_names: tuple[str, str] = ("norm_mha", "norm_ff")
    causal: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise CheckpointError(f"{self.heads} attention heads do not divide the width {self.width}")
        if self.width % 2:
            raise CheckpointError(f"relative positions need an even width, not {self.width}")

    @property
    def head_size(self) -> int:
        """Width of one head, d_k."""
        return self.width // self.heads

    @classmethod
    def from_tensors(
        cls,
        tensors: TensorShapes,
        prefix: str,
        *,
        keys: dict[str, str],
        stated: dict[str, int | None],
        input_layer: str = "linear",
        activation: Literal["silu", "relu"] = "silu",
        norm_names: tuple[str, str] = ("norm_mha", "norm_ff"),
        causal: bool = True,
    ) -> RelPosEncoderConfig:
        """Sizes from the tensors below `prefix`, held against what a configuration states.

        `stated` maps `input_size`, `width`, `heads`, `ffn_size`, `layers` to values (None: not stated) and
        `keys` to the names under which the configuration states them. Raises CheckpointError.
        """
        if input_layer not in INPUT_LAYERS:
            raise CheckpointError(f"{prefix}: input layer {input_layer!r} is not one of {', '.join(INPUT_LAYERS)}")

        def size(field: str, tensor: str, dim: int) -> int:
            return tensors.size(f"{prefix}.{tensor}", dim, keys.get(field, field), stated[field])

        layers = tensors.count(f"{prefix}.encoders", keys.get("layers", "layers"), stated["layers"])
        if layers == 0:
            raise CheckpointError(f"{prefix}.encoders: no layers")
        return cls(
            input_size=size("input_size", "embed.out.0.weight", 1),
            width=size("width", "embed.out.0.weight", 0),
            heads=size("heads", "encoders.0.self_attn.pos_bias_u", 0),
            ffn_size=size("ffn_size", "encoders.0.feed_forward.w_1.weight", 0),
            layers=layers,
            input_layer="linear" if input_layer == "linear" else "linear_legacy",
            activation=activation,
            norm_names=norm_names,
            causal=causal,
        )


def shift_to_keys(scores: Tensor, keys: int) -> Tensor:
    """View of scores per distance as scores per key, without copying.

    `scores` is `[B, H, T, R]`, column c of row t belonging to the distance `last - c`, where `last` is the
    position of the last row. Returns `[B, H, T, keys]`; entries of distances that have no column hold some
    other entry of `scores` and must be masked.
    """
    batch, heads, rows, columns = scores.shape
    if keys > columns:
        raise ValueError(f"{keys} keys need as many distances, not {columns}")
    scores = scores.contiguous()
    stride = scores.stride()
    return scores.as_strided(
        (batch, heads, rows, keys), (stride[0], stride[1], columns - 1, 1), scores.storage_offset() + rows - 1
    )


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""New queries, keys and values `[N, heads, d_k]` to mixed values of the same shape."""


class _InputLayer(nn.Module):
    def __init__(self, config: RelPosEncoderConfig) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(config.input_size, config.width), nn.LayerNorm(config.width))
        self._legacy = config.input_layer == "linear_legacy"
        self._scale = math.sqrt(config.width)

    def forward(self, x: Tensor) -> Tensor:
        linear, norm = self.out
        out: Tensor = norm(product(linear, x).contiguous())
        return (F.relu(out) if self._legacy else out) * self._scale


class RelPosAttention(nn.Module):
    """Multi-head attention with the scores of the module's docstring."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = width // heads
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.head_size))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.head_size))
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)

    def positional_keys(self, table: Tensor) -> Tensor:
        """P R for sinusoids `table` `[R, width]`: `[heads, R, d_k]`."""
        projected: Tensor = self.linear_pos(table)
        return projected.view(-1, self.heads, self.head_size).transpose(0, 1)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor | None) -> Tensor:
        """All rows `[B, T, width]` at once.

        `table` holds the sinusoids of the distances T-1, T-2, ..; as many as a row can meet. `visible`
        (broadcastable to `[B, 1, T, T]`) is true where a query may look.
        """
        query, key, value = self._project(x)
        positional = self.positional_keys(table)
        relative = shift_to_keys(self._by_distance(query, positional), x.shape[1])
        return self._attend(query, key, value, relative, visible)

    def extend(self, x: Tensor, attend: Attend) -> Tensor:
        """New rows `[N, width]` of some streams, given what keeps their keys and values and mixes."""
        shape = (x.shape[0], self.heads, self.head_size)
        query, key, value = (
            out.contiguous().view(shape) for out in products((self.linear_q, self.linear_k, self.linear_v), x)
        )
        return product(self.linear_out, attend(query, key, value).flatten(1)).contiguous()

    def mix(self, query: Tensor, key: Tensor, value: Tensor, positional: Tensor) -> Tensor:
        """The last T rows of one stream, `[T, heads, d_k]`, over its keys and values `[1, heads, W, d_k]`.

        `positional` is `[heads, W, d_k]` for the distances W-1 .. 0. Returns `[T, heads, d_k]`.
        """
        rows, window = query.shape[0], key.shape[2]
        query = query.transpose(0, 1)  # [heads, T, d_k]
        scale = 1.0 / math.sqrt(self.head_size)
        bias = torch.bmm(query + self.pos_bias_v[:, None], positional.transpose(1, 2))[None] * scale
        if rows > 1:
            ahead = torch.ones(rows, window, dtype=torch.bool, device=query.device).triu_(window - rows + 1)
            bias = shift_to_keys(bias, window).masked_fill(ahead, -math.inf)
        mixed = F.scaled_dot_product_attention(
            (query + self.pos_bias_u[:, None])[None], key, value, attn_mask=bias, scale=scale
        )
        return mixed[0].transpose(0, 1)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], self.heads, self.head_size)
        query, key, value = (
            out.view(shape).transpose(1, 2) for out in products((self.linear_q, self.linear_k, self.linear_v), x)
        )
        return query, key, value

    def _by_distance(self, query: Tensor, positional: Tensor) -> Tensor:
        """(q + v) . P R for every distance: `[B, heads, T, R]`."""
        batch, heads, rows, _ = query.shape
        # one product per head over all rows of all slots, so `positional` is not repeated per slot
        biased = (query + self.pos_bias_v[:, None]).transpose(0, 1).reshape(heads, batch * rows, self.head_size)
        scores = torch.bmm(biased, positional.transpose(1, 2))
        return scores.view(heads, batch, rows, -1).transpose(0, 1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, relative: Tensor, visible: Tensor | None) -> Tensor:
        scale = 1.0 / math.sqrt(self.head_size)
        bias = relative * scale
        if visible is not None:
            bias = bias.masked_fill_(~visible, -math.inf)
        mixed = F.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, attn_mask=bias, scale=scale
        )
        return product(self.linear_out, mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: RelPosEncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.ffn_size)
        self.w_2 = nn.Linear(config.ffn_size, config.width)
        self._activation = F.silu if config.activation == "silu" else F.relu

    def forward(self, x: Tensor) -> Tensor:
        return product(self.w_2, self._activation(product(self.w_1, x))).contiguous()


class RelPosLayer(nn.Module):
    """One block: attention, then feed-forward, each on normalised input and added to it."""

    def __init__(self, config: RelPosEncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelPosAttention(config.width, config.heads)
        self.feed_forward = _FeedForward(config)
        self._attention_norm, self._ffn_norm = config.norm_names
        for name in config.norm_names:
            self.add_module(name, nn.LayerNorm(config.width))

    def forward(self, x: Tensor, table: Tensor, visible: Tensor | None) -> Tensor:
        """See `RelPosAttention.forward`."""
        x = x + self.self_attn(self.get_submodule(self._attention_norm)(x), table, visible)
        return self._feed(x)

    def extend(self, x: Tensor, attend: Attend) -> Tensor:
        """See `RelPosAttention.extend`."""
        return self._feed(x + self.self_attn.extend(self.get_submodule(self._attention_norm)(x), attend))

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.feed_forward(self.get_submodule(self._ffn_norm)(x))
        return out


class RelPosEncoder(nn.Module):
    """Input layer, blocks and a final layer norm.

    Holds no state: incremental use passes a `RelPosCache`, of which each slot is one stream. Not safe to
    call from two threads with the same cache.
    """

    def __init__(self, config: RelPosEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _InputLayer(config)
        self.encoders = nn.ModuleList(RelPosLayer(config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(config.width)
        self._positional: PositionalKeys | None = None

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Tensor | None = None, abort: AbortCheck = never_abort) -> Tensor:
        """Encode `[B, T, input_size]` rows to `[B, T, width]`.

        `lengths` `[B]` counts the valid rows of right-padded input; rows beyond come out meaningless.
        `abort` is called before each block.
        """
        run = self.whole(x, lengths)
        run.advance(abort=abort)
        return run.out

    def whole(self, x: Tensor, lengths: Tensor | None = None) -> WholeRun:
        """What `forward` does, to be done some blocks at a time."""
        return WholeRun(self, x, lengths)

    def new_cache(self, slots: int, capacity: int, *, fixed: FixedShape | None = None) -> RelPosCache:
        """Room for `slots` streams of up to `capacity` positions, on this module's device and in its dtype.

        With `fixed`, the numbers of a stream are the same to the bit whatever runs beside it.
        """
        if not self.config.causal:
            raise InvalidInputError("causal", "only a causal encoder can be extended row by row")
        weight = self.after_norm.weight
        return RelPosCache(
            layers=self.config.layers,
            slots=slots,
            kv_heads=self.config.heads,
            capacity=capacity,
            head_dim=self.config.head_size,
            dtype=weight.dtype,
            device=weight.device,
            fixed=fixed,
        )

    def run(self, x: Tensor, run: SlotPass) -> EncoderRun:
        """New rows `[run.rows, input_size]` of several streams, ready to go through the blocks."""
        return EncoderRun(self, x, run)

    @torch.no_grad()
    def prefill(
        self,
        x: Tensor,
        lengths: Sequence[int],
        cache: RelPosCache,
        slots: Sequence[int],
        abort: AbortCheck = never_abort,
    ) -> Tensor:
        """Append several rows to each of B different slots; returns the new rows `[B, T, width]` only.

        `x` is `[B, T, input_size]`, padded on the right, with `lengths[b]` (1 .. T) rows that count. The
        result equals that of `forward` over everything the slot was given, to rounding. A slot keeps its
        old length when `abort` (called before each block) raises.
        """
        run = self.run(
            torch.cat([row[:count] for row, count in zip(x, lengths, strict=True)]), SlotPass(cache, slots, lengths)
        )
        run.advance(abort=abort)
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(run.out, list(lengths))), batch_first=True)

    @torch.no_grad()
    def step(self, x: Tensor, cache: RelPosCache, slots: Sequence[int], abort: AbortCheck = never_abort) -> Tensor:
        """Append one row `[B, input_size]` to each of B slots, wherever each stands; returns `[B, width]`.

        A cache of fixed shape has every step done with its number of rows; `x` may be that many already.
        """
        run = SlotPass(cache, slots, [1] * len(slots), None if cache.fixed is None else cache.fixed.step_rows)
        going = self.run(fill_rows(x, run.rows), run)
        going.advance(abort=abort)
        return going.out[: len(slots)]

    def positional_keys(self) -> PositionalKeys:
        """P R of all layers, kept with the module; worked out anew when the weights move or change their dtype."""
        if self._positional is None:
            self._positional = PositionalKeys(self._project_positions)
        return self._positional

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._positional = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _project_positions(self, first: int, end: int) -> Tensor:
        weight = self.after_norm.weight
        with torch.inference_mode(False), torch.no_grad():
            distances = torch.arange(end - 1, first - 1, -1, device=weight.device)
            table = sinusoids(distances, self.config.width, weight.dtype)
            layers = [layer.self_attn for layer in self.encoders if isinstance(layer, RelPosLayer)]
            return torch.stack([attention.positional_keys(table) for attention in layers])
