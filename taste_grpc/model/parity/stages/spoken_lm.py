"""Stages of the spoken LM: prompts, forward pass, generation, the sampler alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from taste_grpc.model.parity.goldens import GoldenSet
from taste_grpc.model.parity.stage import Checkpoint, StageFunction, StageInput
from taste_grpc.model.spoken_lm.candidates import Candidates, Floats, Integers, find_candidates
from taste_grpc.model.spoken_lm.generation import (
    GeneratedText,
    Prompt,
    audio_prompt,
    generate_all,
    instruct_prompt,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.network import FusedPrompt, speech_rows
from taste_grpc.model.spoken_lm.sampler import Action, Sampler, SamplerStep, SamplingParams, SeededDraws, ban
from taste_grpc.model.text.tokens import TokenSets


class RecordedDraws:
    """Uniform numbers read from a recording: one per step, or a row per step (text first, then the codes)."""

    def __init__(self, uniforms: Tensor, text_is_drawn: bool) -> None:
        self._rows = uniforms if uniforms.dim() == 2 else uniforms[:, None]
        self._first_taste = 1 if text_is_drawn else 0

    def text(self, step: int) -> float:
        """The number of the text draw of `step`."""
        return float(self._rows[step, 0])

    def taste(self, step: int, codebook: int) -> float:
        """The number of the draw from `codebook` in `step`."""
        return float(self._rows[step, self._first_taste + codebook])


def ints(tensor: Tensor) -> list[int]:
    """Plain integers of a tensor."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


# --- prompts and forward pass -----------------------------------------------------------------------


def _fused_prompt(stage: StageInput, token_ids: Tensor, indices: Tensor, word_ids: Tensor) -> FusedPrompt:
    lm = stage.checkpoint.model.spoken_lm
    audio = speech_rows(
        indices.long(),
        ints(word_ids),
        lm.pad_audio_unit_embed,
        int(stage.params.get("delay", lm.config.delay)),
        stage.checkpoint.model.audio_tower.rvq.output_from_indices,
    )
    return lm.prompt(token_ids.long(), audio)


def _prep(stage: StageInput) -> FusedPrompt:
    return stage.once(
        "prep", lambda: _fused_prompt(stage, stage.arg("token_ids"), stage.arg("indices"), stage.arg("word_ids"))
    )


@dataclass(frozen=True)
class _Forward:
    rows: Tensor
    lengths: Tensor
    hidden: Tensor


def _forward(stage: StageInput) -> _Forward:
    def compute() -> _Forward:
        lm = stage.checkpoint.model.spoken_lm
        lengths = ints(stage.arg("llm_token_lengths"))
        prompts = [
            _fused_prompt(
                stage,
                stage.arg("llm_token_ids")[row, :length],
                stage.arg("llm_indices")[row, :length],
                stage.arg("llm_word_ids")[row, :length],
            ).rows
            for row, length in enumerate(lengths)
        ]
        rows = pad_sequence(prompts, batch_first=True)
        row_lengths = [prompt.shape[0] for prompt in prompts]
        cache = lm.new_cache(slots=len(prompts), capacity=rows.shape[1])
        hidden = lm(rows, cache, range(len(prompts)), row_lengths)
        return _Forward(rows, torch.tensor(row_lengths), hidden)

    return stage.once("forward", compute)


def _plain_logits(stage: StageInput) -> Tensor:
    lm = stage.checkpoint.model.spoken_lm
    token_ids = stage.arg("token_ids").long()
    cache = lm.new_cache(slots=token_ids.shape[0], capacity=token_ids.shape[1])
    return lm.text_logits(lm(lm.embed_text(token_ids), cache, range(token_ids.shape[0])))


def _latent_codes(stage: StageInput) -> Tensor:
    lm = stage.checkpoint.model.spoken_lm
    codes: Tensor = stage.checkpoint.model.audio_tower.rvq.indices_from_code(lm.taste_latent(_forward(stage).hidden))
    return codes


# --- generation -------------------------------------------------------------------------------------


@dataclass
class _Run:
    prompt: Prompt
    generated: GeneratedText
    rows: list[Tensor] = field(default_factory=list)
    text_probabilities: list[Tensor] = field(default_factory=list)


