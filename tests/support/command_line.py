"""The `taste-grpc` command, as a process or, where that makes no difference, in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from taste_grpc.audio import Waveform, write_wav
from taste_grpc.cli import main
from taste_grpc.own_server import ServerProcess
from tests.checkpoints import TINY

COMMAND = [sys.executable, "-m", "taste_grpc"]
SERVE_DIALOGUE = ["--model", str(TINY), "--threads", "1", "--device", "cpu"]
SERVE_TINY = [*SERVE_DIALOGUE, "--no-dialogue"]
"""Starts sooner."""
COMMANDS = ("serve", "talk", "tokenize", "generate", "detokenize", "edit", "reply", "info", "parity")

# Hides packages, as if they were not installed, from a process whose PYTHONPATH begins with the folder of this file.
_HIDING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {hidden!r} else find(name, path, target)
PathFinder.find_spec = find_spec
"""


def environment(**changes: str) -> dict[str, str]:
    """That of this process without settings of its own, with room in lines, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASTE_", "GRPC_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **changes}


def run(
    *arguments: str | Path, cwd: Path | None = None, stdin: str = "", **changes: str
) -> subprocess.CompletedProcess:
    """The command, ended."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment(**changes),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def here(
    *arguments: str | Path, cwd: Path | None = None, stdin: str = "", **changes: str
) -> subprocess.CompletedProcess:
    """The command, run in this process: for what ends before a server is started, and much faster than `run`."""
    out, error, given = io.StringIO(), io.StringIO(), io.TextIOWrapper(io.BytesIO(stdin.encode()))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        contextlib.chdir(cwd or Path.cwd()),
        patch.dict(os.environ, environment(**changes), clear=True),
        patch.object(sys, "stdin", given),
    ):
        status = main(list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())


@contextlib.contextmanager
def serving(log: Path, *flags: str) -> Iterator[ServerProcess]:
    """`taste-grpc serve`, which may have stopped when the block ends."""
    server = ServerProcess(flags, log=log)
    try:
        yield server
    finally:
        server.process.kill()
        server.stop()


def without(folder: Path, *packages: str) -> dict[str, str]:
    """Environment of processes that do not find `packages`."""
    (folder / "sitecustomize.py").write_text(_HIDING.format(hidden=set(packages)))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def write_recording(path: Path, seconds: float = 2.0) -> Path:
    """Noise, as a WAV file of 16 kHz."""
    noise = np.random.default_rng(1).standard_normal(round(16_000 * seconds)).astype(np.float32) * 0.1
    write_wav(path, Waveform(noise, 16_000))
    return path
