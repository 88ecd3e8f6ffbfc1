"""Loading: devices and precisions, adapters, the head, and what is left when all is in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.errors import InvalidInputError
from taste_grpc.model.checkpoint.pretrained import resolve_device, resolve_dtype
from taste_grpc.model.spoken_lm.lora import LoraConfig, LoraLinear
from taste_grpc.streaming import TASTESegment, streaming_generate, taste_detokenize, taste_tokenize
from tests.checkpoints import EMBEDDING, LLAMA, LM_HEAD, TINY, WEIGHTS, copy_checkpoint, edit_json, edit_tensors
from tests.conftest import Loaded


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_checkpoint(tmp_path / "taste")


def load(directory: Path, **options: Any) -> TasteForCausalLM:
    options = {"device": "cpu", "dtype": "float32", "show_progress": False} | options
    return TasteForCausalLM.from_pretrained(directory, **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "cuda:99", -1, 99, True, "", 1.5, None])
def test_devices_there_are_none_of(device: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^device: "):
        resolve_device(device)
    with pytest.raises(InvalidInputError, match=r"^device: "):
        load(TINY, device=device)


@pytest.mark.parametrize("dtype", ["int8", "float64", torch.float64, torch.int8, 16, None, ""])
def test_precisions_there_are_none_of(dtype: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^dtype: "):
        load(TINY, dtype=dtype)


def test_precisions_and_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype(torch.float16, torch.device("cpu")) == torch.float16


def test_an_attention_there_is_none_of() -> None:
    with pytest.raises(InvalidInputError, match=r"^attn_implementation: 'flash'"):
        load(TINY, attn_implementation="flash")


# --- what is loaded


def test_adapters_are_merged_in_float32(tiny: Loaded) -> None:
    stored = load_file(TINY / WEIGHTS)
    name = LLAMA + "model.layers.1.mlp.down_proj"
    base, a, b = (stored[f"{name}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default"))
    expected = base.double() + (8 / 4) * b.double() @ a.double()  # alpha / rank of the tiny configuration
    merged = tiny.model.get_submodule(name).weight
    assert merged.dtype == torch.float32
    assert (merged.double() - expected).abs().max() < 1e-6
    # rounding the sum to the stored precision would be a different model
    assert (expected.bfloat16().double() - expected).abs().max() > 1e-4


def test_the_merged_layer_is_the_adapted_one() -> None:
    torch.manual_seed(0)
    adapted = LoraLinear(torch.nn.Linear(6, 5, bias=False), LoraConfig(rank=2, alpha=3.0))
    torch.nn.init.normal_(adapted.lora_B["default"].weight)
    x = torch.randn(4, 6)
    delta = 1.5 * adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
    torch.testing.assert_close(adapted(x), x @ (adapted.base_layer.weight + delta).T)


def test_without_a_stored_lm_head_the_embedding_stands_in(tiny: Loaded) -> None:
    assert LM_HEAD not in load_file(TINY / WEIGHTS)
    llama = tiny.model.spoken_lm.llama
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


@pytest.mark.parametrize("tied_by_config", [True, False])
def test_a_stored_lm_head_is_used(copy: Path, tied_by_config: bool) -> None:
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors[LM_HEAD] = tensors[EMBEDDING].flip(0).clone()

    edit_tensors(copy / WEIGHTS, untie)
    edit_json(copy / "config.json", lambda config: config["text_config"].update(tie_word_embeddings=tied_by_config))
    model = load(copy)
    llama = model.to("cpu").spoken_lm.llama
    assert torch.equal(llama.lm_head.weight, llama.model.embed_tokens.weight.flip(0))
    hidden = torch.randn(1, llama.config.hidden_size)
    torch.testing.assert_close(model.spoken_lm.text_logits(hidden), hidden @ llama.model.embed_tokens.weight.flip(0).T)


def test_nothing_is_left_without_weights(tiny: Loaded) -> None:
    voice = tiny.processor.get_generator("cpu", show_progress=False)
    for module in (tiny.model, voice):
        assert not [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_generator_is_loaded_once(tiny: Loaded) -> None:
    assert tiny.processor.get_generator("cpu") is tiny.processor.get_generator(torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_touches_whisper_and_llama_only(dtype: str) -> None:
    model = load(TINY, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    for name, parameter in model.named_parameters():
        whole = not name.startswith(("audio_tower.audio_joint_encoder_segmenter.", "spoken_lm.language_model."))
        assert parameter.dtype == (torch.float32 if whole else model.dtype), name
    # angles come from frequencies that no cast has touched
    assert model.spoken_lm.llama.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_model_in_reduced_precision_runs() -> None:
    model = load(TINY, dtype="bfloat16")
    processor = TasteProcessor.from_pretrained(TINY)
    audio = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    ids = torch.tensor([processor.text_tokenizer.encode(" what is this")])
    codes = taste_tokenize(model, processor, audio, ids)
    heard = TASTESegment("user", "audio", ids, codes)
    results = list(
        streaming_generate(model, processor, [heard], extra_words=2, seed=0, conversation_format="completion")
    )
    assert results[-1].is_complete
    segments = [result.segment for result in results if result.segment is not None]
    speaker = torch.randn(1, 192, generator=torch.Generator().manual_seed(0))
    chunk = taste_detokenize(
        model, processor, speaker, None, None, None, 0, segments[0].text_ids, segments[0].taste_ids
    )
    assert chunk["audio_waveform"].shape[1] > 0
    assert chunk["audio_waveform"].isfinite().all()
