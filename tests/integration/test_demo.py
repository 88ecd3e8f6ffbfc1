"""`make run`, as a process: a human voice in, an answer out, everything on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]


def test_the_demonstration_hears_answers_and_speaks(tmp_path: Path):
    pytest.importorskip("moonshine_voice")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "taste_grpc.demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert "tried" in told["transcript"].lower()
    assert len(told["answer"]["text"].split()) > 3
    assert len(told["answer"]["codes"]) == told["answer"]["vq_dim"] * len(told["answer"]["text_ids"])
    with wave.open(str(tmp_path / "out" / "answer.wav")) as audio:
        seconds = audio.getnframes() / audio.getframerate()
    assert seconds == pytest.approx(told["answer"]["audio_ms"] / 1000, abs=0.001)
    assert seconds > 1
    assert "voice_generator" in told["random_parts"]
    assert "spoken_lm" not in told["random_parts"]
    assert told["transcript"] in done.stdout
    assert told["answer"]["text"] in done.stdout
    assert "random weights" in done.stdout
    assert "stopped cleanly" in done.stdout
    assert done.stdout.lower().count("heard:  ever tried") == 2
    spoken, _ = soundfile.read(tmp_path / "out" / "conversation.wav", dtype="float32")
    assert np.sqrt(np.mean(spoken**2)) > 0.01
