"""Reading a directory of recorded inputs and outputs (`goldens/index.json`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT_VERSION = 2


class GoldenFormatError(Exception):
    """The directory is not a golden set this program understands."""


@dataclass(frozen=True)
class GoldenOutput:
    """One recorded output: where it stands, how it was made and how it is to be compared."""

    file: str
    name: str
    stage: str
    case: str
    compare: Literal["exact", "close"]
    entry: dict[str, Any]

    @property
    def params(self) -> dict[str, Any]:
        """Literal settings of the run."""
        params: dict[str, Any] = self.entry.get("params") or {}
        return params

    @property
    def atol(self) -> float:
        """Largest allowed absolute difference; 0 for exact comparisons."""
        return float(self.entry.get("atol", 0.0)) if self.compare == "close" else 0.0

    @property
    def min_snr_db(self) -> float | None:
        """Least signal-to-noise ratio, for waveforms that carry one."""
        value = self.entry.get("min_snr_db")
        return None if value is None else float(value)


class GoldenSet:
    """The recorded tensors of `directory/goldens`, with the expressions its index is written in.

    Raises GoldenFormatError, in one sentence, when the directory is not such a set.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise GoldenFormatError(f"{directory} is not a directory")
        self.directory = directory
        self.folder = directory / "goldens"
        path = self.folder / "index.json"
        if not path.is_file():
            raise GoldenFormatError(f"{directory} has no goldens/index.json, so there is nothing to compare with")
        try:
            self.index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise GoldenFormatError(f"{path} cannot be read: {error}") from error
        version = self.index.get("format_version") if isinstance(self.index, dict) else None
        if version != FORMAT_VERSION:
            raise GoldenFormatError(f"{path} has format_version {version!r}; this program reads {FORMAT_VERSION}")
        if not isinstance(self.index.get("tensors"), list):
            raise GoldenFormatError(f"{path} has no list of tensors")
        self._files: dict[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Contents of meta.json (empty when there is none)."""
        path = self.folder / "meta.json"
        if not path.is_file():
            return {}
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def outputs(self) -> list[GoldenOutput]:
        """Every output that is to be compared, in the order of the index."""
        return [
            GoldenOutput(
                file=entry["file"],
                name=entry["name"],
                stage=entry["stage"],
                case=str(entry.get("case", "")),
                compare=entry["compare"],
                entry=entry,
            )
            for entry in self.index["tensors"]
            if entry.get("compare") not in (None, "info")
        ]

    def json_values(self) -> list[dict[str, Any]]:
        """Entries of values in JSON files that can be compared as well."""
        values: list[dict[str, Any]] = self.index.get("json_values") or []
        return values

    def json_value(self, entry: dict[str, Any]) -> Any:
        """The recorded value an entry of `json_values` points at."""
        value = json.loads((self.folder / entry["file"]).read_text(encoding="utf-8"))
        for key in entry["path"]:
            value = value[key]
        return value

    def tensor(self, reference: str) -> Tensor:
        """The tensor `FILE:NAME`."""
        if reference not in self._tensors:
            file, _, name = reference.partition(":")
            if file not in self._files:
                try:
                    self._files[file] = safe_open(self.folder / file, framework="pt")
                except (OSError, SafetensorError) as error:
                    raise GoldenFormatError(f"{self.folder / file} cannot be read: {error}") from error
            self._tensors[reference] = self._files[file].get_tensor(name)
        return self._tensors[reference]

    def resolve(self, expression: Any) -> Any:
        """The value of an argument expression: a tensor, a list of them, or one of the index's operations."""
        if isinstance(expression, str):
            return self.tensor(expression)
        if isinstance(expression, list):
            return [self.resolve(item) for item in expression]
        if isinstance(expression, dict) and "op" in expression:
            return self._operation(expression)
        return expression

    def _operation(self, expression: dict[str, Any]) -> Tensor:
        operation = expression["op"]
        if operation == "frames":
            head = self.resolve(expression["head"])  # [1, n, bins]
            tail = self.resolve(expression["tail"])
            frames: Tensor = head.new_empty(1, expression["frames"], head.shape[2])
            frames[:] = tail.reshape(-1)[0] if tail.numel() == 1 else tail.reshape(1, 1, -1)
            frames[:, : head.shape[1]] = head
            return frames
        if operation == "cat":
            parts: list[Tensor] = self.resolve(expression["of"])
            return torch.cat(parts)
        if operation == "pad_rows":
            rows: list[Tensor] = self.resolve(expression["of"])
            width = max(row.shape[1] for row in rows)
            padded = [
                torch.cat(
                    [row, row.new_full((row.shape[0], width - row.shape[1], *row.shape[2:]), expression["value"])], 1
                )
                for row in rows
            ]
            return torch.cat(padded)
        if operation == "rows":
            source: Tensor = self.resolve(expression["of"])
            return source[expression["start"] : expression["stop"]]
        raise GoldenFormatError(f"the index uses an operation this program does not know: {operation!r}")

    def valid_mask(self, output: GoldenOutput, shape: torch.Size) -> Tensor | None:
        """Which entries of `output` count, as a bool tensor of `shape`; None when all do."""
        rule = output.entry.get("valid")
        if not rule:
            return None
        if "mask" in rule:
            mask: Tensor = self.resolve(rule["mask"]).bool()
            return mask.reshape(mask.shape + (1,) * (len(shape) - mask.dim())).expand(shape)
        lengths: Tensor = self.resolve(rule["lengths"]).long().reshape(-1) + int(rule.get("add", 0))
        axis = int(rule["axis"])
        positions = torch.arange(shape[axis])
        mask = positions[None, :] < lengths[:, None]  # [rows, axis]
        view = [1] * len(shape)
        view[0], view[axis] = shape[0], shape[axis]
        return mask.reshape(view).expand(shape)
