"""Small numbers between the host and the device, as few times as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.int32]


def to_host(parts: Sequence[Tensor]) -> list[Bits]:
    """Tensors `[B, n]` of 32-bit numbers as arrays of their bits: one transfer, through pinned memory on CUDA."""
    packed = torch.cat([part.view(torch.int32) for part in parts], dim=1)
    if packed.device.type == "cuda":
        pinned = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        pinned.copy_(packed, non_blocking=True)
        torch.cuda.current_stream(packed.device).synchronize()
        packed = pinned
    borders = np.cumsum([part.shape[1] for part in parts])[:-1]
    return [np.ascontiguousarray(columns) for columns in np.split(packed.numpy(), borders, axis=1)]


def to_device(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Integers `[B, n]` int64 on `device`; from pinned memory, without waiting for it, on CUDA."""
    host = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
