"""Keys and values of the spoken LM, kept per call in slots of one preallocated block."""

from __future__ import annotations

from taste_grpc.model.layers.slot_storage import SlotPass, SlotStorage

__all__ = ["KeyValueSlots", "SlotPass"]


class KeyValueSlots(SlotStorage):
    """The cache of the spoken LM; made by `SpokenLM.new_cache`."""

    too_small = "max_length"
