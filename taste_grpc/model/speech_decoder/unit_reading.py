"""Reading what a run of units starts from into the cache, in pieces between which others may go first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.products import fill_rows
from taste_grpc.model.layers.rel_pos_cache import RelPosCache, SlotPass
from taste_grpc.model.layers.rel_pos_run import EncoderRun
from taste_grpc.model.layers.shapes import WHOLE, PieceSize

if TYPE_CHECKING:
    from taste_grpc.model.speech_decoder.decoder import SpeechDecoder


class UnitReading:
    """Embedded rows (a prompt, and units that are given) on their way into `slot`, after what it holds.

    Call `advance` until it returns True; then `log_probs` are there. Between two calls, other slots of the cache may
    be used at will. Cancelling is dropping it. The result does not depend on the size of the pieces but for rounding,
    and not at all in a cache of fixed shape.

    Args:
        decoder: the speech decoder.
        rows: `[T, prompt_width]`, at least one.
        cache: where keys and values are kept.
        slot: which slot of it; it is not emptied.
        piece: bounds of a piece.
    """

    def __init__(
        self, decoder: SpeechDecoder, rows: Tensor, cache: RelPosCache, slot: int, piece: PieceSize = WHOLE
    ) -> None:
        self._decoder, self._rows, self._cache, self._slot = decoder, rows, cache, slot
        self._layers = piece.layers
        self._grid = piece.rows if cache.fixed is None else cache.fixed.piece_rows
        self._read = 0
        self._run: EncoderRun | None = None
        self._log_probs: Tensor | None = None

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities `[1, units + 1]` of the unit after the last row; only once everything is read."""
        if self._log_probs is None:
            raise RuntimeError("the rows have not been read to their end yet")
        return self._log_probs

    @torch.no_grad()
    def advance(self, abort: AbortCheck = never_abort) -> bool:
        """Read one piece; returns whether everything is read. `abort` is called before each layer."""
        if self._log_probs is not None:
            return True
        start, fixed = self._cache.lengths[self._slot], self._cache.fixed
        count = len(self._rows) - self._read
        if self._grid is not None:
            count = min(count, self._grid - start % self._grid)
        if self._run is None:
            span = SlotPass(self._cache, [self._slot], [count], None if fixed is None else fixed.piece_rows)
            self._run = self._decoder.llm.run(fill_rows(self._rows[self._read :][:count], span.rows), span)
        if not self._run.advance(self._layers, abort):
            return False
        run, self._run = self._run, None
        self._read += count
        if self._read == len(self._rows):
            self._log_probs = self._decoder.log_probs(run.out[count - 1 : count])
        return self._log_probs is not None
