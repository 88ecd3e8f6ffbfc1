"""How much memory there is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container reads what it may use, in control groups of version 2 and 1."""


def memory_bytes(limits: Iterable[Path] = CGROUP_LIMITS) -> int:
    """Of this machine, or what its container may use where that is less."""
    total = int(psutil.virtual_memory().total)
    for file in limits:
        # No such file outside of a container; "max" where nothing is limited.
        with suppress(OSError, ValueError):
            total = min(total, int(file.read_text(encoding="ascii")))
    return total
