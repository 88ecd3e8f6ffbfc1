"""Generation: prompts, and one decode step over a batch of calls.

Source: checkpoint layout 4.9 and 4.10. A new text id costs one forward pass of one row per call;
what came before is in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.rvq import ResidualVQ
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.network import SpokenLM, delayed_sources, speech_rows
from taste_grpc.model.spoken_lm.sampler import Action, Draws, Sampler, SamplerStep, SamplingParams, TasteAction
from taste_grpc.model.text.tokens import TokenSets

_TASTE_LOGIT = 1000.0  # what the published model gives the chosen code; all others get 0


@dataclass(frozen=True)
class Prompt:
    """What a generation starts from.

    Attributes:
        rows: `[T, D]` float32 input rows.
        history: text ids that count for the repetition penalty.
        pending_audio: speech embeddings `[A]` for the first new words, when the prompt ends in speech.
    """

    rows: Tensor
    history: tuple[int, ...]
    pending_audio: tuple[Tensor, ...] = ()

    @property
    def has_prefix(self) -> bool:
        """Whether the prompt ends in speech that goes on."""
        return bool(self.pending_audio)


def zero_prompt(lm: SpokenLM) -> Prompt:
    """Nothing but the opening id."""
    sos = torch.tensor([lm.config.sos_id], device=lm.device)
    return Prompt(lm.embed_text(sos), (lm.config.sos_id,))


def text_prompt(lm: SpokenLM, text_ids: Sequence[int]) -> Prompt:
    """Plain text to go on from: no opening id, no speech (as published)."""
    ids = torch.tensor(list(text_ids), device=lm.device)
    return Prompt(lm.embed_text(ids), tuple(text_ids))


def _spoken_rows(
    lm: SpokenLM, codebooks: ResidualVQ, text_ids: Sequence[int], word_ids: Sequence[int], taste_rows: Tensor
) -> tuple[Tensor, Tensor]:
    audio = speech_rows(
        taste_rows.to(lm.device), word_ids, lm.pad_audio_unit_embed, lm.config.delay, codebooks.output_from_indices
    )
    prompt = lm.prompt(torch.tensor(list(text_ids), device=lm.device), audio)
    return prompt.rows[: 1 + len(text_ids)], audio[len(text_ids) :]


def audio_prompt(
    lm: SpokenLM, codebooks: ResidualVQ, text_ids: Sequence[int], word_ids: Sequence[int], taste_rows: Tensor
) -> Prompt:
    """Speech to go on from. `taste_rows` `[L, Q]` with each word's row at its first id."""
    rows, pending = _spoken_rows(lm, codebooks, text_ids, word_ids, taste_rows)
    return Prompt(rows, tuple(text_ids), tuple(pending))


def instruct_prompt(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    prefix_ids: Sequence[int],
    text_ids: Sequence[int],
    word_ids: Sequence[int],
    taste_rows: Tensor,
    suffix_ids: Sequence[int],
) -> Prompt:
    """Speech between two plain texts.

    As published, the first spoken id is left out of the penalty history and the last word's row is
    never heard.
    """
    rows, _ = _spoken_rows(lm, codebooks, text_ids, word_ids, taste_rows)
    before, after = (torch.tensor(list(ids), dtype=torch.long, device=lm.device) for ids in (prefix_ids, suffix_ids))
    history = (*prefix_ids, *tuple(text_ids)[1:], *suffix_ids)
    return Prompt(torch.cat([lm.embed_text(before), rows[1:], lm.embed_text(after)]), history)


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


def start_generations(
    lm: SpokenLM,
    cache: KeyValueSlots,
    slots: Sequence[int],
    prompts: Sequence[Prompt],
    params: Sequence[SamplingParams],
    draws: Sequence[Draws],
    sets: TokenSets,
    abort: AbortCheck = never_abort,
) -> list[Generation]:
    """Read the prompts into their (reset) slots; returns the states to step from."""
    lengths = [prompt.rows.shape[0] for prompt in prompts]
    rows = torch.nn.utils.rnn.pad_sequence([prompt.rows for prompt in prompts], batch_first=True)
    for slot in slots:
        cache.reset(slot)
    hidden = lm(rows, cache, slots, lengths, abort)
    return [
        Generation(
            slot=slot,
            sampler=Sampler(
                own_params,
                sets,
                delay=lm.config.delay,
                has_prefix=prompt.has_prefix,
                history=prompt.history,
                draws=own_draws,
            ),
            hidden=hidden[i, lengths[i] - 1],
            audio=lm.pad_audio_unit_embed.float(),
            pending=deque(prompt.pending_audio),
        )
        for i, (slot, prompt, own_params, own_draws) in enumerate(zip(slots, prompts, params, draws, strict=True))
    ]


