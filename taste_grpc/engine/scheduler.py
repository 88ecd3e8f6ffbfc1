"""Who goes next on the model thread. Plain Python: what a job computes is none of its business."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

J = TypeVar("J")


class Waiting(Enum):
    """What a job waits for."""

    TURN = "turn"
    """To compute a bounded piece of its own."""
    TEXT_STEP = "text_step"
    """To take part in a step of the language model."""
    UNIT_STEP = "unit_step"
    """To take part in a step of the speech decoder."""
    TEXT_SLOT = "text_slot"
    """For a place in the language model's cache."""
    UNIT_SLOT = "unit_slot"
    """For a place in the speech decoder's cache."""
    ROOM = "room"
    """For its reader to take what was made."""


SLOTS = (Waiting.TEXT_SLOT, Waiting.UNIT_SLOT)


@dataclass(frozen=True)
class Round(Generic[J]):
    """What runs before anybody else is asked: one step of each network for all who wait for it, one job's turn."""

    text: tuple[J, ...]
    units: tuple[J, ...]
    turn: J | None

    def __bool__(self) -> bool:
        return bool(self.text or self.units or self.turn is not None)


class Scheduler(Generic[J]):
    """Keeps jobs by what they wait for. To be used on one thread.

    A round is one step for everybody who talks and one turn of one other job, round robin: a talking stream never
    waits for more than one piece of somebody else's work, and no job waits for ever.
    """

    def __init__(self) -> None:
        self._queues: dict[Waiting, deque[J]] = {kind: deque() for kind in Waiting}

    def put(self, job: J, kind: Waiting) -> None:
        """`job` waits for `kind` from now on, behind those who do already."""
        self._queues[kind].append(job)

    def put_first(self, job: J, kind: Waiting) -> None:
        """`job` goes back to the head of the line it was taken from."""
        self._queues[kind].appendleft(job)

    def drop(self, job: J) -> bool:
        """Forget `job`; whether it waited for anything."""
        for queue in self._queues.values():
            if job in queue:
                queue.remove(job)
                return True
        return False

    def take(self, kind: Waiting) -> J | None:
        """The job that has waited for `kind` longest, no longer waiting; None when there is none."""
        queue = self._queues[kind]
        return queue.popleft() if queue else None

    def count(self, kind: Waiting) -> int:
        """Jobs that wait for `kind`."""
        return len(self._queues[kind])

    def next_round(self) -> Round[J]:
        """Those who run now, no longer waiting."""
        text, units = (self._all(kind) for kind in (Waiting.TEXT_STEP, Waiting.UNIT_STEP))
        return Round(text, units, self.take(Waiting.TURN))

    def _all(self, kind: Waiting) -> tuple[J, ...]:
        queue = self._queues[kind]
        jobs = tuple(queue)
        queue.clear()
        return jobs

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())
