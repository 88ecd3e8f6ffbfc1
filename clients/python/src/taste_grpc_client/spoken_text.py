"""Text and how it is said, word by word: to be stored, edited and spoken again."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from taste.v1.common_pb2 import (
    MODALITY_AUDIO,
    Segment,
    SegmentTokens,
    SegmentWords,
    SpeakerEmbedding,
    TasteCodes,
    TasteTokens,
)
from taste.v1.common_pb2 import SpokenWord as WordMessage
from taste.v1.taste_pb2 import GetModelInfoResponse, StreamingResult, TokenizeResponse
from taste_grpc_client import taste_file
from taste_grpc_client.segments import RoleName, role_of
from taste_grpc_client.word import Word


@dataclass
class SpokenText:
    """Text and how it is said. `save` and `load` keep it in a `.taste.json` file.

    Attributes:
        words: what is said, in order. May be edited; each has as many codes as the others.
        speaker: the voice it was said with, as an embedding; None when not known.
        audio_ms: length of the recording it came from; None when there was none.
        model_id: the model whose codes these are, by name; empty when not known.
        revision: that model's weights; empty when not known.
    """

    words: list[Word] = field(default_factory=list)
    speaker: tuple[float, ...] | None = None
    audio_ms: float | None = None
    model_id: str = ""
    revision: str = ""

    @classmethod
    def from_tokenized(cls, response: TokenizeResponse, info: GetModelInfoResponse | None = None) -> Self:
        """What `tokenize` heard; `info` tells the model. Raises ValueError when the response lacks words or codes."""
        words = _read_words(response.text_ids, response.word_ids, response.taste_tokens, response.words)
        text = cls(words, audio_ms=response.audio_ms)
        text.speaker = speaker_values(response.speaker_embedding) if response.HasField("speaker_embedding") else None
        return text._with_model(info)

    @classmethod
    def from_results(
        cls,
        results: Iterable[StreamingResult],
        info: GetModelInfoResponse | None = None,
        *,
        speaker: SpeakerEmbedding | Iterable[float] | None = None,
    ) -> Self:
        """An answer of `generate` or `speak`, to be said with the voice of `speaker`.

        Raises ValueError as `from_tokenized` does.
        """
        words: list[Word] = []
        for result in results:
            if result.HasField("segment"):
                words += _read_tokens(result.segment.tokens)
        voice = None if speaker is None else speaker_values(speaker)
        return cls(words, voice)._with_model(info)

    def _with_model(self, info: GetModelInfoResponse | None) -> Self:
        if info is not None:
            self.model_id, self.revision = info.model_id, info.revision
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a `.taste.json` file.

        Raises:
            OSError: it cannot be read.
            TasteFileError: it is no such file, or a value in it cannot be; the error names the place.
        """
        return cls(**taste_file.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.taste.json` file: whole, or not at all.

        Raises:
            OSError: it cannot be written.
            ValueError: the words do not go together, or another attribute cannot be.
        """
        contents = taste_file.Contents(
            words=self.words,
            speaker=self.speaker,
            audio_ms=self.audio_ms,
            model_id=self.model_id,
            revision=self.revision,
        )
        taste_file.write(path, contents)

    @property
    def text(self) -> str:
        """The words with blanks between them."""
        return " ".join(word.text for word in self.words)

    @property
    def vq_dim(self) -> int:
        """Codes of each word; 0 when there are no words. Raises ValueError when words differ."""
        dims = [len(word.codes) for word in self.words]
        for index, dim in enumerate(dims):
            if dim != dims[0]:
                raise ValueError(f"words[{index}].codes: {dims[0]} were expected, as in words[0], not {dim}")
        return dims[0] if dims else 0

    def replace_word(self, index: int, text: str) -> None:
        """Says `text` the way the word at `index` was said. Raises IndexError, ValueError."""
        self.words[index] = Word(text, self.words[index].codes)

    def insert_word(self, index: int, text: str, codes: Iterable[int]) -> None:
        """Puts a word before the one at `index`, to be said as `codes` tell, say those of another word.

        Raises ValueError.
        """
        word = Word(text, tuple(codes))
        if self.words and len(word.codes) != self.vq_dim:
            raise ValueError(f"codes: {self.vq_dim} were expected, as in the other words, not {len(word.codes)}")
        self.words.insert(index, word)

    def delete_word(self, index: int) -> Word:
        """Takes the word at `index` out. Raises IndexError."""
        return self.words.pop(index)

    def segment(self, role: RoleName = "assistant") -> Segment:
        """A segment of words, for `generate` or `detokenize`. Raises ValueError when there are no words, or they differ
        in length of codes."""
        if not self.words:
            raise ValueError("words: there are none, so there is nothing to say")
        vq_dim = self.vq_dim
        words = [
            WordMessage(
                text=word.text,
                taste_tokens=TasteTokens(codes=TasteCodes(vq_dim=vq_dim, ids=word.codes)),
                text_ids=word.text_ids,
            )
            for word in self.words
        ]
        return Segment(role=role_of(role), modality=MODALITY_AUDIO, words=SegmentWords(words=words))

    def require_model(self, info: GetModelInfoResponse) -> None:
        """Raises ValueError when the codes are not those of the model `info` describes, as far as one can tell."""
        for name, own, there in (
            ("model_id", self.model_id, info.model_id),
            ("revision", self.revision, info.revision),
        ):
            if own and own != there:
                raise ValueError(f"{name}: the codes are those of {own!r}, and the server's model is {there!r}")
        if self.words and self.vq_dim != info.vq_dim:
            raise ValueError(f"words: each has {self.vq_dim} codes, and the server's model wants {info.vq_dim}")
        for index, word in enumerate(self.words):
            if max(word.codes) >= info.codebook_size:
                raise ValueError(f"words[{index}].codes: the server's model has codes up to {info.codebook_size - 1}")


def speaker_values(embedding: SpeakerEmbedding | Iterable[float]) -> tuple[float, ...]:
    """The numbers of an embedding, as short as they can be written in decimal: the wire has them in 32 bits."""
    values = embedding.values if isinstance(embedding, SpeakerEmbedding) else embedding
    return tuple(_shortest(float(value)) for value in values)


def _shortest(value: float) -> float:
    if not math.isfinite(value):
        return value
    wire = struct.pack("<f", value)
    return next(short for digits in range(6, 10) if struct.pack("<f", short := float(f"{value:.{digits}g}")) == wire)


def _read_tokens(tokens: SegmentTokens) -> list[Word]:
    return _read_words(tokens.text_ids, tokens.word_ids, tokens.taste_tokens, tokens.words)


def _read_words(
    text_ids: Iterable[int], word_ids: Iterable[int], taste_tokens: TasteTokens, texts: Iterable[str]
) -> list[Word]:
    ids, numbers, names = list(text_ids), list(word_ids), list(texts)
    codes = taste_tokens.codes
    if not taste_tokens.HasField("codes") or len(codes.ids) != len(ids) * codes.vq_dim or len(numbers) != len(ids):
        raise ValueError("taste_tokens: a row of codes for each text id was expected")
    starts = [at for at in range(len(ids)) if at == 0 or numbers[at] != numbers[at - 1]]
    if len(names) != len(starts):
        raise ValueError(f"words: {len(starts)} were expected, one for each word id; the server sent {len(names)}")
    found = []
    for text, start, end in zip(names, starts, [*starts[1:], len(ids)], strict=True):
        if not text:  # ids that spell nothing, and are not said
            continue
        # The row of a word stands at the text id that starts it.
        row = tuple(codes.ids[start * codes.vq_dim : (start + 1) * codes.vq_dim])
        found.append(Word(text, row, tuple(ids[start:end])))
    return found
