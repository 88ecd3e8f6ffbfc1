"""Keys and values of rel-pos attention encoders, kept per call in slots of one preallocated block."""

from __future__ import annotations

from taste_grpc.model.layers.slot_storage import SlotPass, SlotStorage

__all__ = ["RelPosCache", "SlotPass"]


class RelPosCache(SlotStorage):
    """State of causal streams through one encoder; made by `RelPosEncoder.new_cache`."""

    too_small = "lm_input"
