"""Generation: one decode step over a batch of calls, and whole generations.

Source: checkpoint layout 4.9 and 4.10. A new text id costs one forward pass of one row per call;
what came before is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.rvq import ResidualVQ
from taste_grpc.model.layers.products import fill_rows
from taste_grpc.model.layers.stepping import RowStep
from taste_grpc.model.layers.transfer import Bits, to_device
from taste_grpc.model.spoken_lm.call import Generation, StepResult
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.network import SpokenLM, delayed_sources, speech_rows
from taste_grpc.model.spoken_lm.prompt import (
    Prompt,
    audio_prompt,
    heard_prompt,
    instruct_prompt,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.reading import PromptReading
from taste_grpc.model.spoken_lm.sampler import Action, Draws, SamplerStep, SamplingParams, TasteAction, draw_texts
from taste_grpc.model.text.tokens import TokenSets

__all__ = [
    "GeneratedText",
    "Generation",
    "Prompt",
    "PromptReading",
    "StepResult",
    "audio_prompt",
    "decode_step",
    "first_taste_rows",
    "generate_all",
    "heard_prompt",
    "instruct_prompt",
    "predicted_taste_rows",
    "start_generations",
    "text_prompt",
    "zero_prompt",
]


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
    """Read the prompts into their slots, one after the other; returns the states to step from."""
    generations = []
    for slot, prompt, own_params, own_draws in zip(slots, prompts, params, draws, strict=True):
        reading = PromptReading(lm, cache, slot, prompt, own_params, sets, own_draws)
        while not reading.advance(abort):
            pass
        generations.append(reading.generation)
    return generations


def decode_step(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    cache: KeyValueSlots,
    generations: Sequence[Generation],
    abort: AbortCheck = never_abort,
    *,
    forward: RowStep | None = None,
) -> list[StepResult]:
    """Draw one id for each of `generations` (none of them done, all of one tokenizer) and feed it back.

    The cost of a step does not depend on how many came before, but for the keys it looks at. What goes over the
    vocabulary or through the network is done for all calls at once, and one transfer brings what they choose from to
    the host.

    Args:
        lm: the language model.
        codebooks: what codes mean.
        cache: where all of them have their slots; with a fixed shape, no more than `step_rows` of them.
        generations: at least one.
        abort: called before each layer.
        forward: takes the new rows through the network in place of `lm.step` (see `GraphedStep`).
    """
    rows = len(generations) if cache.fixed is None else cache.fixed.step_rows
    hidden = fill_rows(torch.stack([generation.hidden for generation in generations]), rows)  # [B, D]
    text_logits = lm.text_logits(hidden)  # [B, V]
    latents = lm.taste_latent(hidden)  # [B, latent]
    used = len(generations)
    codes = codebooks.indices_from_code(latents[:used]).int()  # [B, Q]
    ids, drawn = draw_texts([generation.sampler for generation in generations], text_logits[:used], codes)
    assert drawn is not None
    results = []
    for row, (generation, text_id) in enumerate(zip(generations, ids, strict=True)):
        # the published logits of the codes are 1000 for the nearest code and 0 for all others: exp(-1000) is 0, so
        # whatever top-p is, and whatever number is drawn, it is the nearest one
        sampled = generation.sampler.advance(text_id, partial(_as_codes, drawn[row]), drawn.shape[1])
        if sampled.action == Action.CONTINUE_AT_WORD_START:
            generation.word_id += 1
        generation.done = sampled.action == Action.TERMINATE
        results.append(StepResult(sampled, generation.word_id, text_logits[row], latents[row]))
    _feed_back(lm, codebooks, cache, generations, [result.sampled for result in results], abort, forward)
    return results


def _as_codes(row: Bits) -> tuple[int, ...]:
    return tuple(row.tolist())


def _feed_back(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    cache: KeyValueSlots,
    generations: Sequence[Generation],
    steps: Sequence[SamplerStep],
    abort: AbortCheck,
    forward: RowStep | None,
) -> None:
    going = [(generation, step) for generation, step in zip(generations, steps, strict=True) if not generation.done]
    if not going:
        return
    count = len(going) if cache.fixed is None else cache.fixed.step_rows
    _renew_audio(lm, codebooks, going, None if cache.fixed is None else count)
    silence = lm.pad_audio_unit_embed.float()
    audio = torch.stack(
        [silence if step.taste_action == TasteAction.WAIT else generation.audio for generation, step in going]
    )
    text = lm.embed_text(to_device([[step.text_id] for _, step in going], lm.device)[:, 0])
    rows = lm.fuse(fill_rows(audio, count), fill_rows(text, count))
    slots = [generation.slot for generation, _ in going]
    hidden = lm.step(rows, cache, slots, abort) if forward is None else forward(rows, slots)
    for i, (generation, _) in enumerate(going):
        generation.next_row = rows[i]
        generation.hidden = hidden[i]


def _renew_audio(
    lm: SpokenLM, codebooks: ResidualVQ, going: Sequence[tuple[Generation, SamplerStep]], count: int | None
) -> None:
    """Set the speech embedding `[A]` of the calls that go on to another word, always `count` rows of them if given."""
    fresh = [
        (generation, step.taste_ids)
        for generation, step in going
        if step.taste_action == TasteAction.SAMPLE and step.taste_ids[0] != -1
    ]
    if fresh:
        codes = to_device([row for _, row in fresh], lm.device)
        filled = codes if count is None else fill_rows(codes, count)
        for (generation, _), audio in zip(fresh, codebooks.output_from_indices(filled).float(), strict=False):
            generation.audio = audio
    for generation, step in going:
        if step.taste_action == TasteAction.USE_PREFIX and generation.pending:
            generation.audio = generation.pending.popleft()


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
    cache = lm.new_cache(slots=1, capacity=prompt.length + limit + 1)
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
