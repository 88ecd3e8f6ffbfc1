"""Who goes next on the model thread. Plain Python: what a job computes is none of its business."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from statistics import median
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
class Steps(Generic[J]):
    """Those who take part in the next step of each network."""

    text: tuple[J, ...]
    units: tuple[J, ...]

    def __bool__(self) -> bool:
        return bool(self.text or self.units)


class TurnBudget:
    """How long turns may go on while somebody waits for a step: as long as a step takes.

    A turn that is under way is not interrupted, so whoever talks waits for two steps' time at most, as long as no
    single turn takes longer than a step.

    Args:
        clock: seconds.
        remembered: steps whose median counts.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, remembered: int = 33) -> None:
        self._clock = clock
        self._durations: deque[float] = deque(maxlen=remembered)
        self._until = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step; the turns after it have its time to spend."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._durations.append(ended - begun)
        self._until = ended + median(self._durations)

    @property
    def is_spent(self) -> bool:
        """Whether those who talk have waited long enough."""
        return self._clock() >= self._until


class Scheduler(Generic[J]):
    """Keeps jobs by what they wait for. To be used on one thread.

    Steps are for everybody who waits for one; turns are taken in order of arrival. A job that has had its turn queues
    up again behind the others, so no job waits for ever.
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

    @property
    def is_talking(self) -> bool:
        """Whether anybody waits for a step."""
        return bool(self._queues[Waiting.TEXT_STEP] or self._queues[Waiting.UNIT_STEP])

    def steps(self) -> Steps[J]:
        """All who wait for a step, no longer waiting."""
        return Steps(self._all(Waiting.TEXT_STEP), self._all(Waiting.UNIT_STEP))

    def _all(self, kind: Waiting) -> tuple[J, ...]:
        queue = self._queues[kind]
        jobs = tuple(queue)
        queue.clear()
        return jobs

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())
