"""The same model on a CUDA device; skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.model.layers.graphed_step import GraphedStep
from taste_grpc.model.layers.rel_pos_static import graphed_row_step
from taste_grpc.model.layers.shapes import FixedShape
from taste_grpc.model.spoken_lm.generation import decode_step, generate_all, start_generations, text_prompt
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from taste_grpc.model.spoken_lm.static_step import graphed_text_step

TINY = Path(__file__).parents[1] / "data" / "taste-tiny"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def greedy(model: TasteForCausalLM, processor: TasteProcessor) -> tuple[list[int], torch.Tensor]:
    """Greedy text ids after a fixed prompt, and the scores of the first one."""
    lm = model.spoken_lm
    prompt = text_prompt(lm, processor.text_tokenizer.encode(" good morning everyone"))
    generated = generate_all(
        lm,
        model.audio_tower.rvq,
        prompt,
        SamplingParams(text_top_p=0.0, extra_words=4, max_length=24),
        processor.text_tokenizer.sets(lm.vocab_size),
        SeededDraws(0, model.vq_dim),
    )
    return generated.text_ids, generated.steps[0].text_logits.cpu()


@pytest.fixture(scope="module")
def processor() -> TasteProcessor:
    return TasteProcessor.from_pretrained(TINY)


def test_float32_scores_are_those_of_the_cpu(processor: TasteProcessor) -> None:
    on_cpu = TasteForCausalLM.from_pretrained(TINY, device="cpu", dtype="float32")
    on_cuda = TasteForCausalLM.from_pretrained(TINY, device="cuda", dtype="float32")
    _, expected = greedy(on_cpu, processor)
    _, scores = greedy(on_cuda, processor)
    assert torch.allclose(scores, expected, atol=1e-3)


def test_bfloat16_is_the_default_and_runs_through_every_part(processor: TasteProcessor) -> None:
    model = TasteForCausalLM.from_pretrained(TINY)
    assert model.device.type == "cuda"
    assert model.dtype == torch.bfloat16
    clip = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    inputs = processor(clip, text="good morning everyone")
    outcome = model.inference_completion(
        llm_tokenizer=processor.llm_tokenizer,
        asr_tokenizer=processor.audio_tokenizer,
        conditional_mode="audio",
        extra_words=2,
        max_length=24,
        **inputs,
    )
    waveform, rate_hz = processor.get_generator(model.device).inference(
        outcome["speech_token_ids"],
        outcome["speech_token_lengths"],
        flow_embedding=inputs["speaker_embeds"],
    )
    assert rate_hz == 22_050
    assert bool(torch.isfinite(waveform).all())


def test_rotary_frequencies_survive_a_change_of_precision_and_place() -> None:
    model = TasteForCausalLM.from_pretrained(TINY, device="cpu")
    before = model.spoken_lm.llama.model.rotary_emb.inv_freq.clone()
    model.to("cuda").to(torch.bfloat16).to(torch.float32)
    after = model.spoken_lm.llama.model.rotary_emb.inv_freq
    assert after.dtype == torch.float32
    assert torch.equal(after.cpu(), before)


@pytest.fixture(scope="module")
def on_cuda() -> TasteForCausalLM:
    return TasteForCausalLM.from_pretrained(TINY, device="cuda", dtype="float32", show_progress=False)


def recorded(step: GraphedStep) -> list[bool]:
    """Whether each shape that was used has a graph."""
    return [graph is not None for graph in step._recorded.values()]


@torch.inference_mode()
@pytest.mark.parametrize("fixed", [None, FixedShape(4, 8)])
def test_steps_of_the_spoken_lm_are_recorded_and_replayed(on_cuda: TasteForCausalLM, fixed: FixedShape | None) -> None:
    lm = on_cuda.spoken_lm
    caches = [lm.new_cache(slots=4, capacity=600, fixed=fixed) for _ in range(2)]
    for slot, length in enumerate([3, 20, 255, 1]):
        rows = torch.randn(1, length, lm.hidden_dim, device="cuda") * 0.05
        for cache in caches:
            lm(rows, cache, [slot])
    graphed = graphed_text_step(lm, caches[1])
    for slots in ([0, 1, 2, 3], [2, 0], [1], [3, 2, 1], [2], [2]):
        rows = torch.randn(len(slots), lm.hidden_dim, device="cuda") * 0.05
        torch.testing.assert_close(graphed(rows, slots), lm.step(rows, caches[0], slots), atol=1e-3, rtol=1e-3)
    assert all(recorded(graphed))
    assert len(recorded(graphed)) == (1 if fixed else 6)
    assert caches[0].lengths == caches[1].lengths


@torch.inference_mode()
def test_steps_of_the_speech_decoder_are_recorded_and_replayed(on_cuda: TasteForCausalLM) -> None:
    decoder = on_cuda.speech_decoder
    caches = [decoder.new_cache(3, 300) for _ in range(2)]
    for slot, length in enumerate([3, 20, 255]):
        rows = torch.randn(1, length, decoder.config.prompt_width, device="cuda")
        for cache in caches:
            decoder.prefill(rows, [length], cache, [slot])
    graphed = graphed_row_step(decoder.llm, caches[1])
    for slots in ([0, 1, 2], [2], [1, 0]):
        units = torch.tensor([slot + 1 for slot in slots], device="cuda")
        expected = decoder.step(units, caches[0], slots)
        torch.testing.assert_close(
            decoder.step(units, caches[1], slots, forward=graphed), expected, atol=1e-3, rtol=1e-3
        )
    assert all(recorded(graphed))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fixed_shapes_give_the_same_bits_in_any_company(processor: TasteProcessor, dtype: str) -> None:
    model = TasteForCausalLM.from_pretrained(TINY, device="cuda", dtype=dtype, show_progress=False)
    lm, rvq = model.spoken_lm, model.audio_tower.rvq
    sets = processor.text_tokenizer.sets(lm.vocab_size)

    def run(members: list[int]) -> dict[int, list[torch.Tensor]]:
        cache = lm.new_cache(slots=8, capacity=128, fixed=FixedShape(8, 16))
        forward = graphed_text_step(lm, cache)
        generations = start_generations(
            lm,
            cache,
            members,
            [text_prompt(lm, range(30, 40 + 5 * k)) for k in members],
            [SamplingParams(text_top_p=0.9, extra_words=20, max_length=12) for _ in members],
            [SeededDraws(k, model.vq_dim) for k in members],
            sets,
        )
        seen: dict[int, list[torch.Tensor]] = {k: [] for k in members}
        while going := [(k, own) for k, own in zip(members, generations, strict=True) if not own.done]:
            results = decode_step(lm, rvq, cache, [own for _, own in going], forward=forward)
            for (k, _), result in zip(going, results, strict=True):
                seen[k].append(result.text_logits.clone())
        return seen

    together = run([5, 0, 7, 3, 2])
    for k, logits in together.items():
        (alone,) = run([k]).values()
        assert len(alone) == len(logits)
        assert all(torch.equal(a, b) for a, b in zip(alone, logits, strict=True))
