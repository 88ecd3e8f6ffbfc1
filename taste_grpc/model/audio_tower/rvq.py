"""Residual vector quantiser: a vector as a sum of one code from each of several tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.pieces import Pieces, drain, row_spans
from taste_grpc.model.tensor_shapes import TensorShapes

IGNORED = -1
"""Index of rows that carry no code."""


@dataclass(frozen=True)
class ResidualVQConfig:
    """Sizes of the quantiser.

    Attributes:
        dim: width of the vectors outside.
        codebook_dim: width of the codes.
        codebook_size: codes in each table.
        quantizers: number of tables.
        mlp_layers: depth of the networks that are stored but never used.
    """

    dim: int = 1280
    codebook_dim: int = 256
    codebook_size: int = 512
    quantizers: int = 4
    mlp_layers: int = 4

    @classmethod
    def from_published(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        prefix: str = "audio_tower.vq.rvq",
    ) -> Self:
        """Sizes named in config.json, checked against the tensors below `prefix`. Raises CheckpointError."""
        stated = config["audio_tower_config"]["kwargs_for_quantizer"]
        found = TensorShapes(shapes, "config.json")
        field = "audio_tower_config.kwargs_for_quantizer"
        table = f"{prefix}.layers.0._codebook.embed"
        dim = int(stated["dim"])
        codebook_dim = found.size(table, 2, f"{field}.codebook_dim", stated.get("codebook_dim", dim))
        quantizers = found.count(f"{prefix}.layers", f"{field}.num_quantizers", stated["num_quantizers"])
        if dim != codebook_dim:
            found.size(f"{prefix}.project_in.weight", 1, f"{field}.dim", dim)
        depth = found.count(f"{prefix}.mlps.0.layers", "the depth of mlps", None if shapes else cls.mlp_layers)
        return cls(
            dim=dim,
            codebook_dim=codebook_dim,
            codebook_size=found.size(table, 1, f"{field}.codebook_size", stated["codebook_size"]),
            quantizers=quantizers,
            mlp_layers=depth,
        )


@dataclass(frozen=True)
class QuantizerOutput:
    """What quantising `[B, T, dim]` gives.

    `quantized` `[B, T, dim]`, `indices` `[B, T, Q]` int64 (-1 where masked) and the vectors
    that were looked up, `projected` `[B, T, codebook_dim]`.
    """

    quantized: Tensor
    indices: Tensor
    projected: Tensor


class _Codebook(nn.Module):
    """One table. Only `embed` is used; the rest is the state of training, kept to load and save whole."""

    embed: Tensor
    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        size, dim = config.codebook_size, config.codebook_dim
        self.register_buffer("initted", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(1, size))
        self.register_buffer("embed_avg", torch.zeros(1, size, dim))
        self.register_buffer("embed", torch.zeros(1, size, dim))


class _QuantizerLayer(nn.Module):
    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        self._codebook = _Codebook(config)

    @property
    def table(self) -> Tensor:
        """The codes, `[codebook_size, codebook_dim]` float32."""
        return self._codebook.embed[0].float()


class _UnusedMlp(nn.Module):
    """Published beside the tables, takes no part in any computation."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(layers)
        )


class ResidualVQ(nn.Module):
    """Quantises greedily: each table codes what the tables before it left over.

    Distances are taken in float32, pair by pair, so a row's codes do not depend on the rows
    beside it; of equal distances the first code wins.
    """

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        self.config = config
        projected = config.dim != config.codebook_dim
        self.project_in = nn.Linear(config.dim, config.codebook_dim) if projected else nn.Identity()
        self.project_out = nn.Linear(config.codebook_dim, config.dim) if projected else nn.Identity()
        self.layers = nn.ModuleList(_QuantizerLayer(config) for _ in range(config.quantizers))
        self.mlps = nn.ModuleList(
            _UnusedMlp(config.codebook_dim, config.mlp_layers) for _ in range(config.quantizers - 1)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """`in_pieces`, all at once."""
        return drain(self.in_pieces(x, mask))

    def in_pieces(
        self, x: Tensor, mask: Tensor | None = None, *, rows: int | None = None, abort: AbortCheck = never_abort
    ) -> Pieces[QuantizerOutput]:
        """Quantise `x` `[B, T, dim]`; rows where `mask` `[B, T]` is False get indices -1 and no code.

        A row without a code is the bias of the output projection, not zero. A piece is at most `rows` rows; None
        takes them all. `abort` is called before each.
        """
        parts: list[QuantizerOutput] = []
        for span in row_spans(x.shape[1], rows):
            if parts:
                yield
            abort()
            projected = self.project_in(x[:, span].to(self._dtype))
            indices = self.indices_from_code(projected)
            if mask is not None:
                indices = indices.masked_fill(~mask[:, span, None], IGNORED)
            parts.append(QuantizerOutput(self.output_from_indices(indices), indices, projected))
        return QuantizerOutput(
            torch.cat([part.quantized for part in parts], dim=1),
            torch.cat([part.indices for part in parts], dim=1),
            torch.cat([part.projected for part in parts], dim=1),
        )

    def indices_from_code(self, code: Tensor) -> Tensor:
        """Indices `[..., Q]` int64 of `code` `[..., codebook_dim]`, which lies in the space of the tables already."""
        residual = code.float().reshape(-1, self.config.codebook_dim)
        chosen = []
        for table in self._tables():
            distances = torch.cdist(residual, table, compute_mode="donot_use_mm_for_euclid_dist")  # [N, size]
            index = distances.argmin(dim=-1)
            residual = residual - F.embedding(index, table)
            chosen.append(index)
        return torch.stack(chosen, dim=-1).reshape(*code.shape[:-1], len(chosen))

    def code_from_indices(self, indices: Tensor) -> Tensor:
        """Sum `[..., codebook_dim]` float32 of the codes named by `indices` `[..., Q]`; -1 adds nothing."""
        code = torch.zeros(*indices.shape[:-1], self.config.codebook_dim, device=indices.device)
        for level, table in enumerate(self._tables()):
            index = indices[..., level]
            row = F.embedding(index.clamp(min=0), table)
            code = code + row.masked_fill((index < 0)[..., None], 0.0)
        return code

    def output_from_indices(self, indices: Tensor) -> Tensor:
        """`code_from_indices` after the output projection: `[..., dim]`."""
        projected: Tensor = self.project_out(self.code_from_indices(indices).to(self._dtype))
        return projected

    @property
    def _dtype(self) -> torch.dtype:
        weight = getattr(self.project_in, "weight", None)
        return weight.dtype if isinstance(weight, Tensor) else torch.float32

    def _tables(self) -> list[Tensor]:
        return [layer.table for layer in self.layers if isinstance(layer, _QuantizerLayer)]


class VectorQuantizer(nn.Module):
    """The quantiser under its published name, `vq.rvq`."""

    def __init__(self, config: ResidualVQConfig) -> None:
        super().__init__()
        self.rvq = ResidualVQ(config)
