"""Matrix products of few rows.

Decoding multiplies a handful of rows with large weights. For a single row the time goes into reading the weights. For
some more, the CPU kernel behind `x @ W.T` first copies the weights into another order; `W @ x.T`, the same sums, leaves
them where they are and takes about half as long. For as many rows as calls usually run side by side, it is faster still
as a batch of products with a block of `W` each: those are so small that the kernel copies nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# where these are faster with float32 and MKL on AVX-512
_COLUMNS_FROM, _COLUMNS_TO = 4, 128  # rows as columns
_BLOCKS_TO = 32  # of these, in blocks
_BLOCK = 64  # outputs of one block


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
    if columns.shape[1] <= _BLOCKS_TO and layer.weight.shape[0] >= _BLOCK:
        out = _in_blocks(layer.weight, columns)
        return (out if bias is None else out + bias[:, None]).t()
    if bias is None:
        return torch.mm(layer.weight, columns).t()
    return torch.addmm(bias[:, None], layer.weight, columns).t()


def _in_blocks(weight: Tensor, columns: Tensor) -> Tensor:
    """`weight @ columns`, block by block of the rows of `weight`."""
    count = weight.shape[0] // _BLOCK
    blocks = weight[: count * _BLOCK].view(count, _BLOCK, -1)
    out = torch.bmm(blocks, columns.expand(count, -1, -1)).view(-1, columns.shape[1])
    if len(out) == len(weight):
        return out
    return torch.cat([out, torch.mm(weight[len(out) :], columns)])


def in_columns(x: Tensor) -> bool:
    """Whether `x` are rows `[N, in]` that are better multiplied as columns."""
    few = x.dim() == 2 and _COLUMNS_FROM <= x.shape[0] <= _COLUMNS_TO
    return few and x.device.type == "cpu" and x.dtype == torch.float32


def fill_rows(rows: Tensor, count: int) -> Tensor:
    """`rows` `[n, ...]` with zeros after them: `[count, ...]`."""
    missing = count - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
