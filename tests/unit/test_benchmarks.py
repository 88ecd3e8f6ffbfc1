"""The benchmarks run and print what they promise; their figures are not judged here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.conftest import Loaded

FOLDER = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generate_compares_loops_that_agree(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("generate", monkeypatch)
    with torch.inference_mode():
        figures: dict[str, Any] = module.measure(tiny.model, tiny.processor, rounds=1, compared=8)
    assert figures["last_over_first_quarter"] > 0
    assert figures["recompute_over_cached"] > 0
    assert figures["compared_ids"] == 8


def test_loading_watches_anonymous_memory(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("loading", monkeypatch)
    figures = module.load(str(tiny.directory), "float32")
    expected = {tensor.data_ptr(): tensor for tensor in (*tiny.model.parameters(), *tiny.model.buffers())}
    assert figures["model_bytes"] == sum(t.numel() * t.element_size() for t in expected.values())
    assert module.anonymous_bytes() > 10_000_000
    held = torch.ones(30_000_000 // 4)
    assert held.sum() > 0  # written, so it is resident
    assert module.anonymous_bytes() > 30_000_000


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("_report", monkeypatch)
    module.report("a title", [("time", "3 ms")], {"ratio": 1.5}, quick=True)
    *table, last = capsys.readouterr().out.splitlines()
    assert any("a title" in line for line in table)
    assert any("3 ms" in line for line in table)
    content = json.loads(last)
    assert (content["ratio"], content["quick"]) == (1.5, True)
    assert {"cpu", "cores", "torch", "python", "taste_grpc"} <= content["machine"].keys()
