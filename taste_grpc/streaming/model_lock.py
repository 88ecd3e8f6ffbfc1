"""One forward pass at a time per model.

Calls keep their own state, so they may be interleaved between steps; the lock only keeps two
threads from computing with the same weights at once.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

_guard = threading.Lock()
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def model_lock(model: nn.Module) -> threading.RLock:
    """The lock of `model`, the same for as long as it lives."""
    with _guard:
        return _locks.setdefault(model, threading.RLock())
