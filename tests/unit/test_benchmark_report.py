"""The page of figures: its tables are those of the kept runs, its pictures exist and can be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.support.benchmarks import benchmark

MACHINE = {"cuda": None, "cores": 2, "cpu": "a processor", "python": "3.11", "torch": "2.13", "taste_grpc": "0.1.0"}
DRAWN: dict[str, dict[str, Any]] = {
    "generate": {"points": {"cached": [[4, 5.0], [12, 5.1]], "recomputed": [[4, 50.0], [12, 60.0]]}},
    "concurrency": {"points": {"1": {"ids_per_s": 10.0}, "16": {"ids_per_s": 60.0}}, "gemm_gain_16": 7.0},
    "detokenize": {"points": {"streamed": [[1, 1.0], [3, 1.1], [5, 1.0]], "made_again": [[1, 1.5], [3, 9.0]]}},
}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("report", monkeypatch)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_drawn(report: ModuleType, name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (path,) = report.draw({name: DRAWN[name]}, tmp_path)
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert {(51, 86, 127), (179, 38, 30)} <= {colour for _, colour in colours}


def test_tables_go_where_they_belong(report: ModuleType) -> None:
    figures = {key.name: 0.5 for key in report.SCRIPTS["wire"]} | {"machine": MACHINE, "command": "wire.py"}
    page = "before\n<!-- figures: wire -->\nold\n<!-- end -->\nafter\n"
    once = report.filled(page, {"wire": figures})
    assert "| `fraction_1` | 0.5 | ≥ 0.7 |" in once
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("<!-- end -->\nafter\n")
    assert report.filled(once, {"wire": figures}) == once
    with pytest.raises(ValueError, match="no place for soak"):
        report.filled(page, {"soak": figures})


def test_the_page_says_what_was_measured(report: ModuleType) -> None:
    page, found = report.PAGE.read_text(encoding="utf-8"), report.kept()
    assert set(found) <= set(report.SCRIPTS)
    assert report.filled(page, found) == page
    for name in set(report.SCRIPTS) - set(found):
        assert f"<!-- figures: {name} -->\nNot measured yet.\n<!-- end -->" in page
    for name, figures in found.items():
        assert not figures["quick"], name
    for name in DRAWN:
        assert (report.KEPT / f"{name}.png").stat().st_size > 5_000
        assert f"benchmarks/{name}.png" in page


def test_a_script_that_fails_is_not_kept(report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "wire.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(report, "FOLDER", folder)
    with pytest.raises(SystemExit, match="status 3"):
        report.run("wire", quick=True)
    (folder / "wire.py").write_text("print('a table'); print('{\"fraction_1\": 0.9}')")
    assert report.run("wire", quick=True) == json.loads('{"fraction_1": 0.9}')
