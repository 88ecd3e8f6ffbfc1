"""What goes into a streaming call and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from taste_grpc.errors import BatchSizeError, InvalidInputError, InvalidTypeError, type_name

Role = Literal["system", "user", "assistant"]
Modality = Literal["text", "audio"]
CompletionReason = Literal["continuing", "segment_end", "finished", "no_speech", "max_length"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def check_ids(name: str, ids: Any, dims: int) -> Tensor:
    """`ids` as int64 if it is an integer tensor of batch size 1 with `dims` dimensions.

    Raises InvalidTypeError, BatchSizeError or InvalidInputError naming `name`.
    """
    if not isinstance(ids, Tensor):
        raise InvalidTypeError(name, f"is a {type_name(ids)}; a torch.Tensor is expected")
    if ids.dtype not in _INTEGERS:
        raise InvalidTypeError(name, f"has dtype {ids.dtype}; integers are expected")
    expected = "(1, S)" if dims == 2 else "(1, S, vq_dim)"
    if ids.dim() != dims:
        raise InvalidInputError(name, f"has shape {tuple(ids.shape)}; {expected} is expected")
    if ids.shape[0] != 1:
        raise BatchSizeError(name, f"has shape {tuple(ids.shape)}; batch size 1 is expected, {expected}")
    return ids.long()


def check_text_ids(name: str, text_ids: Any, vocab_size: int) -> list[int]:
    """The ids of a tensor `(1, S)`, S > 0, all of them in the vocabulary. Raises errors naming `name`."""
    ids: list[int] = check_ids(name, text_ids, 2)[0].tolist()
    if not ids:
        raise InvalidInputError(name, "is empty; at least one id is expected")
    check_range(name, ids, vocab_size)
    return ids


def check_range(name: str, ids: Sequence[int], size: int) -> None:
    """Raise InvalidInputError naming `name` and the first of `ids` outside 0..size-1."""
    outside = next((number for number in ids if not 0 <= number < size), None)
    if outside is not None:
        raise InvalidInputError(name, f"contains {outside}; ids from 0 to {size - 1} are allowed")


def check_word_ids(name: str, word_ids: Any, count: int) -> list[int]:
    """The word of each of `count` text ids, a tensor `(1, S)`. Raises errors naming `name`."""
    words: list[int] = check_ids(name, word_ids, 2)[0].tolist()
    if len(words) != count:
        raise InvalidInputError(name, f"has S = {len(words)}, but there are {count} text ids")
    if words != sorted(words):
        raise InvalidInputError(name, "must not decrease: they are the index of each id's word")
    return words


@dataclass(eq=False)
class TASTESegment:
    """A fragment of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        modality: `text`, or `audio` when the words carry codes.
        text_ids: `(1, S)` ids of the LLM's tokenizer, without conversation markers.
        taste_ids: `(1, S, vq_dim)` codes; each word's row at its first id, -1 in all other rows.
            Audio segments have them, text segments do not.

    Segments are equal when all of this is, value by value.

    Raises:
        InvalidInputError (ValueError): role, modality or shapes are wrong or contradict each other.
        InvalidTypeError (TypeError): not integer tensors.
    """

    role: Role
    modality: Modality
    text_ids: Tensor
    taste_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidInputError("role", f"{self.role!r} is not one of {', '.join(get_args(Role))}")
        if self.modality not in get_args(Modality):
            raise InvalidInputError("modality", f"{self.modality!r} is not one of {', '.join(get_args(Modality))}")
        self.text_ids = check_ids("text_ids", self.text_ids, 2)
        if self.modality == "audio" and self.taste_ids is None:
            raise InvalidInputError("taste_ids", "are missing; modality 'audio' needs them")
        if self.modality == "text" and self.taste_ids is not None:
            raise InvalidInputError("taste_ids", "are given, but modality 'text' has none")
        if self.taste_ids is not None:
            self.taste_ids = check_ids("taste_ids", self.taste_ids, 3)
            if self.taste_ids.shape[1] != self.text_ids.shape[1]:
                raise InvalidInputError(
                    "taste_ids",
                    f"has S = {self.taste_ids.shape[1]}, but text_ids has S = {self.text_ids.shape[1]}",
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TASTESegment):
            return NotImplemented
        if (self.role, self.modality) != (other.role, other.modality):
            return False
        if not torch.equal(self.text_ids, other.text_ids):
            return False
        # of the same modality: either both have codes or neither
        return self.taste_ids is None or (other.taste_ids is not None and torch.equal(self.taste_ids, other.taste_ids))

    __hash__ = None  # type: ignore[assignment] # tensors can change

    @property
    def length(self) -> int:
        """Number of text ids."""
        return int(self.text_ids.shape[1])


@dataclass(frozen=True)
class StreamingResult:
    """What is new since the last result; can also be read like a dictionary.

    Attributes:
        is_complete: true in exactly one result of a generation, the last.
        completion_reason: `continuing` until then; at the end `segment_end` (the stop id came after
            words, those of an open segment that is gone on with included), `finished` (a sentence
            ended at or after extra_words), `no_speech` (the stop id came first) or `max_length`.
        segment: the new words, whole ones; None when the last result brings none.
    """

    is_complete: bool
    completion_reason: CompletionReason
    segment: TASTESegment | None

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` when there is no such key."""
        return getattr(self, key) if key in self.keys() else default

    def keys(self) -> list[str]:
        """Names of the values."""
        return [field.name for field in fields(self)]

    def values(self) -> list[Any]:
        """The values, in the order of the names."""
        return [getattr(self, key) for key in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names with values."""
        return [(key, getattr(self, key)) for key in self.keys()]
