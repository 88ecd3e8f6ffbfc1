"""Which slot of a language model a call gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from taste_grpc.dialogue.language_model import Message


class SlotChoice:
    """Lends slots, to each conversation the one that still holds most of it.

    A slot keeps what it has read, so the next turn of a conversation costs its new words only, also when its oldest
    turns were left out since. Who was not here before gets the slot that has been idle for longest, and not one where
    somebody else began with the same words.

    May be used from as many threads at once as there are slots.
    """

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots))  # the longest idle first
        self._held: list[tuple[Message, ...]] = [()] * slots
        self._lock = Lock()

    @contextmanager
    def lend(self, messages: Sequence[Message]) -> Iterator[int]:
        """A slot for as long as the context is open."""
        slot = self._take(tuple(message for message in messages if message.role != "system"))
        try:
            yield slot
        finally:
            with self._lock:
                self._free.append(slot)

    def _take(self, said: tuple[Message, ...]) -> int:
        with self._lock:
            slot = max(self._free, key=lambda free: max(0, _gain(self._held[free], said)))  # of equals the first
            self._free.remove(slot)
            self._held[slot] = said
        return slot


def _gain(held: Sequence[Message], said: Sequence[Message]) -> int:
    """Messages of `held` that are in `said`, less those behind them that are not and would be overwritten."""
    common = [message in said for message in held]
    if True not in common:
        return 0
    kept = sum(common)
    return kept - (len(common) - common.index(True) - kept)
