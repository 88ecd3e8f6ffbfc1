"""Reading a prompt into the cache, in pieces between which others may go first."""

from __future__ import annotations

from collections import deque

import torch

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.shapes import WHOLE, PieceSize
from taste_grpc.model.spoken_lm.call import Generation
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots, SlotPass
from taste_grpc.model.spoken_lm.llama_step import LayerRun
from taste_grpc.model.spoken_lm.network import SpokenLM
from taste_grpc.model.spoken_lm.prompt import Prompt
from taste_grpc.model.spoken_lm.sampler import Draws, Sampler, SamplingParams
from taste_grpc.model.text.tokens import TokenSets


class PromptReading:
    """A prompt on its way into `slot`, which is emptied first.

    Call `advance` until it returns True; then `generation` can be stepped. Between two calls, other slots of the cache
    may be used at will. Cancelling is dropping it, and resetting the slot before anybody else uses it. The result does
    not depend on the size of the pieces but for rounding, and not at all in a cache of fixed shape.

    Pieces of several prompts that wait for their turns at the same time are read together, as far as they make up one
    piece: reading the weights takes most of the time of a few rows. Whoever has a turn takes all of them further.

    Args:
        lm: the language model.
        cache: where its keys and values are kept.
        slot: which slot of it.
        prompt: what to read.
        params: settings of the generation.
        sets: id sets of the tokenizer.
        draws: its uniform numbers.
        piece: bounds of a piece.
    """

    def __init__(
        self,
        lm: SpokenLM,
        cache: KeyValueSlots,
        slot: int,
        prompt: Prompt,
        params: SamplingParams,
        sets: TokenSets,
        draws: Draws,
        piece: PieceSize = WHOLE,
    ) -> None:
        self._lm, self._cache, self._slot, self._prompt = lm, cache, slot, prompt
        self._layers = piece.layers
        self._grid = piece.rows if cache.fixed is None else cache.fixed.piece_rows
        self._run: LayerRun | None = None
        self._last = 0  # row of the run that is the last one of the piece
        self._generation: Generation | None = None
        self._sampler = Sampler(
            params,
            sets,
            delay=lm.config.delay,
            has_prefix=prompt.has_prefix,
            history=prompt.history,
            draws=draws,
        )
        cache.reset(slot)
        cache.unread[slot] = self

    @property
    def rows_left(self) -> int:
        """Rows that have not been read yet."""
        return self._prompt.length - self._cache.lengths[self._slot] if self._generation is None else 0

    @property
    def generation(self) -> Generation:
        """The state to step from; only once everything is read."""
        if self._generation is None:
            raise RuntimeError("the prompt has not been read to its end yet")
        return self._generation

    def advance(self, abort: AbortCheck = never_abort) -> bool:
        """Read one piece; returns whether everything is read. `abort` is called before each layer."""
        if self._generation is not None:
            return True
        if self._run is None:
            self._begin()
        run = self._run
        assert run is not None
        if not run.advance(self._layers, abort):
            return False
        self._run = None
        if self.rows_left:
            self._cache.unread[self._slot] = self
        else:
            self._generation = Generation(
                slot=self._slot,
                sampler=self._sampler,
                hidden=run.hidden[self._last],
                audio=self._lm.pad_audio_unit_embed.float(),
                pending=deque(self._prompt.pending_audio),
            )
        return self._generation is not None

    def _begin(self) -> None:
        """Begin the next piece, and those of others that fit."""
        fixed = self._cache.fixed
        together = [self, *self._others()]
        filled = None if fixed is None else fixed.piece_rows
        span = SlotPass(self._cache, [own._slot for own in together], [own._next_rows for own in together], filled)
        rows = [own._prompt.source.piece(own._start, own._start + own._next_rows, filled) for own in together]
        run = self._lm.run(rows[0] if len(rows) == 1 else torch.cat(rows), span, rowwise=fixed is not None)
        for own, (_, end, _) in zip(together, span.spans, strict=True):
            own._run, own._last = run, end - 1
            self._cache.unread.pop(own._slot, None)

    def _others(self) -> list[PromptReading]:
        """Those whose next pieces fit beside this one's; none when all are read whole or in a fixed shape."""
        if self._grid is None or self._cache.fixed is not None:
            return []
        room, others = self._grid - self._next_rows, []
        for own in list(self._cache.unread.values()):
            fits = own._next_rows <= room and own._start + own._next_rows <= self._cache.capacity
            if own is not self and own._lm is self._lm and fits:
                others.append(own)
                room -= own._next_rows
        return others

    @property
    def _start(self) -> int:
        return self._cache.lengths[self._slot]

    @property
    def _next_rows(self) -> int:
        """Rows of the next piece."""
        return self.rows_left if self._grid is None else min(self._grid, self.rows_left)
