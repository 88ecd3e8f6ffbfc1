"""Rows on their way through the blocks of a rel-pos encoder, as many blocks at a time as the caller likes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.rel_pos_cache import SlotPass
from taste_grpc.model.layers.sinusoids import sinusoids

if TYPE_CHECKING:
    from taste_grpc.model.layers.rel_pos import RelPosEncoder


class WholeRun:
    """All rows of some inputs on their way through the blocks; see `RelPosEncoder.forward`."""

    def __init__(self, encoder: RelPosEncoder, x: Tensor, lengths: Tensor | None) -> None:
        rows = x.shape[1]
        steps = torch.arange(rows, device=x.device)
        self._visible: Tensor | None = None
        if encoder.config.causal:  # a valid row never looks at the padding to its right
            self._visible = (steps[None, :] <= steps[:, None])[None, None]
            distances = rows - 1 - steps
        else:
            distances = rows - 1 - torch.arange(2 * rows - 1, device=x.device)
            if lengths is not None:
                self._visible = (steps[None, :] < lengths.clamp(min=1)[:, None])[:, None, None, :]
        self._encoder = encoder
        self._next = 0
        with torch.no_grad():
            self._x: Tensor = encoder.embed(x)
            self._table = sinusoids(distances, encoder.config.width, self._x.dtype)

    @torch.no_grad()
    def advance(self, layers: int | None = None, abort: AbortCheck = never_abort) -> bool:
        """Go through the next `layers` (None: all that are left); returns whether it is done."""
        count = self._encoder.config.layers
        stop = count if layers is None else min(self._next + layers, count)
        for index in range(self._next, stop):
            abort()
            self._x = self._encoder.encoders[index](self._x, self._table, self._visible)
            self._next = index + 1
        return self._next == count

    @property
    def out(self) -> Tensor:
        """The encoded rows `[B, T, width]`. Only once it is done."""
        if self._next < self._encoder.config.layers:
            raise RuntimeError("the rows have not been through every block yet")
        with torch.no_grad():
            out: Tensor = self._encoder.after_norm(self._x)
        return out


class EncoderRun:
    """New rows of some streams on their way through the blocks, as many blocks at a time as the caller likes.

    Between two goes other runs may use the same cache, on other slots. The slots grow when the last block is done; a
    run that is dropped before leaves them as they were.
    """

    def __init__(self, encoder: RelPosEncoder, x: Tensor, run: SlotPass) -> None:
        self._encoder, self._run = encoder, run
        self._next = 0
        with torch.no_grad():
            self._x: Tensor = encoder.embed(x)
            self._positional = encoder.positional_keys().upto(max(end for _, _, end in run.spans))

    @property
    def done(self) -> bool:
        """Whether the rows have been through every block."""
        return self._next > self._encoder.config.layers

    @torch.no_grad()
    def advance(self, layers: int | None = None, abort: AbortCheck = never_abort) -> bool:
        """Go through the next `layers` (None: all that are left); returns `done`. `abort` is called before each."""
        count = self._encoder.config.layers
        stop = count if layers is None else min(self._next + layers, count)
        for index in range(self._next, stop):
            abort()
            layer: Any = self._encoder.encoders[index]
            self._x = layer.extend(self._x, partial(self._attend, layer.self_attn, index))
            self._next = index + 1
        if self._next == count:
            self._x = self._encoder.after_norm(self._x)
            self._run.commit()
            self._next += 1
        return self.done

    @property
    def out(self) -> Tensor:
        """The new rows `[run.rows, width]`. Only once it is done."""
        if not self.done:
            raise RuntimeError("the rows have not been through every block yet")
        return self._x

    def _attend(self, attention: Any, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._run.store(index, key, value)
        positional, known = self._positional[index], self._positional.shape[2]
        mixed = [
            attention.mix(query[first:end], *self._run.window(index, k), positional.narrow(1, known - window, window))
            for k, (first, end, window) in enumerate(self._run.spans)
        ]
        if self._run.used < self._run.rows:
            mixed.append(torch.zeros_like(query[self._run.used :]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
