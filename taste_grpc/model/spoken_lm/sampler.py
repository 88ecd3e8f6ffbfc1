"""One call's sampler: which text id comes next, when a word is complete, when to stop.

Source: checkpoint layout 4.9. A text id is drawn at every step; the codes of a word are drawn
`delay` words later, at the start of the next one, so the step after the ending token draws one
more text id that is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.arguments import check_integer, check_number
from taste_grpc.model.layers.transfer import Bits, to_device
from taste_grpc.model.random import CounterRandom, Stream, pick
from taste_grpc.model.spoken_lm.candidates import Candidates, Floats, Integers, find_candidates
from taste_grpc.model.text.tokens import TokenSets

BANNED_LOGIT = -100000.0
_LOWEST_TEMPERATURE = 1e-30  # greedy all the same; below, logits leave the range of float32


class Action(IntEnum):
    """What a step did to the text."""

    CONTINUE_AT_WORD_START = 0
    CONTINUE_NOT_AT_WORD_START = 1
    WAIT_FOR_TASTE = 2
    TERMINATE = 3


class TasteAction(IntEnum):
    """Which speech row accompanies the id of a step into the next one."""

    WAIT = 0
    USE_PREFIX = 1
    USE_PREFIX_IGNORE = 2
    SAMPLE = 3


class EndReason(Enum):
    """What made a generation end."""

    STOP_ID = "stop_id"
    SENTENCE_END = "sentence_end"
    MAX_WORDS = "max_words"
    MAX_LENGTH = "max_length"


class Draws(Protocol):
    """Where uniform numbers come from; both are asked at most once per step and codebook."""

    def text(self, step: int) -> float:
        """The number of the text draw of `step`."""
        ...

    def taste(self, step: int, codebook: int) -> float:
        """The number of the draw from `codebook` in `step`."""
        ...


class SeededDraws:
    """Draws that are functions of (seed, step)."""

    def __init__(self, seed: int, codebooks: int) -> None:
        self._random = CounterRandom(seed)
        self._codebooks = codebooks

    def text(self, step: int) -> float:
        """The number of the text draw of `step`."""
        return self._random.uniform(Stream.TEXT, step)

    def taste(self, step: int, codebook: int) -> float:
        """The number of the draw from `codebook` in `step`."""
        return self._random.uniform(Stream.TASTE, step * self._codebooks + codebook)


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one generation; defaults are those of the published model.

    `stop_id` ends the text and is exempt from the ban. `max_length` bounds the number of new text
    ids (None: no bound, as published). `stop_completes_word` lets a stop id that starts no word fetch
    the codes of the last word all the same (the published model loses them). `text_top_p` 0 means
    greedy, and then neither temperature nor repetition penalty has an effect.

    Raises InvalidInputError or InvalidTypeError naming the setting.
    """

    text_top_p: float = 0.3
    taste_top_p: float = 0.0
    text_temperature: float = 0.5
    repetition_penalty: float = 1.1
    extra_words: int = 32
    stop_id: int | None = None
    max_length: int | None = None
    stop_completes_word: bool = False

    def __post_init__(self) -> None:
        for name in ("text_top_p", "taste_top_p", "text_temperature", "repetition_penalty"):
            check_number(name, getattr(self, name))
        check_integer("extra_words", self.extra_words)
        for name in ("stop_id", "max_length"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        for name in ("text_top_p", "taste_top_p"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidInputError(name, f"{getattr(self, name)} is not between 0 and 1")
        if not 0.0 < self.text_temperature <= 100.0:
            raise InvalidInputError("text_temperature", f"{self.text_temperature} is not above 0 and at most 100")
        if not 0.0 < self.repetition_penalty <= 100.0:
            raise InvalidInputError("repetition_penalty", f"{self.repetition_penalty} is not above 0 and at most 100")
        if self.extra_words < 0:
            raise InvalidInputError("extra_words", f"{self.extra_words} is negative")
        if self.max_length is not None and self.max_length < 1:
            raise InvalidInputError("max_length", f"{self.max_length} is less than 1")

    @property
    def max_words(self) -> int:
        """Word count at which the text is ended."""
        return 3 * self.extra_words


@dataclass(frozen=True)
class SamplerStep:
    """Outcome of one step: `taste_ids` has one entry per codebook, all -1 when none was drawn."""

    text_id: int
    taste_ids: tuple[int, ...]
    action: Action
    taste_action: TasteAction


def ban(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """`logits` `[B, V]` as float32 with each row's banned ids, but not its own stop id, at BANNED_LOGIT at most."""
    sets = samplers[0].sets
    if any(sampler.sets is not sets for sampler in samplers):
        raise ValueError("calls of one batch must share their token sets")
    scores = logits.float()
    banned = torch.minimum(scores, sets.ceiling_on(logits.device, BANNED_LOGIT))
    stops = [(row, own.params.stop_id) for row, own in enumerate(samplers) if own.params.stop_id is not None]
    if stops:
        rows, ids = to_device(stops, logits.device).unbind(1)
        banned[rows, ids] = scores[rows, ids]
    return banned


def draw_texts(
    samplers: Sequence[Sampler], logits: Tensor, beside: Tensor | None = None
) -> tuple[list[int], Bits | None]:
    """The next text id of each sampler given raw `logits` `[B, V]`; nothing is advanced.

    `beside` `[B, n]` int32 is fetched from the device together with the candidates, and returned.
    """
    top_ps = [sampler.params.text_top_p for sampler in samplers]
    found, fetched = find_candidates(ban(logits, samplers), top_ps, beside)
    return [sampler.choose(own) for sampler, own in zip(samplers, found, strict=True)], fetched


class Sampler:
    """The state machine of one generation.

    Args:
        params: settings of the call.
        sets: id sets of the tokenizer.
        delay: words between a word and the id that carries its codes (1 in the published model).
        has_prefix: the prompt ends in speech whose last rows accompany the first new words.
        history: text ids of the prompt, for the repetition penalty.
        draws: source of uniform numbers.
    """

    def __init__(
        self,
        params: SamplingParams,
        sets: TokenSets,
        *,
        delay: int,
        has_prefix: bool,
        history: Iterable[int],
        draws: Draws,
    ) -> None:
        self.params = params
        self.sets = sets
        self.delay = delay
        self.has_prefix = has_prefix
        self.history = set(history)
        self.draws = draws
        self.steps = 0
        self.words = 0
        self.end_reason: EndReason | None = None
        self._flags = 0  # true word-start flags so far
        self._countdown: int | None = None
        self._text_ids = 0

    @property
    def ended(self) -> bool:
        """Whether no further text is wanted; codes of the last word may still be due."""
        return self.end_reason is not None

    def text_probabilities(self, candidates: Candidates) -> tuple[Integers, Floats]:
        """Ids (ascending) that can be drawn next and their probabilities, given the candidates that are not banned."""
        params = self.params
        ids, values = candidates.kept(params.text_top_p)
        order = np.argsort(ids)
        ids, values = ids[order], values[order]
        if params.repetition_penalty != 1.0:
            penalty = np.float32(params.repetition_penalty)
            seen = self._seen(ids)
            own = values[seen]
            values[seen] = np.where(own < 0, own * penalty, own / penalty)
        return ids, _softmax(values / np.float32(max(params.text_temperature, _LOWEST_TEMPERATURE)))

    def _seen(self, ids: Integers) -> Integers:
        """Places of those of `ids` (ascending) that are in the history."""
        if len(ids) <= len(self.history):
            return np.flatnonzero([text_id in self.history for text_id in ids.tolist()])
        known = np.fromiter(self.history, np.int64, len(self.history))
        places = np.searchsorted(ids, known)
        within = places < len(ids)
        places, known = places[within], known[within]
        found: Integers = places[ids[places] == known]
        return found

    def choose(self, candidates: Candidates) -> int:
        """The next text id."""
        if self.params.text_top_p == 0.0:
            return int(candidates.ids[0])
        ids, probabilities = self.text_probabilities(candidates)
        return int(ids[pick(probabilities, self.draws.text(self.steps))])

    def draw_text(self, logits: Tensor) -> int:
        """The next text id given raw `logits` `[V]`."""
        return draw_texts([self], logits[None])[0][0]

    def taste_probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `[Q, K]` of the codes given `logits` `[Q, K]`, after top-p."""
        top_p = self.params.taste_top_p
        rows = torch.zeros(logits.shape, dtype=torch.float32)
        found, _ = find_candidates(logits.float(), [top_p] * len(rows))
        for row, candidates in zip(rows, found, strict=True):
            ids, values = candidates.kept(top_p)
            row[torch.from_numpy(ids)] = torch.from_numpy(_softmax(values))
        return rows

    def draw_taste(self, logits: Tensor) -> tuple[int, ...]:
        """One code per codebook given `logits` `[Q, K]`."""
        if self.params.taste_top_p == 0.0:
            return tuple(logits.argmax(-1).tolist())
        rows = self.taste_probabilities(logits).numpy()
        return tuple(pick(np.asarray(row), self.draws.taste(self.steps, q)) for q, row in enumerate(rows))

    def step(self, text_logits: Tensor, taste_logits: Tensor) -> SamplerStep:
        """Advance by one id.

        Args:
            text_logits: `[V]`, raw.
            taste_logits: `[Q, K]`, raw.
        """
        return self.advance(self.draw_text(text_logits), lambda: self.draw_taste(taste_logits), taste_logits.shape[0])

    def advance(self, text_id: int, codes: Callable[[], tuple[int, ...]], codebooks: int) -> SamplerStep:
        """Advance by `text_id`, which `draw_texts` drew.

        Args:
            text_id: the id.
            codes: gives the codes of a word, one per codebook; asked only when they are due.
            codebooks: number of codes of a word.
        """
        self.history.add(text_id)
        waiting, at_start = self._advance_text(text_id)
        started = self._flags > self.delay
        taste_ids = codes() if started and at_start else (-1,) * codebooks
        self.steps += 1
        return SamplerStep(text_id, taste_ids, self._action(waiting, at_start), self._taste_action(started, at_start))

    def _advance_text(self, text_id: int) -> tuple[bool, bool]:
        """Update the counters; returns (waiting for the last codes, the id starts a word)."""
        params = self.params
        waiting = self.ended
        if self.words == 0:
            at_start = True
        elif waiting:
            self._countdown = self.delay if self._countdown is None else self._countdown
            self._countdown -= 1
            at_start = True
        else:
            is_stop = params.stop_completes_word and text_id == params.stop_id
            at_start = is_stop or self.sets.is_word_start(text_id)
        self._flags += at_start
        if not waiting:
            self._text_ids += 1
            self.end_reason = self._end_reason(text_id)
        # while codes are awaited, stop ids drawn again and again would hold up the end for ever (delay > 1)
        awaited = waiting and params.stop_completes_word
        if params.stop_id is not None and text_id == params.stop_id and not awaited:
            self.end_reason = self.end_reason if waiting else EndReason.STOP_ID
            self._countdown = self.delay - 1
            waiting = True
        self.words += at_start
        return waiting, at_start

    def _end_reason(self, text_id: int) -> EndReason | None:
        if self.words >= self.params.extra_words and self.sets.is_sentence_end(text_id):
            return EndReason.SENTENCE_END
        if self.words >= self.params.max_words:
            return EndReason.MAX_WORDS
        if self.params.max_length is not None and self._text_ids >= self.params.max_length:
            return EndReason.MAX_LENGTH
        return None

    def _action(self, waiting: bool, at_start: bool) -> Action:
        if self._countdown == 0:
            return Action.TERMINATE
        if waiting:
            return Action.WAIT_FOR_TASTE
        return Action.CONTINUE_AT_WORD_START if at_start else Action.CONTINUE_NOT_AT_WORD_START

    def _taste_action(self, started: bool, at_start: bool) -> TasteAction:
        if started:
            return TasteAction.SAMPLE
        if self.has_prefix:
            return TasteAction.USE_PREFIX if at_start else TasteAction.USE_PREFIX_IGNORE
        return TasteAction.WAIT


def _softmax(values: Floats) -> Floats:
    weights = np.exp((values - values.max()).astype(np.float64))
    probabilities: Floats = (weights / weights.sum()).astype(np.float32)
    return probabilities
