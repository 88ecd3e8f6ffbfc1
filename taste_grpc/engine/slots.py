"""Who holds which slot of a cache, and how many bytes of it. Plain Python: the memory itself is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Reservation:
    """A slot that is one call's own until `release` is called, exactly once.

    Attributes:
        slot: index of the slot.
        positions: that were asked for.
        bytes_held: what they count for, in whole blocks.
    """

    slot: int
    positions: int
    bytes_held: int
    _pool: SlotPool = field(repr=False)
    _released: bool = field(default=False, repr=False)

    def release(self) -> None:
        """Give the slot and the bytes back. Raises RuntimeError when called again."""
        if self._released:
            raise RuntimeError(f"slot {self.slot} was released before")
        self._released = True
        self._pool._take_back(self)


class SlotPool:
    """Slots of up to `capacity` positions each, and a budget of bytes for all of them together.

    To be used on one thread. Reserving is all or nothing: a call that got its positions never runs out of memory
    halfway.

    Args:
        slots: number of slots.
        capacity: positions a slot can hold.
        bytes_per_position: what one position costs.
        budget_bytes: the most that may be reserved at once.
        block: positions are counted in whole blocks of that many.

    Raises ValueError for sizes below 1, and for a budget that does not suffice for one block.
    """

    def __init__(self, slots: int, capacity: int, bytes_per_position: int, budget_bytes: int, block: int = 64) -> None:
        sizes = {"slots": slots, "capacity": capacity, "bytes_per_position": bytes_per_position, "block": block}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is expected")
        if budget_bytes < block * bytes_per_position:
            raise ValueError(f"a budget of {budget_bytes} bytes is less than a block of {block * bytes_per_position}")
        self.slots = slots
        self.budget_bytes = budget_bytes
        self.bytes_reserved = 0
        self.most_bytes_reserved = 0
        self.most_live = 0
        self._capacity = capacity
        self._bytes_per_position = bytes_per_position
        self._block = block
        self._free = list(range(slots - 1, -1, -1))  # the lowest is taken first, so that few are ever touched

    @property
    def capacity(self) -> int:
        """The most positions one call can ever get."""
        affordable = self.budget_bytes // (self._bytes_per_position * self._block) * self._block
        return min(self._capacity, affordable)

    @property
    def live(self) -> int:
        """Slots that are held now."""
        return self.slots - len(self._free)

    def cost(self, positions: int) -> int:
        """Bytes that `positions` count for, in whole blocks."""
        return -(-positions // self._block) * self._block * self._bytes_per_position

    def reserve(self, positions: int) -> Reservation | None:
        """A slot for up to `positions`; None while no slot, or not enough of the budget, is free.

        Raises ValueError for fewer than 1 and for more than `capacity`: waiting would not help.
        """
        if not 1 <= positions <= self.capacity:
            raise ValueError(f"{positions} positions were asked for; 1 to {self.capacity} can be had")
        wanted = self.cost(positions)
        if not self._free or self.bytes_reserved + wanted > self.budget_bytes:
            return None
        reservation = Reservation(self._free.pop(), positions, wanted, self)
        self.bytes_reserved += wanted
        self.most_bytes_reserved = max(self.most_bytes_reserved, self.bytes_reserved)
        self.most_live = max(self.most_live, self.live)
        return reservation

    def _take_back(self, reservation: Reservation) -> None:
        self._free.append(reservation.slot)
        self._free.sort(reverse=True)
        self.bytes_reserved -= reservation.bytes_held
