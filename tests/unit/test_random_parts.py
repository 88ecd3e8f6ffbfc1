"""Random weights and the checkpoints made of them: what they are, and that the network behaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from taste_grpc.model.checkpoint.manifest import PARTS, find_damage, read_manifest, trained_parts
from taste_grpc.model.embedded.checkpoint_sizes import SpeechSizes, voice_generator_dims, voice_shapes
from taste_grpc.model.embedded.random_checkpoint import (
    CONVERSATION_TOKENS,
    LanguageSizes,
    RandomSizes,
    write_random_checkpoint,
)
from taste_grpc.model.embedded.random_parts import random_tensor, random_tensors
from taste_grpc.model.embedded.speaker_network import random_speaker_network
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.speech_decoder.inputs import SpokenWords, decoder_inputs
from taste_grpc.model.speech_decoder.unit_sampler import UnitSampler
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text.words import split_words
from taste_grpc.model.voice_generator.generator import VoiceGenerator, VoiceGeneratorConfig

SENTENCE = "ever tried and ever failed but it does not matter so try again"


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), seed=7)


@pytest.fixture(scope="module")
def model(random_checkpoint: Path) -> TasteForCausalLM:
    return TasteForCausalLM.from_pretrained(random_checkpoint, device="cpu", show_progress=False)


@pytest.fixture(scope="module")
def processor(random_checkpoint: Path) -> TasteProcessor:
    return TasteProcessor.from_pretrained(random_checkpoint)


def noise(seconds: float, seed: int) -> np.ndarray:
    """Noise whose loudness goes up and down like syllables."""
    samples = np.random.default_rng(seed).standard_normal(int(16000 * seconds)).astype(np.float32)
    return 0.1 * samples * (1 + np.sin(np.arange(len(samples)) / 900)).astype(np.float32)


def test_a_tensor_depends_on_its_name_its_shape_and_the_seed_only() -> None:
    name, shape = "spoken_lm.extract_for_bridge_out_llm.fc_mu.weight", (4, 6)
    first = random_tensor(name, shape, 1)
    assert torch.equal(first, random_tensor(name, shape, 1))
    assert not torch.equal(first, random_tensor(name, shape, 2))
    assert not torch.equal(first, random_tensor("spoken_lm.other.weight", shape, 1))


def test_codebooks_look_trained() -> None:
    layer = "audio_tower.vq.rvq.layers.2._codebook."
    assert random_tensor(layer + "initted", (1,), 0).tolist() == [1.0]
    assert torch.equal(random_tensor(layer + "embed", (1, 8, 4), 0), random_tensor(layer + "embed_avg", (1, 8, 4), 0))


@pytest.mark.parametrize("seed", range(4))
def test_speech_is_audible_not_clipped_and_voiced(seed: int) -> None:
    sizes = SpeechSizes()
    dims = voice_generator_dims(sizes)
    generator = VoiceGenerator(VoiceGeneratorConfig.from_published(dims, None))
    generator.load_state_dict(dict(random_tensors(voice_shapes(dims), seed)))
    units = torch.randint(sizes.units, (1, 60), generator=torch.Generator().manual_seed(seed))
    speaker = torch.randn(1, 192, generator=torch.Generator().manual_seed(seed))
    waveform, _ = generator.eval().inference(units, flow_embedding=speaker)
    f0 = generator.hift.f0(generator.flow.mel(units, speaker))
    assert 0.01 < waveform.square().mean().sqrt() < 0.3
    assert waveform.abs().max() < 0.95
    assert f0.min() > 60
    assert f0.max() < 400


def test_codes_follow_what_is_heard(model: TasteForCausalLM, processor: TasteProcessor) -> None:
    def codes(seed: int) -> torch.Tensor:
        inputs = processor(noise(3.0, seed), text=SENTENCE)
        del inputs["speaker_embeds"]
        return model.extract_vq(**inputs).asr_indices[0]

    first, second = codes(0), codes(1)
    assert len({tuple(row) for row in first.tolist()}) > 3
    assert not torch.equal(first, second)


@pytest.mark.parametrize("text", ["again", SENTENCE, f"{SENTENCE} {SENTENCE} {SENTENCE}"])
def test_units_keep_the_pace_and_vary(model: TasteForCausalLM, processor: TasteProcessor, text: str) -> None:
    words = split_words(text)
    rng = np.random.default_rng(3)
    rows = tuple(tuple(row) for row in rng.integers(0, 32, (len(words), model.vq_dim)).tolist())
    spoken = SpokenWords.of(words, rows, processor.audio_tokenizer)
    inputs = decoder_inputs(spoken, model.audio_tower.rvq.output_from_indices, model.device)
    speaker = processor.speaker_embedding([noise(1.0, 5)])
    units = model.speak(speaker, inputs, UnitSampler(seed=1))
    tokens = len(spoken.tokens.ids)
    # the checkpoint was asked for 8 per token; a start, a speaker and a task row count for the least length
    assert 4 * tokens <= len(units) <= 12 * tokens + 6
    assert len(set(units)) > len(units) / 6


def test_voices_differ(processor: TasteProcessor) -> None:
    one, other = (processor.speaker_embedding([noise(1.0, seed) * gain]) for seed, gain in ((1, 1.0), (2, 0.2)))
    assert one.shape == (1, 192)
    assert float((one - other).norm()) > 0.0


def test_the_speaker_network_has_the_published_interface() -> None:
    session = onnxruntime.InferenceSession(random_speaker_network(0), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, made.name) == ("input", "output")
    assert session.run(None, {"input": np.zeros((1, 17, 80), np.float32)})[0].shape == (1, 192)


def test_the_tokenizer_has_the_conversation_tokens_unless_asked_not_to(
    processor: TasteProcessor, tmp_path: Path
) -> None:
    assert set(CONVERSATION_TOKENS) <= processor.llm_tokenizer.get_vocab().keys()
    ids = processor.llm_tokenizer.encode(" the quick fox", add_special_tokens=False)
    assert processor.llm_tokenizer.decode(ids) == " the quick fox"
    plain = write_random_checkpoint(tmp_path / "plain", conversation_tokens=False)
    assert TasteProcessor.from_pretrained(plain).text_tokenizer.conversation_tokens() is None


def test_shards_and_a_stored_head_load(tmp_path: Path) -> None:
    sizes = RandomSizes(language=LanguageSizes(store_lm_head=True, vocab_size=700))
    directory = write_random_checkpoint(tmp_path, seed=1, sizes=sizes, max_shard_bytes=2_000_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    stored = sum((directory / file).stat().st_size for file in files)
    assert index["metadata"]["total_size"] < stored < index["metadata"]["total_size"] + 200_000
    model = TasteForCausalLM.from_pretrained(directory, device="cpu", show_progress=False)
    assert model.spoken_lm.vocab_size == 700
    head, embedding = model.spoken_lm.llama.lm_head.weight, model.spoken_lm.llama.model.embed_tokens.weight
    assert not torch.equal(head, embedding)


def test_dtypes_are_the_published_ones(random_checkpoint: Path) -> None:
    with safe_open(random_checkpoint / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    llama = "spoken_lm.language_model.base_model.model.model.layers.0.mlp.up_proj."
    assert dtypes[llama + "base_layer.weight"] == "BF16"
    assert dtypes[llama + "lora_A.default.weight"] == "F32"
    assert dtypes["audio_tower.audio_joint_encoder_segmenter.audio_encoder.encoder.conv1.weight"] == "BF16"
    assert dtypes["speech_decoder.llm_embedding.weight"] == "F32"


def test_the_manifest_says_that_all_is_random(random_checkpoint: Path, tmp_path: Path) -> None:
    assert trained_parts(random_checkpoint) == dict.fromkeys(PARTS, False)
    assert trained_parts(tmp_path) == dict.fromkeys(PARTS, True)


@pytest.mark.parametrize("name", ["config.json", "llama_tokenizer/tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped", "added"])
def test_damage_is_found_and_named(tmp_path: Path, random_checkpoint: Path, name: str, kind: str) -> None:
    for source in random_checkpoint.rglob("*"):
        if source.is_file():
            target = tmp_path / source.relative_to(random_checkpoint)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert find_damage(tmp_path, manifest) is None
    path = tmp_path / name
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[:-1])
    elif kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        name += ".index"
        (tmp_path / name).write_bytes(b"{}")
    found = find_damage(tmp_path, manifest)
    assert found is not None
    assert name in found
