"""Finding checkpoints and what stands in them: directories, hub ids, tokenizers, devices."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from taste_grpc.errors import CheckpointError, InvalidInputError
from taste_grpc.model.text.tokens import TextTokenizer
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds

_PATTERNS = ["*.json", "*.safetensors", "llama_tokenizer/*", "asr_tokenizer/*", "cosyvoice/*"]
_TOKENIZER_PATTERNS = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_ATTENTION = ("sdpa", "eager")
_DEVICES = "auto, cpu, cuda, cuda:N or the index of a CUDA device"
_FINGERPRINT_SAMPLES, _FINGERPRINT_BYTES = 32, 4096


def resolve_checkpoint(model: str | Path) -> Path:
    """The directory of a checkpoint given as a directory or as a hub id.

    Raises:
        CheckpointError: there is neither such a directory nor such a repository within reach.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; a model is a directory or a hub id")
    text = str(model)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub client raises many kinds; each means the same here
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{model} is not a directory and could not be fetched from the hub: {reason}") from error


def load_text_tokenizer(directory: Path) -> TextTokenizer:
    """The LLM's tokenizer of a checkpoint. Raises CheckpointError when it is absent or damaged."""
    folder = directory / "llama_tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / 'tokenizer.json'} is missing; the checkpoint has no text tokenizer")
    try:
        return TextTokenizer.from_directory(folder)
    except Exception as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from error


def load_asr_tokenizer(directory: Path, asr_config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The Whisper tokenizer of a checkpoint: its own, else the one of the repository `asr_config` names."""
    return _asr_tokenizer(directory.resolve(), str(asr_config.get("_name_or_path", "")))


@lru_cache(maxsize=4)
def _asr_tokenizer(directory: Path, name_or_path: str) -> PreTrainedTokenizerFast:
    folder = directory / "asr_tokenizer"
    if folder.is_dir():
        try:
            own: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
            WhisperSpecialIds.from_tokenizer(own)
            return own
        except Exception as error:
            raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from error
    # a published configuration gives a path of its authors' machine, whose last part is the hub name
    is_hub_id = _HUB_ID.fullmatch(name_or_path) is not None
    repository = name_or_path if is_hub_id else f"openai/{Path(name_or_path).name or 'whisper-large-v3'}"
    try:
        shared: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(_tokenizer_snapshot(repository))
        return shared
    except Exception as error:
        raise CheckpointError(
            f"{folder} is missing and {repository} is neither in the hub cache nor within reach; "
            f"run `hf download {repository} tokenizer.json tokenizer_config.json special_tokens_map.json "
            f"--local-dir {folder}`"
        ) from error


def _tokenizer_snapshot(repository: str) -> str:
    """Folder with the tokenizer files of a hub repository: from the cache, else fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, allow_patterns=_TOKENIZER_PATTERNS, local_files_only=True)
        if (Path(folder) / "tokenizer.json").is_file():
            return folder
    except LocalEntryNotFoundError:
        pass
    hf_hub_download(repository, "tokenizer.json")  # one file first: without it, or a network, there is nothing to fetch
    return snapshot_download(repository, allow_patterns=_TOKENIZER_PATTERNS)


def resolve_device(device: str | int | torch.device) -> torch.device:
    """`auto` (CUDA when there is one), `cuda`, `cuda:N`, `cpu`, or an index of a CUDA device.

    Raises InvalidInputError when it is none of these, or no such device is there.
    """
    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError("device", f"{device!r} is not {_DEVICES}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInputError("device", f"{device!r} is not {_DEVICES}")
    if chosen.type == "cuda":
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= present:
            raise InvalidInputError(
                "device", f"{str(chosen)!r} was asked for, but {present} CUDA devices are available"
            )
    # with its index, so that it equals the device of the tensors that go there
    return torch.device("cuda", torch.cuda.current_device()) if chosen == torch.device("cuda") else chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on the CPU; else `bfloat16`, `float16` or `float32`.

    Raises InvalidInputError for anything else.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    raise InvalidInputError("dtype", f"{str(dtype)!r} is not auto, {', '.join(_DTYPES)}")


def check_attention(attn_implementation: str) -> str:
    """`attn_implementation`, if there is such a one. Raises InvalidInputError."""
    if attn_implementation not in _ATTENTION:
        raise InvalidInputError("attn_implementation", f"{attn_implementation!r} is not {' or '.join(_ATTENTION)}")
    return attn_implementation


def fingerprint(directory: Path) -> str:
    """Short hash that tells checkpoints apart: configuration, tokenizers and samples of every weight file.

    Reads a few hundred kilobytes, so it costs milliseconds whatever the size of the model.
    """
    digest = hashlib.blake2b(digest_size=12)
    files = sorted(path for pattern in _PATTERNS for path in directory.glob(pattern) if path.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory)}:{size}\n".encode())
        with path.open("rb") as file:
            for k in range(_FINGERPRINT_SAMPLES):
                file.seek(k * max(size - _FINGERPRINT_BYTES, 0) // (_FINGERPRINT_SAMPLES - 1))
                digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()
