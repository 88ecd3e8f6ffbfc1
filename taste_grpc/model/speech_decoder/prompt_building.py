"""From words to the rows the unit decoder starts from, in pieces between which others may go first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.rel_pos_run import WholeRun

if TYPE_CHECKING:
    from taste_grpc.model.speech_decoder.decoder import SpeechDecoder

PADDING_VALUE = -1.0
FIXED_ROWS = 3
"""Start, speaker and task rows of a prompt."""


class WordsEncoding:
    """Text and speech tokens on their way through their encoders.

    Call `advance` until it returns True; then `fused` is there. Arguments and errors: `SpeechDecoder.encode_words`.
    """

    def __init__(
        self,
        decoder: SpeechDecoder,
        audio_unit_embeds: Tensor,
        audio_unit_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
    ) -> None:
        if audio_unit_lengths.tolist() != asr_token_lengths.tolist():
            raise InvalidInputError(
                "audio_unit_lengths",
                f"{audio_unit_lengths.tolist()} must equal asr_token_lengths {asr_token_lengths.tolist()}",
            )
        vocab = decoder.config.text_vocab_size
        if int(asr_token_ids.max()) >= vocab:
            raise InvalidInputError("asr_token_ids", f"{int(asr_token_ids.max())} is not below {vocab}")
        self._decoder = decoder
        self._runs: list[Callable[[], WholeRun]] = [
            lambda: decoder.text_run(asr_token_ids),
            lambda: decoder.audio_run(audio_unit_embeds),
        ]
        self._run: WholeRun | None = None
        self._encoded: list[Tensor] = []
        self.lengths = asr_token_lengths

    def advance(self, layers: int | None = None, abort: AbortCheck = never_abort) -> bool:
        """Go through the next `layers` of an encoder (None: all of it); returns whether both are done."""
        if self._runs or self._run is not None:
            self._run = self._run or self._runs.pop(0)()
            if self._run.advance(layers, abort):
                self._encoded.append(self._run.out)
                self._run = None
        return not self._runs and self._run is None

    @property
    def fused(self) -> Tensor:
        """`[B, L, prompt_width]`. Only once it is done."""
        text, audio = self._encoded
        return self._decoder.fuse(text, audio)


class PromptBuilding:
    """The rows the unit decoder starts from, on their way. Arguments and errors: `SpeechDecoder.build_prompt`.

    Call `advance` until it returns True; then `prompt` is there.
    """

    def __init__(
        self,
        decoder: SpeechDecoder,
        speaker_embeds: Tensor,
        audio_unit_embeds: Tensor,
        audio_unit_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
    ) -> None:
        self._decoder, self._speaker = decoder, speaker_embeds
        self._words = WordsEncoding(decoder, audio_unit_embeds, audio_unit_lengths, asr_token_ids, asr_token_lengths)

    def advance(self, layers: int | None = None, abort: AbortCheck = never_abort) -> bool:
        """Do the next piece, at most `layers` layers; returns whether everything is done."""
        return self._words.advance(layers, abort)

    @property
    @torch.no_grad()
    def prompt(self) -> tuple[Tensor, Tensor]:
        """`[B, max(lengths), prompt_width]`, padded on the right with -1, and int32 `[B]` lengths."""
        decoder, fused = self._decoder, self._words.fused
        speaker = decoder.encode_speaker(self._speaker)
        start, task = decoder.llm_embedding.weight[:1], decoder.llm_embedding.weight[1:]
        lengths = [int(n) + FIXED_ROWS for n in self._words.lengths.tolist()]
        prompt = fused.new_full((len(lengths), max(lengths), decoder.config.prompt_width), PADDING_VALUE)
        for row, length in enumerate(lengths):
            prompt[row, :length] = torch.cat([start, speaker[row], fused[row, : length - FIXED_ROWS], task])
        return prompt, torch.tensor(lengths, dtype=torch.int32, device=prompt.device)
