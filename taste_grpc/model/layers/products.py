"""Matrix products of few rows.

Decoding multiplies a handful of rows with large weights. For a single row the time goes into reading the weights. For
some more, the CPU kernel behind `x @ W.T` first copies the weights into another order; `W @ x.T`, the same sums, leaves
them where they are and takes about half as long.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COLUMNS_FROM, _COLUMNS_TO = 4, 128  # rows for which columns were measured to be faster (float32, AVX-512, MKL)


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` makes of rows `[..., in]`: `[..., out]`.

    The result may be a transposed view; the next product takes it as it is. Call `contiguous` before arithmetic that
    goes along the rows. Modules other than `nn.Linear` are called.
    """
    if type(layer) is not nn.Linear:
        out: Tensor = layer(x)
        return out
    if x.dim() > 2:
        return product(layer, x.flatten(0, -2)).reshape(*x.shape[:-1], layer.out_features)
    bias: Tensor | None = layer.bias
    if not in_columns(x):
        return F.linear(x, layer.weight, bias)
    columns = x.t().contiguous()
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
