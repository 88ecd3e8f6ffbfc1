"""What the sampler and the prompts need to know about a text tokenizer, worked out once per tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SEGMENT_START_TOKEN = "<|reserved_special_token_50|>"
SEGMENT_END_TOKEN = "<|reserved_special_token_51|>"
ROLE_TOKENS = {
    "system": "<|reserved_special_token_52|>",
    "user": "<|reserved_special_token_53|>",
    "assistant": "<|reserved_special_token_54|>",
}

# The clean-up that `clean_up_tokenization_spaces` asks for, in this order. Current transformers
# ignore the setting for BPE tokenizers, so it is applied here.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
_SPEAKABLE = re.compile(r"[.,'a-zA-Z0-9]")


def clean_up_blanks(text: str) -> str:
    """Remove the blanks before punctuation and contractions that a tokenizer's clean-up removes."""
    for found, replacement in _CLEAN_UP:
        text = text.replace(found, replacement)
    return text


@dataclass(frozen=True)
class ConversationTokens:
    """Ids of the markers around the segments of a conversation."""

    segment_start: int
    segment_end: int
    system: int
    user: int
    assistant: int

    def role(self, role: str) -> int:
        """Id of the marker of `role` (`system`, `user` or `assistant`)."""
        ids: dict[str, int] = {"system": self.system, "user": self.user, "assistant": self.assistant}
        return ids[role]


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Sets of text ids as boolean masks `[vocab]`.

    Attributes:
        word_start: the decoded text begins with a blank, or the id is an added special token.
        banned: ids that are never sampled: nothing in them can be spoken, or they contain a newline,
            or they are the tokenizer's end-of-sequence id.
        sentence_end: the decoded text contains a full stop.
    """

    word_start: Tensor
    banned: Tensor
    sentence_end: Tensor
    _ceilings: dict[tuple[torch.device, float], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids covered."""
        return self.word_start.shape[0]

    def is_word_start(self, text_id: int) -> bool:
        """Whether `text_id` begins a word."""
        return bool(self._starts[text_id])

    def is_sentence_end(self, text_id: int) -> bool:
        """Whether `text_id` contains a full stop."""
        return bool(self._ends[text_id])

    def __post_init__(self) -> None:
        # bytes make the per-token look-ups of the sampler cheap
        object.__setattr__(self, "_starts", bytes(self.word_start.to(torch.uint8).tolist()))
        object.__setattr__(self, "_ends", bytes(self.sentence_end.to(torch.uint8).tolist()))

    _starts = b""
    _ends = b""

    def ceiling_on(self, device: torch.device, banned: float) -> Tensor:
        """Float32 `[vocab]` on `device`: `banned` for banned ids, no bound for the others; made once."""
        key = (device, banned)
        if key not in self._ceilings:
            ceiling = torch.full(self.banned.shape, torch.inf)
            self._ceilings[key] = ceiling.masked_fill_(self.banned.cpu(), banned).to(device)
        return self._ceilings[key]

    @classmethod
    def from_ids(
        cls, vocab_size: int, word_start: Sequence[int], banned: Sequence[int], sentence_end: Sequence[int]
    ) -> TokenSets:
        """Sets given as lists of ids."""

        def mask(ids: Sequence[int]) -> Tensor:
            chosen = torch.zeros(vocab_size, dtype=torch.bool)
            chosen[torch.as_tensor(list(ids), dtype=torch.long)] = True
            return chosen

        return cls(mask(word_start), mask(banned), mask(sentence_end))


class TextTokenizer:
    """The text tokenizer of the spoken LM, with the id sets derived from it.

    Source: the tokenizer of `llama_tokenizer/`; `clean_up` is its `clean_up_tokenization_spaces`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, clean_up: bool) -> None:
        self.tokenizer = tokenizer
        self.clean_up = clean_up
        self._sets: dict[int, TokenSets] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> TextTokenizer:
        """Load the tokenizer in `directory`."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        settings = directory / "tokenizer_config.json"
        clean_up = settings.is_file() and bool(
            json.loads(settings.read_text(encoding="utf-8")).get("clean_up_tokenization_spaces", False)
        )
        return cls(tokenizer, clean_up=clean_up)

    @classmethod
    def of(cls, tokenizer: TextTokenizer | PreTrainedTokenizerFast) -> TextTokenizer:
        """`tokenizer` itself, or the one wrapper kept with a transformers tokenizer."""
        if isinstance(tokenizer, TextTokenizer):
            return tokenizer
        wrapper = vars(tokenizer).get("_taste_text_tokenizer")
        if not isinstance(wrapper, cls):
            wrapper = cls(tokenizer, clean_up=bool(tokenizer.init_kwargs.get("clean_up_tokenization_spaces", False)))
            vars(tokenizer)["_taste_text_tokenizer"] = wrapper
        return wrapper

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the added special tokens."""
        return frozenset(token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added; special tokens spelled out in it are ordinary text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included, after the clean-up the tokenizer asks for."""
        text: str = self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return clean_up_blanks(text) if self.clean_up else text

    def sets(self, vocab_size: int) -> TokenSets:
        """Id sets over a vocabulary of `vocab_size` ids (at least the tokenizer's); computed once."""
        if vocab_size not in self._sets:
            self._sets[vocab_size] = self._build_sets(vocab_size)
        return self._sets[vocab_size]

    def _build_sets(self, vocab_size: int) -> TokenSets:
        known = min(len(self.tokenizer), vocab_size)
        texts: list[str] = self.tokenizer.backend_tokenizer.decode_batch(
            [[token_id] for token_id in range(known)], skip_special_tokens=False
        )
        if self.clean_up:
            texts = [clean_up_blanks(text) for text in texts]
        special = self.special_ids
        starts = [i for i, text in enumerate(texts) if text.startswith(" ") or i in special]
        ends = [i for i, text in enumerate(texts) if "." in text]
        banned = [i for i, text in enumerate(texts) if "\n" in text or not _SPEAKABLE.search(text)]
        banned += range(known, vocab_size)
        if self.tokenizer.eos_token_id is not None and self.tokenizer.eos_token_id < vocab_size:
            banned.append(self.tokenizer.eos_token_id)
        return TokenSets.from_ids(vocab_size, starts, banned, ends)

    def conversation_tokens(self) -> ConversationTokens | None:
        """The conversation markers, or None when the tokenizer lacks any of them; looked up once."""
        return self._conversation_tokens

    @cached_property
    def _conversation_tokens(self) -> ConversationTokens | None:
        vocabulary = self.tokenizer.get_vocab()
        names = (SEGMENT_START_TOKEN, SEGMENT_END_TOKEN, *ROLE_TOKENS.values())
        if any(name not in vocabulary for name in names):
            return None
        return ConversationTokens(*(vocabulary[name] for name in names))
