"""Small checkpoints with random weights, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from taste_grpc.model.checkpoint.manifest import PARTS, write_manifest
from taste_grpc.model.embedded.checkpoint_sizes import (
    Shapes,
    SpeechSizes,
    model_shapes,
    published_config,
    voice_generator_dims,
    voice_shapes,
)
from taste_grpc.model.embedded.checkpoint_writer import (
    MAX_SHARD_BYTES,
    Checkpoint,
    TextTokenizerFiles,
    published_dtype,
    write_checkpoint,
)
from taste_grpc.model.embedded.random_parts import random_tensor, random_tensors
from taste_grpc.model.embedded.speaker_network import random_speaker_network
from taste_grpc.model.embedded.unit_pace import set_pace
from taste_grpc.model.text.tokens import ROLE_TOKENS, SEGMENT_END_TOKEN, SEGMENT_START_TOKEN

CONVERSATION_TOKENS = (SEGMENT_START_TOKEN, SEGMENT_END_TOKEN, *ROLE_TOKENS.values())
"""Segment start, segment end, system, user, assistant."""

_RECIPE = "random checkpoint 1"
_BEGIN_OF_TEXT = "<|begin_of_text|>"
_END_OF_TEXT = "<|end_of_text|>"
_BASE_TEXT = (
    "the quick brown fox jumps over the lazy dog and runs away from the old house by the river. "
    "she said that it was a very good day to go out, so they went for a long walk in the park. "
    "what would you like to hear? there is no time like the present, and there never was. "
    "it's a story about people who live in a small town near the sea, where nothing happens. "
    "I don't know what you mean, but I'll try again. ever tried. ever failed. no matter. "
)


@dataclass(frozen=True)
class LanguageSizes:
    """Sizes of the language model of a random checkpoint.

    Attributes:
        hidden: width.
        layers: number of layers.
        heads: attention heads; `hidden // heads` is the size of one.
        kv_heads: heads of keys and values, a divisor of `heads`.
        ffn: units of the feed-forward layers.
        vocab_size: rows of the embedding; None is exactly what the tokenizer needs, more is padding.
        rope_theta: base of the rotary frequencies.
        store_lm_head: store an output head of its own.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 112
    vocab_size: int | None = None
    rope_theta: float = 500000.0
    store_lm_head: bool = False

    def text_config(self, vocab_size: int, bos: int, eos: int) -> dict[str, Any]:
        """The `text_config` of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": not self.store_lm_head,
            "vocab_size": vocab_size,
        }


@dataclass(frozen=True)
class RandomSizes:
    """Sizes of a random checkpoint; the defaults make one of about 10 MB that loads at once."""

    language: LanguageSizes = field(default_factory=LanguageSizes)
    speech: SpeechSizes = field(default_factory=SpeechSizes)


def write_random_checkpoint(
    directory: Path | str,
    *,
    seed: int = 0,
    sizes: RandomSizes | None = None,
    conversation_tokens: bool = True,
    text_tokenizer: TextTokenizerFiles | None = None,
    units_per_token: float | None = 8.0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a checkpoint of random weights in the published layout, with a manifest that says so.

    Args:
        directory: where to; made when needed.
        seed: the same seed and sizes give the same weights.
        sizes: of all parts.
        conversation_tokens: whether the text tokenizer has the tokens of the conversation format.
        text_tokenizer: the text tokenizer; None is `small_text_tokenizer`.
        units_per_token: pace of the speech decoder (50 units are a second); None leaves its end of
            speech to chance.
        max_shard_bytes: size above which model.safetensors is split.

    Returns:
        `directory`.

    Raises:
        CheckpointError: the package onnx is not installed.
    """
    directory, sizes = Path(directory), sizes or RandomSizes()
    tokenizer = text_tokenizer or small_text_tokenizer(conversation_tokens)
    vocabulary = tokenizer.tokenizer.get_vocab()
    text_config = sizes.language.text_config(
        max(len(vocabulary), sizes.language.vocab_size or 0), vocabulary[_BEGIN_OF_TEXT], vocabulary[_END_OF_TEXT]
    )
    config = published_config(sizes.speech, text_config, sos_id=text_config["bos_token_id"])
    shapes = model_shapes(sizes.speech, config, store_lm_head=sizes.language.store_lm_head)
    dims = voice_generator_dims(sizes.speech)
    checkpoint = Checkpoint(
        config=config,
        shapes=shapes,
        tensors=random_model(shapes, seed, units_per_token),
        voice_dims=dims,
        voice_tensors=dict(random_tensors(voice_shapes(dims), seed)),
        speaker_network=random_speaker_network(seed),
        text_tokenizer=tokenizer,
    )
    write_checkpoint(directory, checkpoint, max_shard_bytes=max_shard_bytes)
    write_manifest(directory, recipe=_RECIPE, trained=dict.fromkeys(PARTS, False), inputs={})
    return directory


def random_model(shapes: Shapes, seed: int, units_per_token: float | None) -> Iterator[tuple[str, Tensor]]:
    """Random tensors for the names of model.safetensors, in the dtypes the published checkpoint has."""
    decoder = {name: shape for name, shape in shapes.items() if name.startswith("speech_decoder.")}
    drawn = dict(random_tensors(decoder, seed))
    if units_per_token is not None:
        set_pace(drawn, units_per_token)
    for name, shape in shapes.items():
        tensor = drawn[name] if name in drawn else random_tensor(name, shape, seed)
        yield name, tensor.to(published_dtype(name))


def small_text_tokenizer(conversation_tokens: bool = True) -> TextTokenizerFiles:
    """A byte-level BPE of a few hundred ids with Llama 3's special tokens at its end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_BASE_TEXT], trainer)
    return _with_special(tokenizer, CONVERSATION_TOKENS if conversation_tokens else ())


def words_tokenizer(count: int = 512) -> TextTokenizerFiles:
    """A tokenizer of `count` words, each one id with a blank before it, for answers with one word per id.

    It has no conversation tokens, and so no id that ends an answer. Unknown words become its first one.
    """
    syllables = [first + second for first, second in product("bdfghklmnprstvwz", "aeiou")]
    words = [
        "\u0120" + "".join(parts) for parts in islice(product(syllables, syllables), count)
    ]  # a blank in byte-level
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer, ())


def _with_special(tokenizer: Tokenizer, more: Sequence[str]) -> TextTokenizerFiles:
    special = [_BEGIN_OF_TEXT, _END_OF_TEXT, *more]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": _BEGIN_OF_TEXT,
        "eos_token": _END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return TextTokenizerFiles(tokenizer, config)
