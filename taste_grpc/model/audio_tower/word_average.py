"""One vector per word: the tokens of a word share the mean of their rows."""

from __future__ import annotations

import torch
from torch import Tensor


def average_words(features: Tensor, word_ids: Tensor, lengths: Tensor) -> Tensor:
    """Replace each row of a word of several tokens by the mean over the word.

    Args:
        features: `[B, S + 1, D]`, a row per token and one for the end of the text.
        word_ids: `[B, S]` the word each token belongs to; padding has id 0.
        lengths: `[B]` tokens and one for the end of the text.

    Returns:
        `[B, S + 1, D]`. A run of equal ids is averaged when it is longer than one token and
        ends within `lengths`.

    Trap, as in the published model: padding has the id of the first word. In a padded
    batch, a row whose only word has id 0 runs on into its padding. One padding position
    enters the mean; two or more make the run too long, and nothing is averaged. A row on
    its own never shows this.
    """
    batch, tokens = word_ids.shape
    if tokens == 0:
        return features
    positions = torch.arange(tokens, device=word_ids.device)
    starts = torch.ones(batch, tokens, dtype=torch.bool, device=word_ids.device)
    starts[:, 1:] = word_ids[:, 1:] != word_ids[:, :-1]
    run = starts.cumsum(dim=1)  # [B, S], 1-based
    same_run = run[:, :, None] == run[:, None, :]  # [B, S, S]
    sizes = same_run.sum(dim=2)
    ends = (same_run * (positions + 1)).amax(dim=2)
    averaged = (sizes > 1) & (ends <= lengths[:, None])  # [B, S]
    weights = same_run.float() / sizes[:, :, None]
    token_features = features[:, :tokens]
    # In float32 whatever the dtype: a third is no number in bfloat16.
    means = torch.bmm(weights, token_features.float()).to(features.dtype)
    chosen = torch.where(averaged[:, :, None], means, token_features)
    return torch.cat([chosen, features[:, tokens:]], dim=1)
