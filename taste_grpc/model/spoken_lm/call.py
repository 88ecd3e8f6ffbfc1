"""One running generation, and what a step makes of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from taste_grpc.model.spoken_lm.sampler import Action, Sampler, SamplerStep


@dataclass
class Generation:
    """The state of one running generation; it owns `slot` of a cache until it is done.

    Attributes:
        hidden: `[D]` newest hidden state, from which the next id is drawn.
        audio: `[A]` speech embedding of the word spoken last.
        pending: rows of the prompt's last words that are still to accompany new ones.
        word_id: index of the newest word, -1 before the first.
    """

    slot: int
    sampler: Sampler
    hidden: Tensor
    audio: Tensor
    pending: deque[Tensor]
    word_id: int = -1
    done: bool = False
    next_row: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class StepResult:
    """What one decode step made of one call.

    Attributes:
        sampled: ids and actions of the sampler.
        word_id: index of the word the text id belongs to (meaningful while the text goes on).
        text_logits: `[V]` raw scores the id was drawn from.
        latent: `[latent]` speech latent of the position.
    """

    sampled: SamplerStep
    word_id: int
    text_logits: Tensor
    latent: Tensor

    @property
    def is_text(self) -> bool:
        """Whether the text id belongs to the text (it does not in the last steps, which only fetch codes)."""
        return self.sampled.action in (Action.CONTINUE_AT_WORD_START, Action.CONTINUE_NOT_AT_WORD_START)

    @property
    def has_taste(self) -> bool:
        """Whether the step drew the codes of a word."""
        return self.sampled.taste_ids[0] != -1
