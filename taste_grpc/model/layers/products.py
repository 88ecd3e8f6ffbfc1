"""Matrix products of few rows.

Decoding multiplies a handful of rows with large weights. For a single row the time goes into reading the weights. For
some more, the CPU kernel behind `x @ W.T` first copies the weights into another order; `W @ x.T`, the same sums, leaves
them where they are and takes about half as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COLUMNS_FROM, _COLUMNS_TO = 4, 128  # rows for which columns were measured to be faster (float32, AVX-512, MKL)


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` makes of rows `[..., in]`: `[..., out]`; see `products`."""
    return products([layer], x)[0]


def products(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What each of `layers` makes of the same rows `[..., in]`: `[..., out]`.

    The results may be transposed views; the next product takes them as they are. Call `contiguous` before arithmetic
    that goes along the rows. Modules other than `nn.Linear` are called.
    """
    if x.dim() > 2:
        return [out.reshape(*x.shape[:-1], -1) for out in products(layers, x.flatten(0, -2))]
    if not in_columns(x):
        return [F.linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x) for layer in layers]
    columns = x.t().contiguous()
    return [_times_columns(layer, columns) if type(layer) is nn.Linear else layer(x) for layer in layers]


def _times_columns(layer: nn.Linear, columns: Tensor) -> Tensor:
    bias: Tensor | None = layer.bias
    if bias is None:
        return torch.mm(layer.weight, columns).t()
    return torch.addmm(bias[:, None], layer.weight, columns).t()


def in_columns(x: Tensor) -> bool:
    """Whether `x` are rows `[N, in]` that are better multiplied as columns."""
    few = x.dim() == 2 and _COLUMNS_FROM <= x.shape[0] <= _COLUMNS_TO
    return few and x.device.type == "cpu" and x.dtype == torch.float32


def fill_rows(rows: Tensor, count: int) -> Tensor:
    """`rows` `[n, ...]` with zeros after them: `[count, ...]`."""
    missing = count - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
