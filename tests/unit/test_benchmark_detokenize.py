"""The benchmark of speech in chunks runs on a small model and prints what it promises; its times are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taste_grpc.model.embedded.random_checkpoint import write_random_checkpoint
from tests.support.benchmarks import FOLDER, benchmark

UNITS = 128  # more than the window needs, so that it is one chunk


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("speech") / "random", seed=0, units_per_token=None)


def test_it_measures_chunks_joins_and_what_is_made_again(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("detokenize", monkeypatch)
    for name in ("_speaking", "benchmark_detokenize"):
        monkeypatch.setattr(sys.modules[name], "CHUNK_UNITS", UNITS)
    with torch.inference_mode():
        subject = module.Subject.load(str(checkpoint), "cpu")
        figures, units = module.measure(subject, chunks=5, rounds=1)
    assert len(units) == 5 * UNITS
    early, late = figures["counters"]["chunk_2"], figures["counters"]["chunk_5"]
    assert early["decoder_rows"] == late["decoder_rows"] > 0
    assert 0 < early["floating_point_operations"] <= 1.01 * late["floating_point_operations"]
    assert [chunk for chunk, _ in figures["points"]["streamed"]] == [1, 2, 3, 5]
    assert [chunk for chunk, _ in figures["points"]["made_again"]] == [3]
    assert figures["resynth_over_incremental"] > 0
    assert 0 < figures["join_excess"] <= 1.5
    assert 0 < figures["join_hift_error"] <= figures["join_hift_tolerance"] < 0.01 * figures["join_hift_peak"]
    figures |= {"peak_mb": {"stream": 1, "oneshot": 2}, "growth_mb": {"stream": 1, "oneshot": 2}, "samples_equal": 1}
    assert all(isinstance(text, str) for row in module.table(figures) for text in row)


@pytest.mark.parametrize("way", ["stream", "oneshot"])
def test_memory_is_measured_in_a_process_of_its_own(checkpoint: Path, way: str) -> None:
    """What both ways speak has as many samples: 150 units are 258 frames of 256 samples, at 16 kHz."""
    command = [sys.executable, str(FOLDER / "detokenize.py"), "--peak", way, "--checkpoint", str(checkpoint)]
    run = subprocess.run(command, input=json.dumps([5] * 150), check=True, capture_output=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["samples"] == round(258 * 256 * 16_000 / 22_050)
    assert found["peak"] >= found["before"] > 50_000_000
