"""One forward pass at a time per model.

Calls keep their own state, so they may be interleaved between steps; the lock only keeps two
threads from computing with the same weights at once.
"""

from __future__ import annotations

import threading
from types import TracebackType
from weakref import WeakKeyDictionary

from torch import nn


class TurnLock:
    """A re-entrant lock that a thread taking it in a loop cannot keep from the others.

    Whoever waits holds the gate, so the thread that has just let go queues behind.
    """

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            self._lock.acquire()
        else:
            with self._gate:
                self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()


_guard = threading.Lock()
_locks: WeakKeyDictionary[nn.Module, TurnLock] = WeakKeyDictionary()


def model_lock(model: nn.Module) -> TurnLock:
    """The lock of `model`, the same for as long as it lives."""
    with _guard:
        return _locks.setdefault(model, TurnLock())
