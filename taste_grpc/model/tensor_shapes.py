"""Sizes of a network, read from its stored tensors and held against its configuration."""

from __future__ import annotations

from collections.abc import Mapping

from taste_grpc.errors import CheckpointError


class TensorShapes:
    """Looks sizes up in the shapes of stored tensors.

    Args:
        shapes: full published tensor name -> shape; None when no tensors are at hand, and what the
            configuration (or the published model) says is taken as it is.
        source: the file or object the stated values come from, for error messages.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None, source: str) -> None:
        self._shapes = shapes
        self._source = source

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Shape of `tensor`; None when no tensors are at hand. Raises CheckpointError when it is missing."""
        if self._shapes is None:
            return None
        if tensor not in self._shapes:
            raise CheckpointError(f"the tensor {tensor} is missing")
        return tuple(self._shapes[tensor])

    def has(self, tensor: str) -> bool:
        """Whether `tensor` is stored."""
        return self._shapes is not None and tensor in self._shapes

    def size(self, tensor: str, dim: int, key: str, stated: int | None) -> int:
        """Size of dimension `dim` of `tensor`, which `key` of the configuration states as `stated`.

        Raises CheckpointError naming both when they differ, and when neither says anything.
        """
        shape = self.shape(tensor)
        if shape is None:
            return self._stated(key, stated)
        if not -len(shape) <= dim < len(shape):
            raise CheckpointError(f"the tensor {tensor} has shape {shape}, which has no dimension {dim}")
        return self._agreed(shape[dim], key, stated, f"{tensor} of shape {shape}")

    def count(self, prefix: str, key: str, stated: int | None) -> int:
        """Number of consecutive indices 0, 1, .. for which tensors `{prefix}.{index}.…` are stored."""
        if self._shapes is None:
            return self._stated(key, stated)
        found = {name[len(prefix) + 1 :].split(".", 1)[0] for name in self._shapes if name.startswith(f"{prefix}.")}
        number = 0
        while str(number) in found:
            number += 1
        return self._agreed(number, key, stated, f"the tensors {prefix}.*")

    def require(self, key: str, stated: object, supported: object) -> None:
        """Raise CheckpointError when `key` states something this program has no network for."""
        if stated != supported:
            raise CheckpointError(f"{self._source} says {key} = {stated!r}; only {supported!r} is supported")

    def _stated(self, key: str, stated: int | None) -> int:
        if stated is None:
            raise CheckpointError(f"{self._source} does not say {key}")
        return int(stated)

    def _agreed(self, found: int, key: str, stated: int | None, evidence: str) -> int:
        if stated is not None and int(stated) != found:
            raise CheckpointError(f"{self._source} says {key} = {stated}, but {evidence} say {found}")
        return found
