"""The spoken LM: Llama with LoRA, fed with text and speech fused, from which text and codes are read.

Source: checkpoint layout 4.6 to 4.8. The speech of a word is heard `delay` words later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from taste_grpc.errors import CheckpointError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.products import fill_rows, product
from taste_grpc.model.layers.shapes import FixedShape
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots, SlotPass
from taste_grpc.model.spoken_lm.llama_step import LayerRun
from taste_grpc.model.spoken_lm.lora import LoraConfig, add_adapters
from taste_grpc.model.spoken_lm.rotary import RoundedRotaryEmbedding
from taste_grpc.model.tensor_shapes import TensorShapes

PREFIX = "spoken_lm."
_LLAMA = PREFIX + "language_model.base_model.model."


@dataclass(frozen=True)
class SpokenLMConfig:
    """Sizes and settings of the spoken LM.

    Attributes:
        llama: the `text_config` of config.json.
        lora: adapter settings, None when the checkpoint has no adapters.
        audio_dim: width of a speech embedding.
        latent_dim: width of the latent that names the codes.
        sos_id: text id that opens every prompt.
        delay: words between a word and the id that carries its codes.
        rotary_dtype: precision the rotary frequencies are rounded to (bfloat16 as published; a
            checkpoint says otherwise with `rotary_inv_freq_dtype` in `spoken_lm_config`).
        attn_implementation: attention kernel of transformers (`sdpa` or `eager`).
    """

    llama: dict[str, Any]
    lora: LoraConfig | None
    audio_dim: int
    latent_dim: int
    sos_id: int
    delay: int = 1
    rotary_dtype: torch.dtype = torch.bfloat16
    attn_implementation: str = "sdpa"

    @classmethod
    def from_published(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]] | None,
        attn_implementation: str = "sdpa",
    ) -> Self:
        """From config.json and, where it is silent, the shapes of the tensors."""
        own = config["spoken_lm_config"]
        _require(own, "in_llm_module", "weighted_sum")
        _require(own, "out_llm_module", "continue_latent_linear_last")
        _require(own, "delay_level", "word")
        _require(own, "audio_embed_conv_mode", "fill_forward")
        rotary = own.get("rotary_inv_freq_dtype", "bfloat16")
        if rotary not in ("bfloat16", "float32"):
            raise CheckpointError(f"config.json: spoken_lm_config.rotary_inv_freq_dtype is {rotary!r}")
        delay = int(own["delay"])
        if delay < 1:
            raise CheckpointError(f"config.json: spoken_lm_config.delay is {delay}; at least 1 word is expected")
        return cls(
            llama=dict(config["text_config"]),
            lora=_lora_config(own),
            audio_dim=int(config["audio_tower_config"]["audio_embed_dim"]),
            latent_dim=_latent_dim(config, shapes),
            sos_id=_sos_id(config),
            delay=delay,
            rotary_dtype=torch.bfloat16 if rotary == "bfloat16" else torch.float32,
            attn_implementation=attn_implementation,
        )


def _latent_dim(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None) -> int:
    quantizer = config["audio_tower_config"]["kwargs_for_quantizer"]
    stated = quantizer.get("codebook_dim", quantizer["dim"])  # codes are looked for where the latent lives
    key = "audio_tower_config.kwargs_for_quantizer.codebook_dim"
    return TensorShapes(shapes, "config.json").size(f"{PREFIX}extract_for_bridge_out_llm.fc_mu.weight", 0, key, stated)


def _lora_config(own: Mapping[str, Any]) -> LoraConfig | None:
    if not own.get("use_lora", True):
        return None
    rank, alpha = int(own["kwargs_for_lora"]["lora_r"]), float(own["kwargs_for_lora"]["lora_alpha"])
    if rank < 1:
        raise CheckpointError(f"config.json: spoken_lm_config.kwargs_for_lora.lora_r is {rank}; at least 1 is expected")
    return LoraConfig(rank, alpha)


def _sos_id(config: Mapping[str, Any]) -> int:
    sos_id, vocab_size = int(config["spoken_lm_config"]["sos_id"]), int(config["text_config"]["vocab_size"])
    if not 0 <= sos_id < vocab_size:
        raise CheckpointError(
            f"config.json: spoken_lm_config.sos_id is {sos_id}, but text_config.vocab_size is {vocab_size}"
        )
    return sos_id


def _require(config: Mapping[str, Any], name: str, value: str) -> None:
    if config.get(name, value) != value:
        raise CheckpointError(
            f"config.json: spoken_lm_config.{name} is {config[name]!r}; this program knows {value!r} only"
        )


class WeightedFusion(nn.Module):
    """softmax(weights), audio first: `w0 * linear(audio) + w1 * text`."""

    def __init__(self, audio_dim: int, text_dim: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([-2.0, 2.0]))
        self.linear = nn.Linear(audio_dim, text_dim)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """`audio` `[..., A]` and `text` `[..., D]` to float32 `[..., D]`."""
        share = self.weights.float().softmax(0)
        heard = product(self.linear, audio.to(self.linear.weight.dtype)).float()
        return share[0] * heard + share[1] * text.float()


class TasteHead(nn.Module):
    """From a hidden state to the latent whose nearest codes are the word's speech."""

    def __init__(self, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.b_logvar = nn.Parameter(torch.zeros(latent_dim))
        self.fc_mu = nn.Linear(hidden_dim, latent_dim)

    def mean(self, hidden: Tensor) -> Tensor:
        """`[..., D]` to the mean `[..., latent]`, float32."""
        return product(self.fc_mu, hidden.to(self.fc_mu.weight.dtype)).float().contiguous()

    def forward(self, hidden: Tensor) -> Tensor:
        """The latent: the mean plus one standard deviation (a constant offset, as published)."""
        return self.mean(hidden) + (self.b_logvar.float() / 2).exp()


class _Holder(nn.Module):
    """Gives its child the attribute name the published tensors carry."""

    def __init__(self, name: str, child: nn.Module) -> None:
        super().__init__()
        self.add_module(name, child)


@dataclass(frozen=True)
class FusedPrompt:
    """Rows of a spoken prompt.

    Attributes:
        rows: `[1 + L + delay, D]` float32, the first one the un-fused embedding of sos.
        audio_rows: `[L + delay, A]` speech embeddings that were fused into rows 1 onwards.
    """

    rows: Tensor
    audio_rows: Tensor


class SpokenLM(nn.Module):
    """Text and speech in, text and speech out, one position per text id.

    Weights only: what a call remembers lives in a KeyValueSlots the caller owns.
    """

    def __init__(self, config: SpokenLMConfig) -> None:
        super().__init__()
        self.config = config
        settings = _llama_settings(config.llama)
        llama_config = LlamaConfig(**{**settings, "attn_implementation": config.attn_implementation})
        llama = LlamaForCausalLM(llama_config)
        llama.model.rotary_emb = RoundedRotaryEmbedding(llama_config, config.rotary_dtype)
        if config.lora is not None:
            add_adapters(llama.model.layers, config.lora)
        self.language_model = _Holder("base_model", _Holder("model", llama))
        self.hidden_dim = int(llama_config.hidden_size)
        self.pad_text_unit_embed = nn.Parameter(torch.zeros(self.hidden_dim))
        self.pad_audio_unit_embed = nn.Parameter(torch.zeros(config.audio_dim))
        self.fuse_for_bridge_in_llm = WeightedFusion(config.audio_dim, self.hidden_dim)
        self.extract_for_bridge_out_llm = TasteHead(self.hidden_dim, config.latent_dim)

    @property
    def llama(self) -> LlamaForCausalLM:
        """The language model inside."""
        llama = self.language_model.get_submodule("base_model.model")
        assert isinstance(llama, LlamaForCausalLM)
        return llama

    @property
    def vocab_size(self) -> int:
        """Number of text ids the model scores."""
        return int(self.llama.config.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the language model."""
        dtype: torch.dtype = self.llama.model.embed_tokens.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pad_audio_unit_embed.device

    def new_cache(self, slots: int, capacity: int, *, fixed: FixedShape | None = None) -> KeyValueSlots:
        """Empty storage for `slots` calls of up to `capacity` positions.

        With `fixed`, the numbers of a call are the same to the bit whatever runs beside it.
        """
        config: Any = self.llama.config
        return KeyValueSlots(
            layers=config.num_hidden_layers,
            slots=slots,
            kv_heads=config.num_key_value_heads,
            capacity=capacity,
            head_dim=config.head_dim,
            dtype=self.dtype,
            device=self.device,
            fixed=fixed,
        )

    def embed_text(self, text_ids: Tensor) -> Tensor:
        """Embeddings `[..., D]` of text ids, float32."""
        embeddings: Tensor = self.llama.model.embed_tokens(text_ids)
        return embeddings.float()

    def fuse(self, audio: Tensor, text: Tensor) -> Tensor:
        """Input rows `[..., D]` from speech embeddings `[..., A]` and text embeddings `[..., D]`."""
        fused: Tensor = self.fuse_for_bridge_in_llm(audio, text)
        return fused

    def prompt(self, text_ids: Tensor, audio_rows: Tensor) -> FusedPrompt:
        """A spoken prompt.

        Args:
            text_ids: `[L]`.
            audio_rows: `[L + delay, A]`, speech already delayed (see `speech_rows`).
        """
        delay = audio_rows.shape[0] - text_ids.shape[0]
        pads = self.pad_text_unit_embed.float().expand(delay, -1)
        text = torch.cat([self.embed_text(text_ids), pads])
        sos = self.embed_text(torch.tensor([self.config.sos_id], device=text_ids.device))
        return FusedPrompt(torch.cat([sos, self.fuse(audio_rows, text)]), audio_rows)

    def forward(
        self,
        rows: Tensor,
        cache: KeyValueSlots,
        slots: Sequence[int],
        lengths: Sequence[int] | None = None,
        abort: AbortCheck = never_abort,
    ) -> Tensor:
        """Feed new rows to some slots; every slot goes on from what it holds.

        Args:
            rows: `[B, T, D]`, padded on the right where `lengths` says so.
            cache: storage the slots live in; it is advanced.
            slots: B different slots.
            lengths: valid rows of each (all T by default).
            abort: called before every layer.

        Returns:
            Hidden states after the final norm `[B, T, D]`, zeros where the rows were padding.
        """
        counts = [rows.shape[1]] * rows.shape[0] if lengths is None else list(lengths)
        valid = [row[:count] for row, count in zip(rows, counts, strict=True)]
        run = self.run(torch.cat(valid), SlotPass(cache, slots, counts))
        run.advance(abort=abort)
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(run.hidden, counts)), batch_first=True)

    def run(self, rows: Tensor, run: SlotPass, *, rowwise: bool = False) -> LayerRun:
        """New rows `[run.rows, D]` of several calls, one call after the other, ready to go through the layers.

        `rowwise` keeps neighbouring rows from touching each other's last bits (see `FixedShape`).
        """
        kind = self.config.attn_implementation
        return LayerRun(self.llama.model, rows.to(self.dtype), run, kind, rowwise=rowwise)

    def step(self, rows: Tensor, cache: KeyValueSlots, slots: Sequence[int], abort: AbortCheck = never_abort) -> Tensor:
        """Feed one row `[n, D]` to each of n different slots; returns hidden states `[n, D]`.

        A cache of fixed shape has every step done with its number of rows; `rows` may be that many already.
        """
        fixed = cache.fixed
        run = SlotPass(cache, slots, [1] * len(slots), None if fixed is None else fixed.step_rows)
        going = self.run(fill_rows(rows, run.rows), run, rowwise=fixed is not None)
        going.advance(abort=abort)
        return going.hidden[: len(slots)]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores `[..., V]` of the next text id, float32."""
        return product(self.llama.lm_head, hidden).float().contiguous()

    def taste_mean(self, hidden: Tensor) -> Tensor:
        """Mean `[..., latent]` of the speech latent at each position."""
        return self.extract_for_bridge_out_llm.mean(hidden)

    def taste_latent(self, hidden: Tensor) -> Tensor:
        """Speech latent `[..., latent]` at each position; its nearest codes are a word's speech."""
        latent: Tensor = self.extract_for_bridge_out_llm(hidden)
        return latent


def _llama_settings(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """`text_config` without what belongs to the file rather than the network."""
    dropped = {"_name_or_path", "_attn_implementation_autoset", "architectures", "torch_dtype", "model_type"}
    return {key: value for key, value in text_config.items() if key not in dropped}


def delayed_sources(coded: Sequence[bool], word_ids: Sequence[int], delay: int) -> list[int]:
    """Which id's codes stand at each position of a spoken prompt.

    The codes of word k stand at its first id; they are heard from the first id of word k + delay on,
    until the next ones, also over words that have none. The last `delay` words are heard after the text.

    Args:
        coded: for each of L ids, whether its row carries codes.
        word_ids: L non-decreasing word indices.
        delay: words the speech is late.

    Returns:
        L + delay indices of ids, -1 where nothing is heard yet.
    """
    length = len(word_ids)
    starts = [i for i in range(length) if i == 0 or word_ids[i] != word_ids[i - 1]]
    late = min(delay, len(starts))
    places = starts[delay:] + list(range(length + delay - late, length + delay))
    sources = [-1] * (length + delay)
    newest = -1
    for start, place, end in zip(starts, places, [*places[1:], length + delay], strict=True):
        newest = start if coded[start] or newest < 0 else newest
        sources[place:end] = [newest] * (end - place)
    return sources


def speech_rows(
    taste_rows: Tensor,
    word_ids: Sequence[int],
    pad: Tensor,
    delay: int,
    output_from_indices: Callable[[Tensor], Tensor],
) -> Tensor:
    """Speech embeddings of a prompt, each word's `delay` words late (see `delayed_sources`).

    Args:
        taste_rows: `[L, Q]` int64; the row of a word stands at its first id.
        word_ids: L non-decreasing word indices.
        pad: `[A]`, what stands where nothing is heard yet.
        delay: words a row is late.
        output_from_indices: codes `[..., Q]` to speech embeddings `[..., A]`.

    Returns:
        `[L + delay, A]` float32.
    """
    coded = (taste_rows[:, 0] != -1).tolist()
    sources = torch.tensor(delayed_sources(coded, word_ids, delay), device=taste_rows.device)
    heard = output_from_indices(taste_rows[sources.clamp(min=0)]).float()
    return torch.where((sources >= 0)[:, None], heard, pad.float())
