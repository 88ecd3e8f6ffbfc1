"""Many calls of which many end badly, through a real server: what is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taste_grpc.model.embedded.random_checkpoint import write_random_checkpoint
from tests.support.benchmarks import FOLDER, benchmark

LEFT_BEHIND = ("kv_bytes", "live_slots", "leaked_tasks", "wrong_results", "calls_left")


def assert_clean(figures: dict[str, Any]) -> None:
    assert {name: figures[name] for name in LEFT_BEHIND} == dict.fromkeys(LEFT_BEHIND, 0), figures["wrong"]


async def test_a_few_calls_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("soak", monkeypatch)
    calls = sys.modules["_soak_calls"]
    monkeypatch.setattr(calls, "VARIANTS", {"Generate": 4, "Detokenize": 2, "Tokenize": 1})
    write_random_checkpoint(tmp_path, seed=0)
    figures = await module.soak(str(tmp_path), 24, batch=12)
    assert_clean(figures)
    assert sum(figures["ended"].values()) == 24
    assert figures["ended"]["malformed"] == 1
    assert figures["ended"]["slow"] == 2
    assert len(figures["rss_mb"]) == 2
    assert figures["kv_bytes_busy"] > 0
    assert 1 < figures["live_slots_busy"] <= 12
    assert figures["engine"]["failed"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_calls_leave_nothing_behind() -> None:
    run = subprocess.run(
        [sys.executable, str(FOLDER / "soak.py"), "--quick"], check=True, capture_output=True, text=True
    )
    figures = json.loads(run.stdout.splitlines()[-1])
    assert_clean(figures)
    assert figures["calls"] == sum(figures["ended"].values()) == 150
    assert figures["ended"]["cancelled"] >= 30
    assert figures["quick"] is True
