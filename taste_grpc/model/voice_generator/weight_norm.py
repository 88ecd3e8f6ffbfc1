"""Convolutions whose weight is stored as direction and length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _WeightNormed(nn.Module):
    """Parameters `weight_g`, `weight_v`, `bias`, until `fold_()` replaces the first two by `weight`.

    weight = g * v / |v|, the norm over all dimensions but the first.
    """

    bias: nn.Parameter

    def __init__(self, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(shape[0], 1, 1))
        self.weight_v = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight_v, std=0.01)

    def plain_weight(self) -> Tensor:
        """The weight in use; computed in float32 while it is not folded."""
        if "weight" in self._parameters:
            return self.get_parameter("weight")
        direction = self.weight_v.float()
        norm = direction.norm(dim=(1, 2), keepdim=True)
        weight: Tensor = self.weight_g.float() * direction / norm
        return weight.to(self.weight_v.dtype)

    @torch.no_grad()
    def fold_(self) -> None:
        """Store the plain weight instead of direction and length; does nothing the second time."""
        if "weight" in self._parameters:
            return
        weight = self.plain_weight()
        del self.weight_g, self.weight_v
        self.weight = nn.Parameter(weight, requires_grad=False)


class WeightNormConv1d(_WeightNormed):
    """`Conv1d` with weight norm and an odd kernel; keeps the length."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__((outputs, inputs, kernel), outputs)
        self.dilation = dilation
        self.padding = dilation * (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, T]` -> `[B, outputs, T]`."""
        return F.conv1d(x, self.plain_weight(), self.bias, padding=self.padding, dilation=self.dilation)


class WeightNormConvTranspose1d(_WeightNormed):
    """`ConvTranspose1d` with weight norm over its input channels; makes `stride` frames of one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__((inputs, outputs, kernel), outputs)
        self.stride = stride
        self.padding = (kernel - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, T]` -> `[B, outputs, stride * T]`."""
        return F.conv_transpose1d(x, self.plain_weight(), self.bias, stride=self.stride, padding=self.padding)


def fold_weight_norm_(module: nn.Module) -> None:
    """Call `fold_()` of every convolution of this kind inside `module`."""
    for part in module.modules():
        if isinstance(part, _WeightNormed):
            part.fold_()
