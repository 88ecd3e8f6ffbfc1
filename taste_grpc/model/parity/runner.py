"""Recompute every recorded output of a checkpoint directory and compare."""

from __future__ import annotations

import fnmatch
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taste_grpc.model.parity.goldens import GoldenOutput, GoldenSet
from taste_grpc.model.parity.stage import Checkpoint, StageInput
from taste_grpc.model.parity.stages import JSON_STAGES, TENSOR_STAGES


@dataclass(frozen=True)
class Comparison:
    """Outcome of one comparison; `error` is the largest absolute difference, `detail` says why it failed."""

    stage: str
    name: str
    error: float
    tolerance: float
    ok: bool
    detail: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        line = f"{self.stage:36s} {self.name:48s} {self.error:10.3g} {self.tolerance:10.3g} {verdict}"
        return f"{line}  {self.detail}" if self.detail else line


def compare(goldens: GoldenSet, output: GoldenOutput, own: Tensor) -> Comparison:
    """Hold `own` against the recorded tensor by the index's rules."""
    golden = goldens.tensor(f"{output.file}:{output.name}")
    own = own.detach().cpu()

    def outcome(error: float, ok: bool, detail: str = "") -> Comparison:
        name = f"{output.file.split('_', 1)[0]}:{output.name}"
        return Comparison(output.stage, name, error, output.atol, ok, detail)

    if own.shape != golden.shape:
        return outcome(math.inf, False, f"shape {tuple(own.shape)}, recorded {tuple(golden.shape)}")
    if output.compare == "exact" and own.is_floating_point() != golden.is_floating_point():
        return outcome(math.inf, False, f"dtype {own.dtype}, recorded {golden.dtype}")
    mask = goldens.valid_mask(output, golden.shape)
    golden64, own64 = golden.double(), own.double()
    if mask is not None:
        golden64, own64 = golden64[mask], own64[mask]
    difference = torch.where(golden64 == own64, 0.0, (golden64 - own64).abs())  # infinities can be equal too
    error = float(difference.max()) if difference.numel() else 0.0
    if not math.isfinite(error):
        return outcome(math.inf, False, "not finite")
    ok = error <= output.atol
    detail = ""
    if output.min_snr_db is not None:
        noise = float(difference.square().sum())
        snr_db = math.inf if noise == 0.0 else 10 * math.log10(float(golden64.square().sum()) / noise)
        detail = f"snr {snr_db:.1f} dB (>= {output.min_snr_db})"
        ok = ok and snr_db >= output.min_snr_db
    return outcome(error, ok, detail)


def _guarded(stage: str, name: str, run: Callable[[], Comparison], verbose: bool) -> Comparison:
    try:
        with torch.inference_mode():
            return run()
    except Exception as error:  # a stage that cannot run is a failed comparison, never a stop
        if verbose:
            traceback.print_exc()
        return Comparison(stage, name, math.inf, 0.0, False, f"{type(error).__name__}: {error}")


def run_tensors(
    goldens: GoldenSet, checkpoint: Checkpoint, pattern: str = "*", *, verbose: bool = False
) -> Iterator[Comparison]:
    """Visit every recorded output whose stage matches the shell pattern `pattern`."""
    memo: dict[Any, Any] = {}
    for output in goldens.outputs():
        if not fnmatch.fnmatch(output.stage, pattern):
            continue

        def run(output: GoldenOutput = output) -> Comparison:
            function = TENSOR_STAGES.get(output.stage)
            if function is None:
                raise LookupError(f"no such stage in this program: {output.stage}")
            return compare(goldens, output, function(StageInput(goldens, output, checkpoint, memo)))

        yield _guarded(output.stage, output.name, run, verbose)


def run_json(
    goldens: GoldenSet, checkpoint: Checkpoint, pattern: str = "*", *, verbose: bool = False
) -> Iterator[Comparison]:
    """Visit the values of `json_values` in the same way."""
    for entry in goldens.json_values():
        if entry.get("compare") == "info" or not fnmatch.fnmatch(entry["stage"], pattern):
            continue
        name = f"{entry['file']}:{'.'.join(map(str, entry['path']))}"

        def run(entry: dict[str, Any] = entry, name: str = name) -> Comparison:
            own = JSON_STAGES[entry["stage"]](goldens, entry, checkpoint)
            recorded = goldens.json_value(entry)
            same = own == recorded
            detail = "" if same else f"got {str(own)[:80]!r}, recorded {str(recorded)[:80]!r}"
            return Comparison(entry["stage"], name, 0.0 if same else math.inf, 0.0, same, detail)

        yield _guarded(entry["stage"], name, run, verbose)
