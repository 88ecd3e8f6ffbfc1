"""Loading: what is wrong with a checkpoint is said once, with the file and the tensor."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.errors import CheckpointError, TasteError
from tests.checkpoints import EMBEDDING, LLAMA, WEIGHTS, copy_checkpoint, edit_json, edit_tensors
from tests.conftest import Loaded

BIAS = "speech_decoder.llm_decoder.bias"
TABLE = "audio_tower.vq.rvq.layers.2._codebook.embed"
VOICE = Path("cosyvoice") / "voice_generator.pth"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_checkpoint(tmp_path / "taste")


def load(directory: Path, **options: Any) -> TasteForCausalLM:
    options = {"device": "cpu", "dtype": "float32", "show_progress": False} | options
    return TasteForCausalLM.from_pretrained(directory, **options)


def refused(directory: Path, *words: str | Path, **options: Any) -> str:
    """The one readable message a directory is refused with; it holds all of `words`."""
    with pytest.raises(CheckpointError) as raised:
        load(directory, **options)
    return readable(raised.value, *words)


def refused_voice(directory: Path, *words: str | Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        TasteProcessor.from_pretrained(directory).get_generator("cpu", show_progress=False)
    return readable(raised.value, *words)


def readable(error: TasteError, *words: str | Path) -> str:
    message = str(error)
    for word in words:
        assert str(word) in message, message
    assert "\n" not in message
    assert len(message) < 1000
    return message


def shard(directory: Path, count: int = 3) -> dict[str, str]:
    """Replace the single file by `count` shards and an index; returns the shard of each tensor."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    file_of = {name: names[k % count] for k, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in tensors if file_of[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return file_of


# --- tensors that do not fit


def test_missing_unexpected_and_misshapen_tensors_are_one_message(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[BIAS]
        tensors["speech_decoder.surprise"] = torch.zeros(2)
        tensors[EMBEDDING] = tensors[EMBEDDING][:-1].clone()

    edit_tensors(copy / WEIGHTS, change)
    message = refused(copy, copy / WEIGHTS, BIAS, "speech_decoder.surprise", EMBEDDING, "[511, 64]", "[512, 64]")
    assert "1 missing" in message
    assert "1 unexpected" in message
    assert "1 misshapen" in message


def test_many_missing_tensors_stay_readable(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "lora_A" in name]:
            del tensors[name]

    edit_tensors(copy / WEIGHTS, change)
    message = refused(copy, copy / WEIGHTS, "21 missing", "lora_A.default.weight", "and 15 more")
    assert message.count("lora_A") == 6


def test_a_missing_tensor_that_tells_a_size(copy: Path) -> None:
    name = "audio_tower.vq.rvq.layers.0._codebook.embed"
    edit_tensors(copy / WEIGHTS, lambda tensors: tensors.pop(name))
    refused(copy, copy / "config.json", "model.safetensors", name, "missing")


def test_configuration_and_tensors_contradict(copy: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["audio_tower_config"]["kwargs_for_quantizer"]["codebook_size"] = 64

    edit_json(copy / "config.json", change)
    refused(copy, copy / "config.json", "model.safetensors", "codebook_size = 64", "_codebook.embed", "32")


def test_layers_the_configuration_does_not_have(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config["text_config"].update(num_hidden_layers=2))
    refused(copy, copy / WEIGHTS, "unexpected", LLAMA + "model.layers.2.")


def test_the_voice_generator_is_checked_in_the_same_way(copy: Path) -> None:
    tensors = torch.load(copy / VOICE, weights_only=True)
    name = "hift.conv_post.weight_g"
    del tensors[name]
    torch.save(tensors, copy / VOICE)
    refused_voice(copy, copy / VOICE, name, "1 missing")


# --- damaged files


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.6])
def test_a_truncated_safetensors_file(copy: Path, share: float) -> None:
    cut(copy / WEIGHTS, share)
    refused(copy, copy / WEIGHTS, "damaged or truncated")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.5, 0.999])
