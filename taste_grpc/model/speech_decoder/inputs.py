"""From words and their codes to what the speech decoder reads.

Source: checkpoint layout 4.11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.speech_decoder.taste_rows import audio_unit_embeds
from taste_grpc.model.text.words import WordTokens, encode_words


@dataclass(frozen=True)
class SpokenWords:
    """Words to be spoken: their Whisper tokens and one row of codes `[Q]` per word."""

    tokens: WordTokens
    taste_rows: tuple[tuple[int, ...], ...]

    def __add__(self, other: SpokenWords) -> SpokenWords:
        offset = self.tokens.word_ids[-1] + 1 if self.tokens.word_ids else 0
        tokens = WordTokens(
            self.tokens.ids + other.tokens.ids,
            self.tokens.word_ids + [offset + word for word in other.tokens.word_ids],
        )
        return SpokenWords(tokens, self.taste_rows + other.taste_rows)

    @classmethod
    def of(
        cls, words: Sequence[str], taste_rows: Sequence[Sequence[int]], asr_tokenizer: PreTrainedTokenizerFast
    ) -> SpokenWords:
        """Tokenise `words`; those that spell nothing are left out with their codes.

        Raises InvalidInputError when there is not one row per word.
        """
        if len(words) != len(taste_rows):
            raise InvalidInputError("taste_ids", f"{len(taste_rows)} rows of codes for {len(words)} words")
        spoken = [(word, tuple(row)) for word, row in zip(words, taste_rows, strict=True) if word.strip()]
        return cls(encode_words(asr_tokenizer, [word for word, _ in spoken]), tuple(row for _, row in spoken))


@dataclass(frozen=True)
class DecoderInputs:
    """Arguments of `SpeechDecoder.build_prompt` but the speaker, for one utterance of L tokens.

    `audio_unit_embeds` is `[1, L, A]` float32, `asr_token_ids` `[1, L]` int64, the lengths `[1]` int32.
    """

    audio_unit_embeds: Tensor
    audio_unit_lengths: Tensor
    asr_token_ids: Tensor
    asr_token_lengths: Tensor


def decoder_inputs(
    spoken: SpokenWords, output_from_indices: Callable[[Tensor], Tensor], device: torch.device
) -> DecoderInputs:
    """What the speech decoder reads for `spoken`. Raises InvalidInputError when there is no word."""
    if not spoken.tokens.ids:
        raise InvalidInputError("text_ids", "there is no word to speak")
    ids = torch.tensor([spoken.tokens.ids], device=device)
    lengths = torch.tensor([ids.shape[1]], dtype=torch.int32, device=device)
    embeds, unit_lengths = audio_unit_embeds(
        torch.tensor([spoken.taste_rows], device=device),
        torch.tensor([spoken.tokens.word_ids], device=device),
        lengths,
        output_from_indices,
    )
    return DecoderInputs(embeds, unit_lengths, ids, lengths)
