"""Gives a random speech decoder a natural pace: an end of speech after so many units per token.

An untrained decoder ends anywhere between the least and the greatest length. Here four channels of
the unit decoder are set by hand instead of drawn, so that it counts. Rows of words carry a mark; in
the last layer one head looks at all rows alike and so measures which share of them are words; when
that share has fallen to that of the wanted pace, one unit of the feed-forward layer opens and raises
the end of speech. All other channels stay random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

from torch import Tensor

_MARK, _SHARE, _END, _ZERO = range(4)
_CHANNELS = 4
_MARK_SIZE = 4.0
_SHARE_GAIN = 6.0  # what the mark of a word comes to after the norms, in units of the share
_RESIDUAL = 0.65  # typical size of a residual row, in units of sqrt(width)
_OPENING = 0.15  # the end of speech is certain when the share is this much below the wanted one
_END_LOGIT_CLOSED = -12.0
_END_LOGIT_RISE = 24.0


def set_pace(tensors: MutableMapping[str, Tensor], units_per_token: float, prefix: str = "speech_decoder.") -> None:
    """Change the tensors of a speech decoder in place so that it speaks about `units_per_token`.

    Args:
        tensors: float32, under the published names, all of the speech decoder at least.
        units_per_token: speech units (50 per second) per ASR token.
        prefix: what the names begin with.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    last = 0
    while f"llm.encoders.{last + 1}.norm1.weight" in own:
        last += 1
    _mark_words(own)
    for layer in range(last + 1):
        _reserve_channels(own, f"llm.encoders.{layer}.")
    share = 1.0 / (1.0 + units_per_token)
    _measure_share(own, f"llm.encoders.{last}.", _SHARE_GAIN * share)
    _end_on_signal(own)


def _mark_words(own: Mapping[str, Tensor]) -> None:
    for name in ("text_encoder_affine_layer", "audio_token_encoder_affine_layer", "spk_embed_affine_layer"):
        own[f"{name}.weight"][_MARK] = 0.0
        own[f"{name}.bias"][_MARK] = 0.0 if name.startswith("spk") else 1.0
    own["llm_embedding.weight"][:, _MARK] = 0.0
    own["speech_embedding.weight"][:, _MARK] = 0.0
    own["llm.embed.out.0.weight"][:, _MARK] = 0.0
    own["llm.embed.out.0.weight"][:_CHANNELS] = 0.0
    own["llm.embed.out.0.weight"][_MARK, _MARK] = _MARK_SIZE
    own["llm.embed.out.0.bias"][:_CHANNELS] = 0.0
    own["llm.embed.out.1.weight"][:_CHANNELS] = 0.0
    own["llm.embed.out.1.weight"][_MARK] = 1.0
    own["llm.embed.out.1.bias"][:_CHANNELS] = 0.0
    own["llm.embed.out.1.bias"][_MARK] = -1.0  # rows without the mark stay below the ReLU


def _reserve_channels(own: Mapping[str, Tensor], layer: str) -> None:
    for name in ("self_attn.linear_out", "feed_forward.w_2"):
        own[f"{layer}{name}.weight"][:_CHANNELS] = 0.0
        own[f"{layer}{name}.bias"][:_CHANNELS] = 0.0


def _measure_share(own: Mapping[str, Tensor], layer: str, wanted: float) -> None:
    width = own[f"{layer}norm1.weight"].shape[0]
    attention, forward = f"{layer}self_attn.", f"{layer}feed_forward."
    head_size = own[f"{attention}pos_bias_u"].shape[1]
    for norm in ("norm1", "norm2"):
        _plain(own, f"{layer}{norm}")
    # Equal scores: no query and no bias in the first head.
    own[f"{attention}pos_bias_u"][0] = 0.0
    own[f"{attention}pos_bias_v"][0] = 0.0
    own[f"{attention}linear_q.weight"][:head_size] = 0.0
    own[f"{attention}linear_q.bias"][:head_size] = 0.0
    # Against a channel that is zero before the norm, so that the mean the norm takes away cancels.
    _read(own, f"{attention}linear_v", row=0, channel=_MARK, weight=1.0, bias=0.0)
    own[f"{attention}linear_out.weight"][:, 0] = 0.0
    own[f"{attention}linear_out.weight"][_SHARE, 0] = _RESIDUAL * math.sqrt(width)
    steepness = 1.0 / (_OPENING * wanted)
    _read(own, f"{forward}w_1", row=0, channel=_SHARE, weight=-steepness, bias=steepness * wanted)
    own[f"{forward}w_2.weight"][:, 0] = 0.0
    own[f"{forward}w_2.weight"][_END, 0] = _RESIDUAL * math.sqrt(width)


def _end_on_signal(own: Mapping[str, Tensor]) -> None:
    _plain(own, "llm.after_norm")
    end = own["llm_decoder.bias"].shape[0] - 1
    own["llm_decoder.weight"][:, :_CHANNELS] = 0.0
    _read(own, "llm_decoder", row=end, channel=_END, weight=_END_LOGIT_RISE, bias=_END_LOGIT_CLOSED)


def _plain(own: Mapping[str, Tensor], norm: str) -> None:
    own[f"{norm}.weight"][:_CHANNELS] = 1.0
    own[f"{norm}.bias"][:_CHANNELS] = 0.0


def _read(own: Mapping[str, Tensor], linear: str, *, row: int, channel: int, weight: float, bias: float) -> None:
    """Make output `row` of a linear layer `weight * (channel - zero channel) + bias`."""
    own[f"{linear}.weight"][row] = 0.0
    own[f"{linear}.weight"][row, channel] = weight
    own[f"{linear}.weight"][row, _ZERO] = -weight
    own[f"{linear}.bias"][row] = bias