def test_a_truncated_voice_generator(copy: Path, share: float) -> None:
    cut(copy / VOICE, share)
    refused_voice(copy, copy / VOICE, "damaged")


def test_garbage_in_place_of_a_voice_generator(copy: Path) -> None:
    (copy / VOICE).write_bytes(b"\x93not a checkpoint" * 100)
    refused_voice(copy, copy / VOICE, "damaged")


def test_a_voice_generator_that_is_no_dictionary(copy: Path) -> None:
    torch.save([torch.zeros(2)], copy / VOICE)
    refused_voice(copy, copy / VOICE, "not a plain dictionary of tensors")


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["torch.save", "legacy torch.save", "pickle"])
def test_code_in_a_pickle_is_refused_and_never_run(copy: Path, tmp_path: Path, how: str) -> None:
    trace = tmp_path / "it-ran"
    content = {"flow.x": torch.zeros(2), "bomb": Bomb(trace)}
    if how == "pickle":
        (copy / VOICE).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, copy / VOICE, _use_new_zipfile_serialization=how == "torch.save")
    message = refused_voice(copy, copy / VOICE)
    assert how == "pickle" or f"holds code ({os.name}.mkdir)" in message
    assert not trace.exists()
    if how == "torch.save":  # the bomb is live: whoever unpickles without care sets it off
        torch.load(copy / VOICE, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("file", [WEIGHTS, VOICE, "cosyvoice/speaker_embed.onnx", "config.json"])
def test_an_absent_file(copy: Path, file: str | Path) -> None:
    def load_everything() -> None:
        load(copy)
        processor = TasteProcessor.from_pretrained(copy)
        processor.get_generator("cpu", show_progress=False)
        processor.speaker_encoder.embed([torch.zeros(16000).numpy()])

    (copy / file).unlink()
    with pytest.raises(CheckpointError) as raised:
        load_everything()
    readable(raised.value, Path(file).name, copy)


# --- shards


def test_shards_load_to_the_same_model(copy: Path, tiny: Loaded) -> None:
    shard(copy)
    ours, single = load(copy).state_dict(), tiny.model.state_dict()
    assert ours.keys() == single.keys()
    assert all(torch.equal(ours[name], single[name]) for name in single)


def test_a_missing_shard(copy: Path) -> None:
    file_of = shard(copy)
    file = copy / file_of[BIAS]
    file.unlink()
    refused(copy, file, "missing", INDEX)


def test_a_tensor_that_is_not_in_its_shard(copy: Path) -> None:
    file_of = shard(copy)
    edit_tensors(copy / file_of[BIAS], lambda tensors: tensors.pop(BIAS))
    refused(copy, copy / file_of[BIAS], BIAS, INDEX)


def test_a_misshapen_tensor_names_its_shard(copy: Path) -> None:
    file_of = shard(copy)
    edit_tensors(copy / file_of[BIAS], lambda tensors: tensors.update({BIAS: torch.zeros(3)}))
    refused(copy, copy / INDEX, f"{BIAS} (in {file_of[BIAS]}) is [3], expected [65]")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"x": 3}}', "x"),
        ('{"weight_map": {"x": "../../elsewhere.safetensors"}}', "elsewhere"),
    ],
)
def test_a_broken_index(copy: Path, index: str, words: str) -> None:
    shard(copy)
    (copy / INDEX).write_text(index)
    refused(copy, copy / INDEX, words)


