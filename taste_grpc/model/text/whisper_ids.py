"""The ids Whisper's decoder is told its task with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from taste_grpc.errors import CheckpointError


class _HasVocabulary(Protocol):
    def get_vocab(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class WhisperSpecialIds:
    """Ids of start of transcript, language, task, no timestamps and end of text."""

    start: int
    language: int
    task: int
    no_timestamps: int
    end: int

    @property
    def prefix(self) -> tuple[int, int, int, int]:
        """What comes before the tokens of a text."""
        return (self.start, self.language, self.task, self.no_timestamps)

    @classmethod
    def from_tokenizer(cls, tokenizer: _HasVocabulary, language: str = "en") -> Self:
        """Look the ids up in a Whisper tokenizer. Raises CheckpointError naming a token it does not have."""
        vocabulary = tokenizer.get_vocab()

        def id_of(token: str) -> int:
            # Not convert_tokens_to_ids, which gives the end of text for what it does not know.
            if token not in vocabulary:
                raise CheckpointError(f"the recogniser's tokenizer has no token {token}, so it is not a Whisper one")
            return int(vocabulary[token])

        return cls(
            start=id_of("<|startoftranscript|>"),
            language=id_of(f"<|{language}|>"),
            task=id_of("<|transcribe|>"),
            no_timestamps=id_of("<|notimestamps|>"),
            end=id_of("<|endoftext|>"),
        )
