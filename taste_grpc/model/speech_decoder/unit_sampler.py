"""Choosing speech units from the unit decoder's log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taste_grpc.model.layers.transfer import to_host
from taste_grpc.model.random import CounterRandom, Stream, pick

TOP_K = 25
_ATTEMPTS = 64  # draws reserved for one unit


def candidates(log_probs: Tensor, top_k: int = TOP_K) -> tuple[Tensor, Tensor]:
    """Probabilities (descending, not renormalised) and ids of the best `top_k` of `[B, V]`: both `[B, k]`."""
    log_probs = log_probs.float()
    ids = log_probs.topk(min(top_k, log_probs.shape[-1]), dim=-1).indices
    return torch.softmax(log_probs, dim=-1).gather(-1, ids), ids


def draw(
    probabilities: npt.NDArray[np.floating],
    ids: npt.NDArray[np.integer],
    uniforms: Iterable[float],
    *,
    rejected: int | None = None,
) -> int:
    """One of `ids` (best first) drawn with the first of `uniforms`, with the next as long as it is `rejected`.

    When the uniforms are used up, the last one draws from the distribution without the rejected id, which is
    what going on for ever would give. When no other id has any probability, the best other id is taken.
    """
    weights = probabilities.astype(np.float64)
    allowed = weights if rejected is None else np.where(ids == rejected, 0.0, weights)
    if allowed.sum() == 0.0:
        return int(ids[ids != rejected][0])
    u = 0.0
    for u in uniforms:
        chosen = int(ids[pick(weights, u)])
        if chosen != rejected:
            return chosen
    return int(ids[pick(allowed, u)])


@dataclass(frozen=True)
class UnitSampler:
    """How the units of one stream are chosen.

    Every draw is a function of (`seed`, absolute index of the unit in its stream, attempt), so a stream that
    is resumed, or decoded in other company, draws the same numbers.

    Attributes:
        seed: any integer.
        greedy: take the most probable unit instead of drawing.
        top_k: units a draw chooses from.
    """

    seed: int = 0
    greedy: bool = False
    top_k: int = TOP_K

    def uniforms(self, unit_index: int) -> Iterator[float]:
        """The numbers unit `unit_index` is drawn with, one per attempt."""
        random = CounterRandom(self.seed)
        for attempt in range(_ATTEMPTS):
            yield random.uniform(Stream.SPEECH_UNIT, unit_index * _ATTEMPTS + attempt)


@dataclass(frozen=True)
class UnitChoice:
    """What one row of a step asks for.

    Attributes:
        sampler: how to choose.
        unit_index: absolute index, in its stream, of the unit to choose.
        rejected: id that may not be chosen (end of speech, below the least length); None for any.
    """

    sampler: UnitSampler
    unit_index: int
    rejected: int | None = None


def choose_units(log_probs: Tensor, choices: Sequence[UnitChoice]) -> list[int]:
    """One unit for each row of `[B, V]` log-probabilities."""
    width = max(2, *(choice.sampler.top_k for choice in choices))
    probabilities, ids = candidates(log_probs, width)
    bits, indices = to_host([probabilities, ids.int()])
    weights = bits.view(np.float32)
    return [_choose(weights[row], indices[row], choice) for row, choice in enumerate(choices)]


def _choose(probabilities: npt.NDArray[np.floating], ids: npt.NDArray[np.integer], choice: UnitChoice) -> int:
    sampler = choice.sampler
    if sampler.greedy:
        return int(ids[ids != choice.rejected][0]) if choice.rejected is not None else int(ids[0])
    weights = np.where(np.arange(len(ids)) < sampler.top_k, probabilities, 0.0)
    return draw(weights, ids, sampler.uniforms(choice.unit_index), rejected=choice.rejected)
