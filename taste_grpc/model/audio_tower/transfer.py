"""Moving codes from the recogniser's tokens to the language model's, word by word."""

from __future__ import annotations

import torch
from torch import Tensor

from taste_grpc.model.audio_tower.rvq import IGNORED


def _first_tokens(word_ids: Tensor, lengths: Tensor) -> Tensor:
    """Which positions of `word_ids` `[B, S]` begin a word: a change of id within `lengths` `[B]`."""
    starts = torch.ones_like(word_ids, dtype=torch.bool)
    starts[:, 1:] = word_ids[:, 1:] != word_ids[:, :-1]
    return starts & (torch.arange(word_ids.shape[1], device=word_ids.device) < lengths[:, None])


def word_start_mapping(
    source_word_ids: Tensor, target_word_ids: Tensor, source_lengths: Tensor, target_lengths: Tensor
) -> Tensor:
    """Which source token each target token takes its code from.

    Word ids `[B, S]` and `[B, T]` count words from 0, padding beyond the lengths `[B]` is
    not looked at. Returns `[B, T, S]` bool: True where target token t is the first of a
    word whose first source token is s. Rows of other tokens, and of words the source does
    not have, are all False.
    """
    source_first = _first_tokens(source_word_ids, source_lengths)  # [B, S]
    target_first = _first_tokens(target_word_ids, target_lengths)  # [B, T]
    same_word = target_word_ids[:, :, None] == source_word_ids[:, None, :]
    return same_word & target_first[:, :, None] & source_first[:, None, :]


def transfer_codes(codes: Tensor, mapping: Tensor) -> Tensor:
    """Codes `[B, S, Q]` of source tokens, put where `mapping` `[B, T, S]` says: `[B, T, Q]`, -1 elsewhere."""
    if mapping.shape[2] == 0:
        return codes.new_full((*mapping.shape[:2], codes.shape[2]), IGNORED)
    source = mapping.to(torch.uint8).argmax(dim=2)  # [B, T]
    taken = codes.gather(1, source[:, :, None].expand(-1, -1, codes.shape[2]))
    return taken.masked_fill(~mapping.any(dim=2)[:, :, None], IGNORED)
