"""Products of few rows are those of the layer, whichever way round they are computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taste_grpc.model.layers.products import fill_rows, in_columns, product, products
from taste_grpc.model.spoken_lm.lora import LoraConfig, LoraLinear


@pytest.mark.parametrize("rows", [1, 2, 4, 16, 32, 33, 128, 129])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_rows_as_columns_give_what_the_layer_gives(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layers = [nn.Linear(24, out, bias=bias) for out in (128, 7, 64, 150)]
    x = torch.randn(rows, 24)
    assert in_columns(x) == (4 <= rows <= 128)
    for layer, out in zip(layers, products(layers, x), strict=True):
        torch.testing.assert_close(out, layer(x))
        torch.testing.assert_close(product(layer, x[None, :, None])[0, :, 0], layer(x))
    torch.testing.assert_close(product(layers[0], x[0]), layers[0](x[0]))


@torch.no_grad()
def test_bfloat16_and_layers_of_another_kind_are_left_alone() -> None:
    x = torch.randn(8, 24)
    assert not in_columns(x.bfloat16())
    adapted = LoraLinear(nn.Linear(24, 40, bias=False), LoraConfig(rank=2, alpha=4.0))
    nn.init.normal_(adapted.lora_B["default"].weight)
    torch.testing.assert_close(product(adapted, x), adapted(x))


def test_missing_rows_are_zeros() -> None:
    rows = torch.ones(2, 3)
    assert fill_rows(rows, 2) is rows
    assert fill_rows(rows, 4).tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3, [0.0] * 3]
