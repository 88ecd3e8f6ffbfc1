"""Reading a prompt into the cache, in pieces between which others may go first."""

from __future__ import annotations

from collections import deque

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
    may be used at will. Cancelling is dropping it. The result does not depend on the size of the pieces but for
    rounding, and not at all in a cache of fixed shape.

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
            self._run = self._next_run()
        if not self._run.advance(self._layers, abort):
            return False
        run, self._run = self._run, None
        if self.rows_left == 0:
            last = (self._prompt.length - 1) % (self._grid or self._prompt.length)  # in the last piece
            self._generation = Generation(
                slot=self._slot,
                sampler=self._sampler,
                hidden=run.hidden[last],
                audio=self._lm.pad_audio_unit_embed.float(),
                pending=deque(self._prompt.pending_audio),
            )
        return self._generation is not None

    def _next_run(self) -> LayerRun:
        start, fixed = self._cache.lengths[self._slot], self._cache.fixed
        stop = self._prompt.length if self._grid is None else min(start + self._grid, self._prompt.length)
        filled = None if fixed is None else fixed.piece_rows
        span = SlotPass(self._cache, [self._slot], [stop - start], filled)
        return self._lm.run(self._prompt.source.piece(start, stop, filled), span, rowwise=fixed is not None)
