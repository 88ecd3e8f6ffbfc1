"""Writing a checkpoint in the published layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from taste_grpc.model.embedded.checkpoint_sizes import Shapes

MAX_SHARD_BYTES = 5_000_000_000

_WHISPER_PARTS = ("audio_tower.audio_joint_encoder_segmenter.",)
_LLAMA_PARTS = ("spoken_lm.language_model.",)


@dataclass(frozen=True)
class TextTokenizerFiles:
    """A fast tokenizer and the entries of its tokenizer_config.json."""

    tokenizer: Tokenizer
    config: Mapping[str, Any]

    def save(self, directory: Path) -> None:
        """Write the files transformers reads a fast tokenizer from."""
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        write_json(directory / "tokenizer_config.json", self.config)
        special = {name: self.config[name] for name in ("bos_token", "eos_token", "pad_token") if name in self.config}
        write_json(directory / "special_tokens_map.json", special)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint directory holds.

    Attributes:
        config: content of config.json.
        shapes: names and shapes of the tensors of model.safetensors.
        tensors: yields those tensors by name, in any order, each once; they are written as they come.
        voice_dims: content of voice_generator_dims.json; None leaves the file out (the published sizes).
        voice_tensors: content of voice_generator.pth.
        speaker_network: content of speaker_embed.onnx.
        text_tokenizer: of the language model.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    tensors: Iterable[tuple[str, Tensor]]
    voice_dims: Mapping[str, Any] | None
    voice_tensors: Mapping[str, Tensor]
    speaker_network: bytes
    text_tokenizer: TextTokenizerFiles


def write_checkpoint(
    directory: Path,
    checkpoint: Checkpoint,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[float], None] | None = None,
) -> None:
    """Write `checkpoint` into `directory`, which is made when needed; tensor files that are there go.

    Args:
        directory: where to.
        checkpoint: what.
        max_shard_bytes: size above which model.safetensors is split; one shard is held in memory at a time.
        report: called with the fraction of the tensors written.

    Raises:
        OSError: the disk is full or not writable.
    """
    (directory / "cosyvoice").mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", checkpoint.config)
    checkpoint.text_tokenizer.save(directory / "llama_tokenizer")
    copy_whisper_tokenizer(directory / "asr_tokenizer")
    (directory / "cosyvoice" / "speaker_embed.onnx").write_bytes(checkpoint.speaker_network)
    if checkpoint.voice_dims is not None:
        write_json(directory / "cosyvoice" / "voice_generator_dims.json", checkpoint.voice_dims)
    voice = {name: tensor.contiguous() for name, tensor in checkpoint.voice_tensors.items()}
    torch.save(voice, directory / "cosyvoice" / "voice_generator.pth")
    _write_shards(directory, checkpoint, max_shard_bytes, report or (lambda fraction: None))


def published_dtype(name: str) -> torch.dtype:
    """The dtype the published checkpoint stores the tensor `name` of model.safetensors in."""
    reduced = name.startswith(_WHISPER_PARTS) or (name.startswith(_LLAMA_PARTS) and "lora_" not in name)
    return torch.bfloat16 if reduced else torch.float32


def copy_whisper_tokenizer(directory: Path) -> None:
    """Write the Whisper tokenizer that comes with this package (MIT, its LICENSE included)."""
    with as_file(whisper_tokenizer_data()) as source:
        shutil.copytree(source, directory, copy_function=shutil.copyfile, dirs_exist_ok=True)


def whisper_tokenizer_data() -> Any:
    """Where the Whisper tokenizer lies among this package's data."""
    return files("taste_grpc.model.embedded") / "data" / "asr_tokenizer"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(
    directory: Path, checkpoint: Checkpoint, max_shard_bytes: int, report: Callable[[float], None]
) -> None:
    """One model.safetensors, or shards and their index, never holding more than a shard."""
    for stale in directory.glob("model*.safetensors*"):  # an index left over would win over a single file
        stale.unlink()
    written: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    done = 0
    for shard in _shards(checkpoint.tensors, max_shard_bytes):
        path = directory / f"shard-{len(written)}.tmp"
        save_file(shard, path, metadata={"format": "pt"})
        written.append((path, list(shard)))
        total_bytes += sum(_bytes_of(tensor) for tensor in shard.values())
        done += len(shard)
        report(done / len(checkpoint.shapes))
    names = [name for _, shard_names in written for name in shard_names]
    if sorted(names) != sorted(checkpoint.shapes):
        wrong = sorted(set(names) ^ checkpoint.shapes.keys())
        raise AssertionError(f"tensors written and tensors of the layout differ: {wrong[:6]}")
    if len(written) == 1:
        written[0][0].rename(directory / "model.safetensors")
        return
    weight_map = {}
    for index, (path, shard_names) in enumerate(written):
        file = f"model-{index + 1:05d}-of-{len(written):05d}.safetensors"
        path.rename(directory / file)
        weight_map.update(dict.fromkeys(shard_names, file))
    index_content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index_content)


def _shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + _bytes_of(tensor) > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += _bytes_of(tensor)
    if shard:
        yield shard


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
