"""Copies of the tiny checkpoint, changed on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taste_grpc.model.text.tokens import ROLE_TOKENS, SEGMENT_END_TOKEN, SEGMENT_START_TOKEN

TINY = Path(__file__).parent / "data" / "taste-tiny"
WEIGHTS = "model.safetensors"
LLAMA = "spoken_lm.language_model.base_model.model."
EMBEDDING = LLAMA + "model.embed_tokens.weight"
LM_HEAD = LLAMA + "lm_head.weight"
CONVERSATION_TOKENS = (SEGMENT_START_TOKEN, SEGMENT_END_TOKEN, *ROLE_TOKENS.values())


def copy_checkpoint(target: Path, *, goldens: bool = False) -> Path:
    """A copy of the tiny checkpoint in `target`, with or without its recorded numbers."""
    shutil.copytree(TINY, target, ignore=None if goldens else shutil.ignore_patterns("goldens"))
    return target


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Let `change` alter the contents of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Let `change` alter the tensors of a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def write_chat_checkpoint(target: Path) -> Path:
    """The tiny checkpoint with a tokenizer that has the five conversation tokens, and embeddings for them."""
    copy_checkpoint(target)
    vocab_size = json.loads((target / "config.json").read_text(encoding="utf-8"))["text_config"]["vocab_size"]
    new = [
        {"id": vocab_size + k, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for k, token in enumerate(CONVERSATION_TOKENS)
    ]
    folder = target / "llama_tokenizer"
    edit_json(folder / "tokenizer.json", lambda content: content["added_tokens"].extend(new))
    edit_json(
        folder / "tokenizer_config.json",
        lambda content: content["added_tokens_decoder"].update(
            {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in new}
        ),
    )
    edit_json(target / "config.json", lambda content: content["text_config"].update(vocab_size=vocab_size + len(new)))

    def add_rows(tensors: dict[str, Tensor]) -> None:
        table = tensors[EMBEDDING]
        rows = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(1))
        tensors[EMBEDDING] = torch.cat([table, (rows * table.float().std()).to(table.dtype)])

    edit_tensors(target / WEIGHTS, add_rows)
    return target
