"""Codes of spoken words, for the tokens of the recogniser and for those of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.pieces import Pieces
from taste_grpc.model.audio_tower.tower import AudioTower
from taste_grpc.model.audio_tower.transfer import transfer_codes, word_start_mapping
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds


@dataclass(frozen=True)
class SpokenClips:
    """What codes are extracted from, on any device.

    Attributes:
        asr_token_ids: `[B, S]` Whisper tokens; lengths `[B]`; `asr_word_ids` `[B, S]`.
        llm_token_ids: `[B, L]` text ids of the same words; lengths `[B]`; `llm_word_ids` `[B, L]`.
        audio_features: `[B, F, bins]` log-mel; lengths `[B]`.
    """

    asr_token_ids: Tensor
    asr_token_lengths: Tensor
    asr_word_ids: Tensor
    llm_token_ids: Tensor
    llm_token_lengths: Tensor
    llm_word_ids: Tensor
    audio_features: Tensor
    audio_feature_lengths: Tensor


class ExtractedCodes(NamedTuple):
    """Codes of an utterance, one row per Whisper token and one per text id (-1 where no word starts)."""

    asr_indices: Tensor
    llm_indices: Tensor


def extract_in_pieces(
    tower: AudioTower,
    clips: SpokenClips,
    special_ids: WhisperSpecialIds,
    *,
    rows: int | None = None,
    abort: AbortCheck = never_abort,
) -> Pieces[ExtractedCodes]:
    """Codes of `clips`, on the tower's device. For `rows`, `abort` and errors see `AudioTower.in_pieces`."""
    heard = yield from tower.in_pieces(
        clips.audio_features,
        clips.audio_feature_lengths,
        clips.asr_token_ids,
        clips.asr_token_lengths,
        clips.asr_word_ids,
        special_ids,
        rows=rows,
        abort=abort,
    )
    codes = heard.quantized_indices
    mapping = word_start_mapping(
        clips.asr_word_ids.to(codes.device),
        clips.llm_word_ids.to(codes.device),
        clips.asr_token_lengths.to(codes.device),
        clips.llm_token_lengths.to(codes.device),
    )
    return ExtractedCodes(codes, transfer_codes(codes, mapping))
