"""Decode steps over a batch of calls, and the prompts they start from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from taste_grpc.errors import CallAbortedError, InvalidInputError
from taste_grpc.model.spoken_lm.generation import (
    GeneratedText,
    Generation,
    Prompt,
    audio_prompt,
    decode_step,
    generate_all,
    instruct_prompt,
    start_generations,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots, SlotPass
from taste_grpc.model.spoken_lm.llama_step import LayerRun
from taste_grpc.model.spoken_lm.network import SpokenLM
from taste_grpc.model.spoken_lm.sampler import Action, SamplingParams, SeededDraws, TasteAction
from tests.conftest import Loaded

IDS = [377, 487, 315, 13, 40, 271]
WORDS = [0, 1, 1, 1, 2, 3]
GREEDY = SamplingParams(text_top_p=0.0, extra_words=4, max_length=40)
SAMPLED = SamplingParams(text_top_p=0.9, extra_words=4, max_length=40)


def codes(loaded: Loaded, words: list[int] = WORDS) -> Tensor:
    """Made-up codes at the first id of each word."""
    rows = torch.full((len(words), loaded.model.vq_dim), -1)
    for k, word in enumerate(words):
        if k == 0 or words[k - 1] != word:
            rows[k] = torch.tensor([(7 * word + 3 * q) % 32 for q in range(loaded.model.vq_dim)])
    return rows


def prompts(loaded: Loaded) -> dict[str, Prompt]:
    lm, rvq = loaded.model.spoken_lm, loaded.model.audio_tower.rvq
    with torch.inference_mode():
        return {
            "zero": zero_prompt(lm),
            "text": text_prompt(lm, IDS),
            "audio": audio_prompt(lm, rvq, IDS, WORDS, codes(loaded)),
            "instruct": instruct_prompt(lm, rvq, [20, 21], IDS, WORDS, codes(loaded), [22]),
        }


def run_alone(loaded: Loaded, prompt: Prompt, params: SamplingParams, seed: int) -> GeneratedText:
    with torch.inference_mode():
        return generate_all(
            loaded.model.spoken_lm,
            loaded.model.audio_tower.rvq,
            prompt,
            params,
            loaded.processor.text_tokenizer.sets(loaded.model.spoken_lm.vocab_size),
            SeededDraws(seed, loaded.model.vq_dim),
        )


@torch.inference_mode()
def recompute(loaded: Loaded, prompt: Prompt, outcome: GeneratedText) -> Tensor:
    """Text logits `[N, V]` of every step, each from a pass over its whole prefix without a cache."""
    lm, rvq = loaded.model.spoken_lm, loaded.model.audio_tower.rvq
    audio, pending = lm.pad_audio_unit_embed.float(), list(prompt.pending_audio)
    rows, logits = prompt.rows, []
    for step in outcome.steps:
        mask = torch.full((len(rows), len(rows)), torch.finfo(torch.float32).min).triu(1)[None, None]
        hidden = lm.llama.model(inputs_embeds=rows[None], attention_mask=mask, use_cache=False).last_hidden_state
        logits.append(lm.text_logits(hidden[0, -1]))
        sampled = step.sampled
        if sampled.taste_ids[0] != -1:
            audio = rvq.output_from_indices(torch.tensor(sampled.taste_ids)).float()
        elif sampled.taste_action == TasteAction.USE_PREFIX and pending:
            audio = pending.pop(0)
        text = lm.embed_text(torch.tensor(sampled.text_id))
        rows = torch.cat([rows, lm.fuse(audio, text)[None]])
    return torch.stack(logits)


@pytest.mark.parametrize("delay", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zero", "text", "audio", "instruct"])
def test_cached_steps_equal_a_full_recompute(
    tiny: Loaded, mode: str, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.model.spoken_lm
    monkeypatch.setattr(lm, "config", replace(lm.config, delay=delay))
    prompt = prompts(tiny)[mode]
    assert len(prompt.pending_audio) == (delay if mode == "audio" else 0)
    outcome = run_alone(tiny, prompt, GREEDY, seed=0)
    assert len(outcome.steps) > 5
    cached = torch.stack([step.text_logits for step in outcome.steps])
    expected = recompute(tiny, prompt, outcome)
    assert (cached - expected).abs().max() < 1e-4
    banned = tiny.processor.text_tokenizer.sets(tiny.model.spoken_lm.vocab_size).banned
    greedy = expected.masked_fill(banned, -1e5).argmax(-1).tolist()
    assert [step.sampled.text_id for step in outcome.steps] == greedy


def test_calls_in_a_batch_equal_each_alone(tiny: Loaded) -> None:
    """Prompts of four lengths, joined late, stepped together, ended one by one."""
    lm, rvq = tiny.model.spoken_lm, tiny.model.audio_tower.rvq
    sets = tiny.processor.text_tokenizer.sets(lm.vocab_size)
    given = list(prompts(tiny).values())
    params = [GREEDY, SAMPLED, GREEDY, SAMPLED]
    expected = [run_alone(tiny, p, own, seed) for seed, (p, own) in enumerate(zip(given, params, strict=True))]
    cache = lm.new_cache(slots=4, capacity=64)
    slots = [2, 0, 3, 1]

    def start(members: list[int]) -> list[Generation]:
        return start_generations(
            lm,
            cache,
            [slots[k] for k in members],
            [given[k] for k in members],
            [params[k] for k in members],
            [SeededDraws(k, tiny.model.vq_dim) for k in members],
            sets,
        )

    outcomes = [GeneratedText() for _ in given]
    with torch.inference_mode():
        running = dict(zip([0, 1], start([0, 1]), strict=True))
        for step in range(200):
            if step == 3:
                running |= dict(zip([2, 3], start([2, 3]), strict=True))
            going = {k: generation for k, generation in running.items() if not generation.done}
            if step > 3 and not going:
                break
            for k, result in zip(going, decode_step(lm, rvq, cache, list(going.values())), strict=True):
                outcomes[k].add(result)
    for outcome, alone in zip(outcomes, expected, strict=True):
        assert outcome.text_ids == alone.text_ids
        assert outcome.word_ids == alone.word_ids
        assert outcome.taste_rows == alone.taste_rows
        difference = [
            (a.text_logits - b.text_logits).abs().max() for a, b in zip(outcome.steps, alone.steps, strict=True)
        ]
        assert max(difference) < 1e-4


def test_every_word_has_its_codes(tiny: Loaded) -> None:
    for prompt in prompts(tiny).values():
        outcome = run_alone(tiny, prompt, SAMPLED, seed=5)
        drawn = [row for row in outcome.taste_rows if row[0] != -1]
        assert len(drawn) == outcome.word_ids[-1] + 1
        assert outcome.steps[-1].sampled.action == Action.TERMINATE


def test_a_text_that_would_not_end_is_ended(tiny: Loaded) -> None:
    with torch.inference_mode():
        outcome = generate_all(
            tiny.model.spoken_lm,
            tiny.model.audio_tower.rvq,
            zero_prompt(tiny.model.spoken_lm),
            SamplingParams(text_top_p=0.0, extra_words=10_000),
            tiny.processor.text_tokenizer.sets(tiny.model.spoken_lm.vocab_size),
            SeededDraws(0, tiny.model.vq_dim),
            max_steps=12,
        )
    assert len(outcome.text_ids) == 12
    assert len([row for row in outcome.taste_rows if row[0] != -1]) == outcome.word_ids[-1] + 1


def test_a_step_costs_one_row(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.model.spoken_lm
    rows: list[int] = []
    real = type(lm).run

    def counting(self: SpokenLM, given: Tensor, run: SlotPass, **kwargs: bool) -> LayerRun:
        rows.append(len(given))
        return real(self, given, run, **kwargs)

    monkeypatch.setattr(type(lm), "run", counting)
    run_alone(tiny, prompts(tiny)["audio"], GREEDY, seed=0)
    assert rows[0] == 1 + len(IDS)
    assert set(rows[1:]) == {1}


def test_abort_stops_a_generation(tiny: Loaded) -> None:
    count = 0

    def abort() -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise CallAbortedError("enough")

    with pytest.raises(CallAbortedError), torch.inference_mode():
        generate_all(
            tiny.model.spoken_lm,
            tiny.model.audio_tower.rvq,
            zero_prompt(tiny.model.spoken_lm),
            SamplingParams(text_top_p=0.0, extra_words=1000),
            tiny.processor.text_tokenizer.sets(tiny.model.spoken_lm.vocab_size),
            SeededDraws(0, tiny.model.vq_dim),
            abort=abort,
        )
    assert count == 21


def test_the_history_of_each_prompt(tiny: Loaded) -> None:
    given = prompts(tiny)
    assert given["zero"].history == (tiny.model.spoken_lm.config.sos_id,)
    assert given["text"].history == tuple(IDS)
    assert given["audio"].history == tuple(IDS)
    # as published, the first spoken id is left out
    assert given["instruct"].history == (20, 21, *IDS[1:], 22)


def test_what_each_prompt_is_made_of(tiny: Loaded) -> None:
    given, lm = prompts(tiny), tiny.model.spoken_lm
    plain = lm.embed_text(torch.tensor(IDS))
    assert {mode: prompt.rows.shape[0] for mode, prompt in given.items()} == {
        "zero": 1,
        "text": 6,
        "audio": 7,
        "instruct": 9,
    }
    assert torch.equal(given["text"].rows, plain)
    assert torch.equal(given["audio"].rows[1:], given["instruct"].rows[2:8])
    assert torch.equal(given["instruct"].rows[[0, 1, 8]], lm.embed_text(torch.tensor([20, 21, 22])))
    assert {mode: prompt.has_prefix for mode, prompt in given.items()} == {
        "zero": False,
        "text": False,
        "audio": True,
        "instruct": False,
    }
    last = tiny.model.audio_tower.rvq.output_from_indices(codes(tiny)[5]).float()
    torch.testing.assert_close(given["audio"].pending_audio[0], last)


def test_a_cache_that_is_too_small_names_the_limit(tiny: Loaded) -> None:
    lm = tiny.model.spoken_lm
    cache: KeyValueSlots = lm.new_cache(slots=1, capacity=3)
    with pytest.raises(InvalidInputError, match=r"^max_length"), torch.inference_mode():
        start_generations(
            lm,
            cache,
            [0],
            [prompts(tiny)["text"]],
            [GREEDY],
            [SeededDraws(0, 4)],
            tiny.processor.text_tokenizer.sets(lm.vocab_size),
        )
