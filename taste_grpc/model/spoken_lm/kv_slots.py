"""Keys and values of the spoken LM, kept per call in slots of one preallocated block."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from taste_grpc.model.layers.slot_storage import SlotPass, SlotStorage

__all__ = ["KeyValueSlots", "SlotPass"]


class KeyValueSlots(SlotStorage):
    """The cache of the spoken LM; made by `SpokenLM.new_cache`."""

    too_small = "max_length"

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.unread: WeakValueDictionary[int, Any] = WeakValueDictionary()
        """By slot, the `PromptReading`s whose next piece nobody has begun: they can be read together."""

    def reset(self, slot: int) -> None:
        """Forget what a slot holds, and what was to be read into it."""
        super().reset(slot)
        self.unread.pop(slot, None)