# --- configuration


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "is not a JSON object"),
        ("{}", "text_config"),
        ('{"model_type": "llama", "hidden_size": 64}', "not a TASTE configuration"),
    ],
)
def test_a_broken_config(copy: Path, content: str, words: str) -> None:
    (copy / "config.json").write_text(content)
    refused(copy, "config.json", words)


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("text_config", {"hidden_size": None}, "config.json"),
        ("text_config", {"hidden_size": "wide"}, "config.json"),
        ("text_config", {"num_attention_heads": 0}, "config.json"),
        ("text_config", {"num_attention_heads": 3, "head_dim": None}, "config.json"),
        ("text_config", {"vocab_size": 100}, "sos_id is 496"),
        ("text_config", {"rope_scaling": {"rope_type": "longrope"}}, "config.json"),
        ("spoken_lm_config", {"delay": 0}, "delay is 0"),
        ("spoken_lm_config", {"delay": "one"}, "config.json"),
        ("spoken_lm_config", {"in_llm_module": "concat"}, "in_llm_module"),
        ("spoken_lm_config", {"kwargs_for_lora": None}, "config.json"),
        ("spoken_lm_config", {"kwargs_for_lora": {"lora_r": 0, "lora_alpha": 8}}, "lora_r is 0"),
        ("spoken_lm_config", {"rotary_inv_freq_dtype": "int8"}, "rotary_inv_freq_dtype"),
        ("asr_config", {"encoder_layers": 5}, "encoder_layers = 5"),
        ("asr_config", {"encoder_attention_heads": 5}, "config.json"),
        ("asr_config", {"d_model": []}, "config.json"),
        ("audio_tower_config", {"quantization_on": False}, "quantization_on"),
        ("speech_decoder_config", {"llm_input_size": 31}, "llm_input_size = 31"),
    ],
)
def test_a_value_no_network_can_be_built_from(copy: Path, section: str, value: dict[str, Any], words: str) -> None:
    edit_json(copy / "config.json", lambda config: config[section].update(value))
    refused(copy, words)


def test_an_absent_value_is_named(copy: Path) -> None:
    edit_json(copy / "config.json", lambda config: config["spoken_lm_config"].pop("sos_id"))
    refused(copy, "config.json", "sos_id")


# --- tokenizers


def test_an_absent_text_tokenizer(copy: Path) -> None:
    (copy / "llama_tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as raised:
        TasteProcessor.from_pretrained(copy)
    readable(raised.value, copy / "llama_tokenizer" / "tokenizer.json", "missing")


def test_a_broken_text_tokenizer(copy: Path) -> None:
    (copy / "llama_tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="llama_tokenizer holds no usable tokenizer"):
        TasteProcessor.from_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("./storage/pretrained_models/whisper-large-v3", "openai/whisper-large-v3"),
        ("/data/whisper-large-v3", "openai/whisper-large-v3"),
        ("", "openai/whisper-large-v3"),
        ("somebody/whisper-tuned", "somebody/whisper-tuned"),
    ],
)
def test_an_absent_asr_tokenizer_says_what_to_fetch(copy: Path, name: str, repository: str) -> None:
    (copy / "asr_tokenizer").rename(copy / "elsewhere")
    edit_json(copy / "config.json", lambda config: config["asr_config"].update(_name_or_path=name))
    with pytest.raises(CheckpointError) as raised:
        TasteProcessor.from_pretrained(copy)
    message = readable(raised.value, copy / "asr_tokenizer", repository)
    assert re.search(rf"hf download {repository} .*--local-dir {copy}/asr_tokenizer", message)
    with pytest.raises(CheckpointError, match="hf download"):
        load(copy)


def test_an_asr_tokenizer_that_is_not_whispers(copy: Path) -> None:
    for file in (copy / "asr_tokenizer").iterdir():
        file.unlink()
    for file in (copy / "llama_tokenizer").iterdir():
        (copy / "asr_tokenizer" / file.name).write_bytes(file.read_bytes())
    refused(copy, copy / "asr_tokenizer", "<|startoftranscript|>")


def test_directories_files_and_hub_ids(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such directory")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file")
    with pytest.raises(CheckpointError, match="could not be fetched from the hub"):
        TasteForCausalLM.from_pretrained("nobody/no-such-model")
