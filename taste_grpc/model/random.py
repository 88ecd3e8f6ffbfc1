"""Random numbers as functions of (seed, stream, absolute index).

Nothing here has state that advances, so a computation can be resumed, re-chunked
or moved to another process and still draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

_DRAWS_PER_BLOCK = 4  # one Philox4x64 counter value yields four 64-bit words


class Stream(IntEnum):
    """Independent sequences drawn from one seed."""

    TEXT = 1
    TASTE = 2
    SPEECH_UNIT = 3
    FLOW_NOISE = 4
    SOURCE_PHASE = 5
    SOURCE_NOISE = 6


class CounterRandom:
    """Counter-based random numbers (Philox4x64) for one `seed` (any int; taken modulo 2**64)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed % (1 << 64)

    def _raw(self, stream: Stream, block: int, count: int) -> npt.NDArray[np.uint64]:
        generator = np.random.Philox(key=np.array([self.seed, int(stream)], dtype=np.uint64), counter=block)
        raw: npt.NDArray[np.uint64] = generator.random_raw(count)
        return raw

    def uniforms(self, stream: Stream, start: int, count: int) -> npt.NDArray[np.float64]:
        """Numbers `start .. start+count-1` of `stream`, each in [0, 1)."""
        first_block, skip = divmod(start, _DRAWS_PER_BLOCK)
        raw = self._raw(stream, first_block, skip + count)[skip:]
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self, stream: Stream, index: int) -> float:
        """Number `index` of `stream`, in [0, 1)."""
        return float(self.uniforms(stream, index, 1)[0])

    def normals(self, stream: Stream, start_row: int, rows: int, width: int) -> npt.NDArray[np.float32]:
        """Rows `start_row .. start_row+rows-1` of an endless `[*, width]` float32 table of N(0, 1) draws."""
        pairs = (width + 1) // 2
        uniforms = self.uniforms(stream, start_row * 2 * pairs, rows * 2 * pairs).reshape(rows, 2, pairs)
        radius = np.sqrt(-2.0 * np.log1p(-uniforms[:, 0]))
        angle = 2.0 * np.pi * uniforms[:, 1]
        table = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        rows_f32: npt.NDArray[np.float32] = table[:, :width].astype(np.float32)
        return rows_f32


def pick(weights: Sequence[float] | npt.NDArray[np.floating], u: float) -> int:
    """Index drawn from non-negative, un-normalised `weights` by the uniform number `u` in [0, 1).

    The index is the number of cumulative sums (float64, in the given order) strictly below `u` times
    their total. An entry of weight zero is never chosen.
    """
    cumulative = np.cumsum(np.asarray(weights, dtype=np.float64))
    target = u * cumulative[-1]
    index = int(np.searchsorted(cumulative, target, side="left"))
    if target == 0.0:  # u = 0 would name a leading entry of weight zero
        index = int(np.searchsorted(cumulative, 0.0, side="right"))
    return min(index, len(cumulative) - 1)