def decode_step(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    cache: KeyValueSlots,
    generations: Sequence[Generation],
    abort: AbortCheck = never_abort,
) -> list[StepResult]:
    """Draw one id for each of `generations` (none of them done) and feed it back.

    The cost of a step does not depend on how many came before, but for the keys it looks at.
    """
    hidden = torch.stack([generation.hidden for generation in generations])  # [B, D]
    text_logits = lm.text_logits(hidden)  # [B, V]
    latents = lm.taste_latent(hidden)  # [B, latent]
    codes = codebooks.indices_from_code(latents)  # [B, Q]
    taste_logits = torch.nn.functional.one_hot(codes, codebooks.config.codebook_size).float() * _TASTE_LOGIT
    results = []
    for i, generation in enumerate(generations):
        sampled = generation.sampler.step(text_logits[i], taste_logits[i])
        if sampled.action == Action.CONTINUE_AT_WORD_START:
            generation.word_id += 1
        generation.done = sampled.action == Action.TERMINATE
        results.append(StepResult(sampled, generation.word_id, text_logits[i], latents[i]))
    _feed_back(lm, codebooks, cache, generations, [result.sampled for result in results], abort)
    return results


def _feed_back(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    cache: KeyValueSlots,
    generations: Sequence[Generation],
    steps: Sequence[SamplerStep],
    abort: AbortCheck,
) -> None:
    going = [(generation, step) for generation, step in zip(generations, steps, strict=True) if not generation.done]
    if not going:
        return
    text = lm.embed_text(torch.tensor([step.text_id for _, step in going], device=lm.device))
    audio = torch.stack([_accompanying_audio(lm, codebooks, generation, step) for generation, step in going])
    rows = lm.fuse(audio, text)
    hidden = lm(rows[:, None], cache, [generation.slot for generation, _ in going], abort=abort)
    for i, (generation, _) in enumerate(going):
        generation.next_row = rows[i]
        generation.hidden = hidden[i, 0]


def _accompanying_audio(lm: SpokenLM, codebooks: ResidualVQ, generation: Generation, step: SamplerStep) -> Tensor:
    """The speech embedding `[A]` that is fused with a step's text id."""
    if step.taste_action == TasteAction.WAIT:
        return lm.pad_audio_unit_embed.float()
    if step.taste_action == TasteAction.SAMPLE and step.taste_ids[0] != -1:
        indices = torch.tensor(step.taste_ids, device=lm.device)
        generation.audio = codebooks.output_from_indices(indices).float()
    elif step.taste_action == TasteAction.USE_PREFIX and generation.pending:
        generation.audio = generation.pending.popleft()
    return generation.audio


@dataclass
class GeneratedText:
    """The outcome of a whole generation, in the published form.

    Attributes:
        text_ids: N ids, the stop id not among them.
        word_ids: N word indices.
        taste_rows: one row of codes per step that reported some, -1 rows included.
        steps: every step, in order.
    """

    text_ids: list[int] = field(default_factory=list)
    word_ids: list[int] = field(default_factory=list)
    taste_rows: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[StepResult] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        """Take in one step."""
        self.steps.append(result)
        if result.is_text:
            self.text_ids.append(result.sampled.text_id)
            self.word_ids.append(result.word_id)
        if result.sampled.taste_action == TasteAction.SAMPLE:
            self.taste_rows.append(result.sampled.taste_ids)


def generate_all(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    prompt: Prompt,
    params: SamplingParams,
    sets: TokenSets,
    draws: Draws,
    *,
    row_sink: list[Tensor] | None = None,
    max_steps: int = 4096,
    abort: AbortCheck = never_abort,
) -> GeneratedText:
    """Run one generation to its end.

    Args:
        row_sink: receives every input row fed after the prompt.
        max_steps: bound of the text when `params` has none; one that never starts a word would not end.
    """
    if params.max_length is None:
        params = replace(params, max_length=max_steps)
    limit = (params.max_length or max_steps) + lm.config.delay
    cache = lm.new_cache(slots=1, capacity=prompt.rows.shape[0] + limit + 1)
    (generation,) = start_generations(lm, cache, [0], [prompt], [params], [draws], sets, abort)
    outcome = GeneratedText()
    for _ in range(limit + 1):
        abort()
        (result,) = decode_step(lm, codebooks, cache, [generation], abort)
        outcome.add(result)
        if result.sampled.action == Action.TERMINATE:
            break
        if row_sink is not None and generation.next_row is not None:
            row_sink.append(generation.next_row)
    return outcome


def predicted_taste_rows(
    lm: SpokenLM, codebooks: ResidualVQ, text_ids: Sequence[int], word_ids: Sequence[int], taste_rows: Tensor
) -> list[list[int]]:
    """The codes the spoken LM expects for each word that has some, given everything before it.

    Args:
        taste_rows: `[L, Q]` what was heard, each word's row at its first id.

    Returns:
        One row of codes per word with codes.
    """
    coded = (taste_rows[:, 0] != -1).tolist()
    sources = delayed_sources(coded, word_ids, lm.config.delay)
    places = [p for p, source in enumerate(sources) if source >= 0 and (p == 0 or sources[p - 1] != source)]
    audio = speech_rows(
        taste_rows.to(lm.device), word_ids, lm.pad_audio_unit_embed, lm.config.delay, codebooks.output_from_indices
    )
    rows = lm.prompt(torch.tensor(list(text_ids), device=lm.device), audio).rows
    hidden = lm(rows[None], lm.new_cache(slots=1, capacity=rows.shape[0]), [0])[0]
    codes: list[list[int]] = codebooks.indices_from_code(lm.taste_latent(hidden[places])).tolist()
    return codes


def first_taste_rows(rows: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """The rows that carry codes, one per word."""
    return [tuple(row) for row in rows if row[0] != -1]