def sampling_params(params: dict[str, Any]) -> SamplingParams:
    """Settings of a recorded run."""
    return SamplingParams(
        text_top_p=float(params["text_top_p"]),
        taste_top_p=float(params["taste_top_p"]),
        text_temperature=float(params.get("text_temperature", params.get("temperature", 1.0))),
        repetition_penalty=float(params["repetition_penalty"]),
        extra_words=int(params["extra_words"]),
        stop_id=params["stop_id"],
    )


def _prompt(stage: StageInput) -> Prompt:
    model = stage.checkpoint.model
    lm, vq = model.spoken_lm, model.audio_tower.rvq
    mode = stage.params["mode"]
    if mode == "zero":
        return zero_prompt(lm)
    text_ids = ints(stage.arg("llm_token_ids"))
    if mode == "text":
        return text_prompt(lm, text_ids)
    word_ids, taste_rows = ints(stage.arg("llm_word_ids")), stage.arg("llm_indices")[0].long()
    if mode == "audio":
        return audio_prompt(lm, vq, text_ids, word_ids, taste_rows)
    if mode == "instruct":
        prefix, suffix = ints(stage.arg("instruct_prefix_ids")), ints(stage.arg("instruct_suffix_ids"))
        return instruct_prompt(lm, vq, prefix, text_ids, word_ids, taste_rows, suffix)
    raise LookupError(f"no such mode in this program: {mode}")


class _RecordingSampler(Sampler):
    """A sampler that notes the probability vector of each text draw."""

    sink: list[Tensor]

    def text_probabilities(self, candidates: Candidates) -> tuple[Integers, Floats]:
        ids, probabilities = super().text_probabilities(candidates)
        vector = torch.zeros(self.sets.vocab_size)
        vector[torch.from_numpy(ids)] = torch.from_numpy(probabilities)
        self.sink.append(vector)
        return ids, probabilities


def _run(stage: StageInput) -> _Run:
    def compute() -> _Run:
        model = stage.checkpoint.model
        lm, vq = model.spoken_lm, model.audio_tower.rvq
        prompt, params = _prompt(stage), sampling_params(stage.params)
        draws = (
            RecordedDraws(stage.arg("uniforms"), params.text_top_p > 0)
            if stage.has("uniforms")
            else SeededDraws(0, vq.config.quantizers)
        )
        run = _Run(prompt, GeneratedText())
        sets = stage.checkpoint.processor.text_tokenizer.sets(lm.vocab_size)
        run.generated = generate_all(lm, vq, prompt, params, sets, draws, row_sink=run.rows)
        if params.text_top_p > 0:
            run.text_probabilities = _replayed_probabilities(run, params, sets, lm.config.delay)
        return run

    return stage.once("run", compute)


def _replayed_probabilities(run: _Run, params: SamplingParams, sets: TokenSets, delay: int) -> list[Tensor]:
    """Probability vectors of the text draws, from the scores and ids of a finished run."""
    sampler = _RecordingSampler(
        params,
        sets,
        delay=delay,
        has_prefix=run.prompt.has_prefix,
        history=run.prompt.history,
        draws=SeededDraws(0, 1),
    )
    sampler.sink = []
    for step in run.generated.steps:
        candidates, _ = find_candidates(ban(step.text_logits[None], [sampler]), [params.text_top_p])
        sampler.text_probabilities(candidates[0])
        sampler.history.add(step.sampled.text_id)
    return sampler.sink


def _per_step(read: Callable[[SamplerStep], Any]) -> StageFunction:
    return lambda stage: torch.tensor([read(step.sampled) for step in _run(stage).generated.steps])


def _final_rows(stage: StageInput) -> Tensor:
    run = _run(stage)
    return torch.cat([run.prompt.rows, *(row[None] for row in run.rows)])[None]


def taste_tensor(generated: GeneratedText) -> Tensor:
    """Returned taste rows `[1, N, Q]`."""
    return torch.tensor(generated.taste_rows, dtype=torch.long)[None]


# --- the sampler alone ------------------------------------------------------------------------------


@dataclass
class _Trace:
    steps: list[SamplerStep]
    text_probabilities: list[Tensor]
    taste_probabilities: list[Tensor]


class _TracedSampler(_RecordingSampler):
    taste_sink: list[Tensor]

    def taste_probabilities(self, logits: Tensor) -> Tensor:
        rows = super().taste_probabilities(logits)
        self.taste_sink[-1] = rows
        return rows


