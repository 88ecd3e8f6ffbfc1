"""Linear layers with a low-rank adapter beside them, under the names the published checkpoint stores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Rank and strength: y = W x + (alpha / rank) B A x."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor of the adapter."""
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """`base_layer` plus an adapter of rank `config.rank`; `merged` gives the plain layer it amounts to."""

    def __init__(self, base_layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        adapter = {"device": base_layer.weight.device, "dtype": torch.float32}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, config.rank, bias=False, **adapter)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(config.rank, base_layer.out_features, bias=False, **adapter)})
        self.scale = config.scale

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`; the adapter branch is computed in float32."""
        adapted: Tensor = self.lora_B["default"](self.lora_A["default"](x.float())) * self.scale
        base: Tensor = self.base_layer(x)
        return base + adapted.to(base.dtype)


def merge_lora(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """`weight + scale * lora_b @ lora_a` in float32. Rounding the sum to bfloat16 is a different model.

    The sum is made in place in the one copy it needs: freed copies of its size would stay with the allocator.
    """
    merged = weight.to(torch.float32, copy=True)
    return merged.addmm_(lora_b.float(), lora_a.float(), alpha=scale)


def add_adapters(module: nn.Module, config: LoraConfig) -> None:
    """Put a LoraLinear in place of every target layer below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in TARGETS and isinstance(child, nn.Linear):
                setattr(parent, name, LoraLinear(child, config))
