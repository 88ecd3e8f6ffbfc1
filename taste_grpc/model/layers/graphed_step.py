"""Decode steps replayed as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taste_grpc.model.layers.slot_storage import SlotStorage
from taste_grpc.model.layers.stepping import StaticPlaces, StaticStep

_log = logging.getLogger(__name__)

_LEAST_WINDOW = 256
_RUNS_BEFORE_CAPTURE = 2  # libraries set themselves up in the first runs, which a graph must not record


@dataclass(frozen=True)
class _Shape:
    rows: int
    window: int


@dataclass(frozen=True)
class _Recorded:
    """A graph and the memory it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    rows: Tensor
    places: Tensor
    out: Tensor


class GraphedStep:
    """A `RowStep` of few shapes: numbers of rows and windows are rounded up to the next of a handful.

    On CUDA, each shape is recorded as a graph when it is first needed (or by `warm_up`), and replayed ever after: one
    launch in place of hundreds. Where recording fails, and on the CPU, the same function is called as it is. With a
    cache of fixed shape there is one shape only, over the whole capacity. To be used on one thread.

    Args:
        step: the network's step over `cache`.
        cache: where the slots are.
        width: of the input rows, which are of `dtype`.
        dtype: of the input rows.
    """

    def __init__(self, step: StaticStep, cache: SlotStorage, width: int, dtype: torch.dtype) -> None:
        self._step, self._cache, self._width, self._dtype = step, cache, width, dtype
        slots, capacity = len(cache.lengths), cache.capacity
        self.batch_sizes = _doubling(1, slots) if cache.fixed is None else [cache.fixed.step_rows]
        self.windows = _doubling(_LEAST_WINDOW, capacity) if cache.fixed is None else [capacity]
        self._recorded: dict[_Shape, _Recorded | None] = {}
        self._pool: Any = None  # all graphs allocate from one, since no two run at once

    def warm_up(self) -> None:
        """Record every shape now, so that no call waits for it. Touches no slot's rows."""
        for rows in self.batch_sizes:
            for window in self.windows:
                self._recording(_Shape(rows, window))

    @torch.no_grad()
    def __call__(self, rows: Tensor, slots: Sequence[int]) -> Tensor:
        """See `RowStep`. Raises InvalidInputError when a slot is full."""
        lengths = [self._cache.lengths[slot] for slot in slots]
        for slot, length in zip(slots, lengths, strict=True):
            self._cache.claim(slot, length + 1)
        shape = _Shape(_at_least(len(slots), self.batch_sizes), _at_least(max(lengths) + 1, self.windows))
        places = self._places(shape.rows, slots, lengths)
        recorded = self._recording(shape)
        if recorded is None:
            device = self._cache.device
            out = self._run(self._filled(rows, shape.rows), places.to(device, non_blocking=True), shape.window)
        else:
            recorded.rows[: len(slots)].copy_(rows[: len(slots)])
            recorded.places.copy_(places, non_blocking=True)
            recorded.graph.replay()
            out = recorded.out.clone()  # the next replay writes there again
        for slot, length in zip(slots, lengths, strict=True):
            self._cache.lengths[slot] = length + 1
        return out[: len(slots)]

    def _places(self, count: int, slots: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Slots and positions `[2, B]` on the host; rows of nobody go to the spare position of slot 0."""
        idle = count - len(slots)
        places = [[*slots, *[0] * idle], [*lengths, *[self._cache.capacity] * idle]]
        return torch.tensor(places, pin_memory=self._cache.device.type == "cuda")

    def _filled(self, rows: Tensor, count: int) -> Tensor:
        filled = torch.zeros(count, self._width, dtype=self._dtype, device=self._cache.device)
        used = min(len(rows), count)
        filled[:used] = rows[:used]
        return filled

    def _run(self, rows: Tensor, places: Tensor, window: int) -> Tensor:
        return self._step(rows, StaticPlaces(places[0], places[1], window))

    def _recording(self, shape: _Shape) -> _Recorded | None:
        if shape not in self._recorded:
            self._recorded[shape] = self._record(shape)
        return self._recorded[shape]

    def _record(self, shape: _Shape) -> _Recorded | None:
        """A graph of one shape; None where there can be none."""
        if self._cache.device.type != "cuda":
            return None
        try:
            return self._capture(shape)
        except RuntimeError as error:
            torch.cuda.synchronize(self._cache.device)
            _log.warning("steps of %d rows run without a graph: %s", shape.rows, str(error).splitlines()[0])
            return None

    def _capture(self, shape: _Shape) -> _Recorded:
        device = self._cache.device
        rows = torch.zeros(shape.rows, self._width, dtype=self._dtype, device=device)
        places = self._places(shape.rows, [], []).to(device)
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_RUNS_BEFORE_CAPTURE):
                    self._run(rows, places, shape.window)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool):
                out = self._run(rows, places, shape.window)
        return _Recorded(graph, rows, places, out)


def _doubling(first: int, last: int) -> list[int]:
    """`first`, twice as much, and so on, and `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]


def _at_least(wanted: int, sizes: Sequence[int]) -> int:
    for size in sizes:
        if size >= wanted:
            return size
    raise ValueError(f"{wanted} are more than the {sizes[-1]} there can be")