def _trace(stage: StageInput) -> _Trace:
    def compute() -> _Trace:
        settings = stage.params
        params = sampling_params(settings)
        sets = TokenSets.from_ids(
            settings["vocab"], settings["word_start_set"], settings["ban_ids"], settings["sentence_end_set"]
        )
        draws = (
            RecordedDraws(stage.arg("uniforms"), params.text_top_p > 0) if stage.has("uniforms") else SeededDraws(0, 4)
        )
        sampler = _TracedSampler(
            params,
            sets,
            delay=settings["delay"],
            has_prefix=settings["has_prefix"],
            history=settings["initial_input_ids"],
            draws=draws,
        )
        sampler.sink, sampler.taste_sink = [], []
        steps = []
        for text_logits, taste_logits in zip(stage.arg("text_logits"), stage.arg("taste_logits"), strict=True):
            sampler.taste_sink.append(torch.full(taste_logits.shape, -1.0))
            steps.append(sampler.step(text_logits, taste_logits))
            if steps[-1].action == Action.TERMINATE:
                break
        return _Trace(steps, sampler.sink, sampler.taste_sink)

    return stage.once("trace", compute)


STAGES: dict[str, StageFunction] = {
    "spoken_lm.prompt_embeds": lambda stage: _prep(stage).rows,
    "spoken_lm.prompt_audio_rows": lambda stage: _prep(stage).audio_rows,
    "spoken_lm.inputs_embeds": lambda stage: _forward(stage).rows,
    "spoken_lm.output_lengths": lambda stage: _forward(stage).lengths,
    "spoken_lm.last_hidden_state": lambda stage: _forward(stage).hidden,
    "spoken_lm.mu": lambda stage: stage.checkpoint.model.spoken_lm.taste_mean(_forward(stage).hidden),
    "spoken_lm.z": lambda stage: stage.checkpoint.model.spoken_lm.taste_latent(_forward(stage).hidden),
    "spoken_lm.text_logits": lambda stage: stage.checkpoint.model.spoken_lm.text_logits(_forward(stage).hidden),
    "spoken_lm.taste_ids": _latent_codes,
    "spoken_lm.plain_text_logits": _plain_logits,
    "generate.step_text_logits": lambda stage: torch.stack([s.text_logits for s in _run(stage).generated.steps]),
    "generate.step_z": lambda stage: torch.stack([s.latent for s in _run(stage).generated.steps]),
    "generate.step_text_ids": _per_step(lambda step: step.text_id),
    "generate.step_taste_ids": _per_step(lambda step: step.taste_ids),
    "generate.step_action": _per_step(lambda step: int(step.action)),
    "generate.step_taste_action": _per_step(lambda step: int(step.taste_action)),
    "generate.step_text_probs": lambda stage: torch.stack(_run(stage).text_probabilities),
    "generate.final_inputs_embeds": _final_rows,
    "generate.llm_indices": lambda stage: taste_tensor(_run(stage).generated),
    "generate.llm_token_ids": lambda stage: torch.tensor([_run(stage).generated.text_ids]),
    "generate.llm_token_lengths": lambda stage: torch.tensor([[len(_run(stage).generated.text_ids)]]),
    "generate.llm_word_ids": lambda stage: torch.tensor([_run(stage).generated.word_ids]),
    "sampler.text_ids": lambda stage: torch.tensor([step.text_id for step in _trace(stage).steps]),
    "sampler.taste_ids": lambda stage: torch.tensor([step.taste_ids for step in _trace(stage).steps]),
    "sampler.action": lambda stage: torch.tensor([int(step.action) for step in _trace(stage).steps]),
    "sampler.taste_action": lambda stage: torch.tensor([int(step.taste_action) for step in _trace(stage).steps]),
    "sampler.text_probs": lambda stage: torch.stack(_trace(stage).text_probabilities),
    "sampler.taste_probs": lambda stage: torch.stack(_trace(stage).taste_probabilities),
}


def _id_set(goldens: GoldenSet, entry: dict[str, Any], checkpoint: Checkpoint) -> list[int]:
    sets = checkpoint.processor.text_tokenizer.sets(checkpoint.model.spoken_lm.vocab_size)
    chosen = {
        "word_start_ids": sets.word_start,
        "ban_ids": sets.banned,
        "sentence_end_ids": sets.sentence_end,
    }[entry["path"][-1]]
    return [int(text_id) for text_id in chosen.nonzero().reshape(-1)]


JSON_STAGES: dict[str, Callable[..., Any]] = {"sampler.id_sets": _id_set}
