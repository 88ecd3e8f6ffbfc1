"""The ids a draw chooses from: what of sampling goes over the whole vocabulary, done for many calls at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taste_grpc.model.layers.transfer import Bits, to_host

_FIRST_COUNT = 64  # enough for every usual top_p; the search widens when it is not
_BLOCK = 64  # scores whose greatest one is compared first

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The best ids of one row of scores, best first; of equal scores the lower id comes first.

    `ids`, `logits` and `cumulative`, the probability of an id and of those before it among all ids, are `[k]`.
    """

    ids: Integers
    logits: Floats
    cumulative: Floats

    def kept(self, top_p: float) -> tuple[Integers, Floats]:
        """Ids and logits that top-p keeps.

        Every id whose inclusive cumulative probability exceeds `top_p` is dropped, the one that crosses the
        threshold too; but the best one always stays.
        """
        keep = self.cumulative <= top_p
        keep[0] = True
        return self.ids[keep], self.logits[keep]


def find_candidates(
    logits: Tensor, top_ps: Sequence[float], beside: Tensor | None = None
) -> tuple[list[Candidates], Bits | None]:
    """Candidates of each row of `logits` `[B, V]` float32, as many as top-p with that row's `top_ps` may keep.

    With a `top_p` of 0 the first candidate is the lowest id of the greatest score. `beside` `[B, n]` int32 comes along
    in the same transfer from the device and is returned.
    """
    values, ids = _best(logits, min(_FIRST_COUNT, logits.shape[1]))
    probabilities = logits.softmax(-1)
    parts = [values, probabilities.gather(1, ids), ids.int()]
    columns = to_host(parts if beside is None else [*parts, beside])
    found = [
        _candidates(ids, values, own)
        for values, own, ids in zip(
            columns[0].view(np.float32), columns[1].view(np.float32), columns[2].astype(np.int64), strict=True
        )
    ]
    for row, top_p in enumerate(top_ps):
        found[row] = _widened(found[row], logits[row], probabilities[row], top_p)
    return found, None if beside is None else columns[3]


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest `count` of each row `[B, V]` and their ids, best first.

    On the CPU only blocks that have one of the `count` greatest block maxima are looked at: no other block can hold
    one of the best.
    """
    rows, size = logits.shape
    blocks = size // _BLOCK
    if logits.device.type != "cpu" or blocks <= count:
        best = logits.topk(count, dim=-1)
        return best.values, best.indices
    whole = logits[:, : blocks * _BLOCK].view(rows, blocks, _BLOCK)
    chosen = whole.amax(-1).topk(count, dim=-1, sorted=False).indices  # [B, count]
    ids = (chosen[..., None] * _BLOCK + torch.arange(_BLOCK)).view(rows, -1)
    rest = torch.arange(blocks * _BLOCK, size).expand(rows, -1)
    ids = torch.cat([ids, rest], dim=1)
    best = logits.gather(1, ids).topk(count, dim=-1)
    return best.values, ids.gather(1, best.indices)


def _candidates(ids: Integers, values: Floats, probabilities: Floats) -> Candidates:
    if bool((values[1:] == values[:-1]).any()):
        ids = ids[np.lexsort((ids, -values))]
    return Candidates(ids, values, np.cumsum(probabilities, dtype=np.float64).astype(np.float32))


def _widened(found: Candidates, logits: Tensor, probabilities: Tensor, top_p: float) -> Candidates:
    """`found`, or as many more of the row `[V]` as it takes to say what top-p keeps."""
    size = logits.shape[0]
    if len(found.ids) == size or not _is_short(found, top_p):
        return found
    scores, shares = logits.cpu().numpy(), probabilities.cpu().numpy()
    falling = np.sort(scores)[::-1]
    shares_falling = np.sort(shares)[::-1]  # a greater score has no smaller share
    cumulative = np.cumsum(shares_falling, dtype=np.float64).astype(np.float32)
    kept = max(1, int(np.searchsorted(cumulative, np.float32(top_p), side="right")))
    ids = np.flatnonzero(scores >= falling[kept - 1])
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    return Candidates(ids, scores[ids], cumulative[: len(ids)])


def _is_short(found: Candidates, top_p: float) -> bool:
    """Whether ids that are not among `found` might be kept, or be of the same score as the last one that is."""
    kept = max(1, int(np.searchsorted(found.cumulative, np.float32(top_p), side="right")))
    return bool(found.logits[kept - 1] == found.logits[-1])
