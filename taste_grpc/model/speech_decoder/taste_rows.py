"""From one row of codes per word to one audio embedding per ASR token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError

NO_CODE = -1


@torch.no_grad()
def audio_unit_embeds(
    taste_ids: Tensor,
    asr_word_ids: Tensor,
    asr_token_lengths: Tensor,
    output_from_indices: Callable[[Tensor], Tensor],
    *,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Audio embeddings the speech decoder is fed with.

    The k-th kept row belongs to word k and is repeated for each of the word's ASR tokens.

    Args:
        taste_ids: int `[B, S, vq_dim]`, rows of codes.
        asr_word_ids: int `[B, L]`, word of each ASR token, counted from 0 without gaps.
        asr_token_lengths: int `[B]`, tokens that count.
        output_from_indices: int `[B, L, vq_dim]` -> `[B, L, D]`, the quantiser's decoder.
        kept: bool `[B, S]`; the rows whose first code is not -1 when None.

    Returns:
        `[B, L, D]`, zero beyond each row's length, and the lengths as int32 `[B]`.

    Raises InvalidInputError when a row does not have as many kept rows as words.
    """
    kept = taste_ids[..., 0] != NO_CODE if kept is None else kept
    lengths = [int(length) for length in asr_token_lengths.reshape(-1).tolist()]
    spread = taste_ids.new_zeros(*asr_word_ids.shape, taste_ids.shape[-1])
    for row, length in enumerate(lengths):
        rows = taste_ids[row][kept[row]]  # [words, vq_dim]
        word_of_token = asr_word_ids[row, :length].long()
        words = int(word_of_token.max()) + 1 if length else 0
        if len(rows) != words:
            raise InvalidInputError(
                "taste_ids", f"{len(rows)} rows of codes for {words} words (row {row} of the batch)"
            )
        spread[row, :length] = rows[word_of_token]
    positions = torch.arange(asr_word_ids.shape[1], device=spread.device)
    counted = torch.tensor(lengths, dtype=torch.int32, device=spread.device)
    embeds = output_from_indices(spread)
    return embeds * (positions < counted[:, None])[..., None].to(embeds.dtype), counted
