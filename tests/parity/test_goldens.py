"""`python -m taste_grpc.parity`, as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from taste_grpc.model.parity.goldens import GoldenOutput, GoldenSet
from taste_grpc.model.parity.runner import compare
from taste_grpc.parity import main
from tests.checkpoints import TINY, WEIGHTS, copy_checkpoint, edit_json, edit_tensors

ROOT = Path(__file__).parents[2]


def parity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taste_grpc.parity", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_checkpoint(tmp_path / "taste", goldens=True)


def test_every_recorded_number_is_reproduced() -> None:
    run = parity(TINY)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert lines[-1] == "318 of 318 ok"
    # one line for each, with the stage first and the verdict last
    assert sum(line.startswith(("vocoder.", "flow.")) for line in lines) > 10
    assert not any("FAIL" in line for line in lines)


def test_an_altered_weight_shows_in_the_stages_that_use_it(copy: Path) -> None:
    name = "speech_decoder.llm_decoder.bias"
    edit_tensors(copy / WEIGHTS, lambda tensors: tensors[name].add_(torch.linspace(0, 0.5, len(tensors[name]))))
    run = parity(copy, "--stage", "speech_decoder.*")
    lines = run.stdout.splitlines()
    assert run.returncode == 1
    assert any(line.endswith("FAIL") or " FAIL " in line for line in lines)
    assert any(line.endswith(" ok") for line in lines[:-1])  # the encoders do not see that weight
    passed, _, total, _ = lines[-1].split()
    assert 0 < int(passed) < int(total)
    assert main([str(copy), "--stage", "vocoder.f0"]) == 0


def test_an_altered_recording_fails_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goldens = GoldenSet(copy)
    output = next(o for o in goldens.outputs() if o.stage.startswith("rvq") or "vq" in o.stage)
    tensors = {name: goldens.tensor(f"{output.file}:{name}").clone() for name in _names(copy, output.file)}
    tensors[output.name].view(-1)[0] += 1
    save_file(tensors, copy / "goldens" / output.file)
    assert main([str(copy), "--stage", output.stage, "--failures"]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert len(failures) == 1
    assert output.name in failures[0]


def _names(directory: Path, file: str) -> list[str]:
    return [entry["name"] for entry in GoldenSet(directory).index["tensors"] if entry["file"] == file]


def test_a_stage_nobody_knows_is_a_failure_not_a_gap(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(index: Any) -> None:
        entry = next(entry for entry in index["tensors"] if entry.get("stage", "").startswith("speaker"))
        entry["stage"] = "speaker.of_the_future"

    edit_json(copy / "goldens" / "index.json", rename)
    assert main([str(copy), "--stage", "speaker*"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "of_the_future" in line]
    assert "FAIL" in line


def test_a_missing_recording_is_a_failure(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "goldens" / "10_speaker_frontend.safetensors").unlink()
    assert main([str(copy), "--stage", "speaker*"]) == 1
    assert "10_speaker_frontend.safetensors" in capsys.readouterr().out


def test_a_pattern_that_matches_nothing_names_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TINY), "--stage", "nothing.*"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("parity: --stage: 'nothing.*' matches none of the stages: ")
    assert {"speaker.*", "vocoder.*"} <= set(told.err.strip().partition("stages: ")[2].split(", "))


@pytest.mark.parametrize(
    "case", ["absent", "file", "no goldens", "not JSON", "other version", "no tensors", "odd entries"]
)
def test_what_is_no_golden_set_is_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    directory = tmp_path / "taste"
    index = directory / "goldens" / "index.json"
    if case == "file":
        directory.write_text("")
    elif case != "absent":
        index.parent.mkdir(parents=True)
        shutil.copy(TINY / "config.json", directory)
    contents = {
        "not JSON": "{",
        "other version": '{"format_version": 99, "tensors": []}',
        "no tensors": '{"format_version": 2, "tensors": []}',
        "odd entries": '{"format_version": 2, "tensors": ["x"]}',
    }
    if case in contents:
        index.write_text(contents[case])
    assert main([str(directory)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("parity: ")
    assert str(directory) in line


def test_the_process_ends_with_status_2(tmp_path: Path) -> None:
    run = parity(tmp_path)
    assert run.returncode == 2
    assert run.stderr == f"parity: {tmp_path} has no goldens/index.json, so there is nothing to compare with\n"


def test_help_says_what_it_is_for() -> None:
    run = parity("--help")
    assert run.returncode == 0
    for expected in ("DIR", "goldens", "--stage", "Exit status", "tolerance"):
        assert expected in run.stdout


def _output(tmp_path: Path, golden: torch.Tensor, **entry: Any) -> tuple[GoldenSet, GoldenOutput]:
    (tmp_path / "goldens").mkdir()
    (tmp_path / "goldens" / "index.json").write_text('{"format_version": 2, "tensors": []}')
    save_file({"out": golden}, tmp_path / "goldens" / "x.safetensors")
    compare_as = entry.get("compare", "close")
    return GoldenSet(tmp_path), GoldenOutput("x.safetensors", "out", "x", "", compare_as, entry)


def test_equal_infinities_are_equal_and_nan_never_is(tmp_path: Path) -> None:
    golden = torch.tensor([0.5, -torch.inf])
    goldens, output = _output(tmp_path, golden, atol=1e-3)
    assert compare(goldens, output, golden + torch.tensor([5e-4, 0.0])).ok
    assert not compare(goldens, output, torch.tensor([0.5, torch.nan])).ok
    assert not compare(goldens, output, torch.tensor([0.5, torch.inf])).ok
    assert not compare(goldens, output, golden[:1]).ok


def test_a_waveform_needs_its_signal_to_noise_ratio(tmp_path: Path) -> None:
    golden = torch.sin(torch.arange(1000) * 0.1)
    goldens, output = _output(tmp_path, golden, atol=1.0, min_snr_db=40.0)
    assert compare(goldens, output, golden * 1.005).ok  # 46 dB
    assert not compare(goldens, output, golden * 1.02).ok  # 34 dB


def test_only_valid_entries_count(tmp_path: Path) -> None:
    golden = torch.zeros(2, 3)
    goldens, output = _output(tmp_path, golden, atol=1e-6, valid={"lengths": torch.tensor([3, 1]), "axis": 1})
    own = golden.clone()
    own[1, 1:] = 7
    assert compare(goldens, output, own).ok
    own[1, 0] = 7
    assert not compare(goldens, output, own).ok
