"""The same model on a CUDA device; skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.model.spoken_lm.generation import generate_all, text_prompt
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws

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
