"""The client where there is nothing but what it declares to need: its wheel, its tests, a program with strict types."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients" / "python"
TOOLS = [
    "hypothesis",
    "mypy",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "trustme",
    "types-grpcio",
    "types-protobuf",
]
"""What the client's tests and the check of its types need beside the client."""
ABSENT = ("torch", "numpy", "taste_grpc", "soundfile", "transformers")


def run(*command: str | Path, cwd: Path | None = None, timeout_s: float = 300) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the stubs come from the .proto files."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns("__pycache__", "dist", "taste", ".*")
    shutil.copytree(CLIENT, copy / "clients" / "python", ignore=skipped)
    shutil.copytree(ROOT / "protos", copy / "protos")
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, copy / "clients" / "python")
    run(*build)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel."""
    uv = shutil.which("uv", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    assert uv is not None, "uv is not installed; `make test` installs it"
    env = tmp_path_factory.mktemp("env") / "env"
    run(uv, "venv", "--quiet", "--python", sys.executable, env)
    interpreter = env / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(uv, "pip", "install", "--quiet", "--python", interpreter, "-c", constraints, wheel, *TOOLS)
    return interpreter


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    """The client's tests, away from its sources."""
    for name in ("tests", "pyproject.toml"):
        source = CLIENT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    return tmp_path


def test_it_brings_neither_torch_nor_numpy(python: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {ABSENT!r} if u.find_spec(name)])"
    assert run(python, "-I", "-c", code).strip() == "[]"
    code = "from importlib.metadata import requires; print(*requires('taste-grpc-client'), sep='\\n')"
    needed = re.findall(r"^[\w-]+", run(python, "-I", "-c", code), re.MULTILINE)
    assert sorted(needed) == ["googleapis-common-protos", "grpcio", "protobuf"]


def test_its_tests_pass_there(python: Path, tests: Path) -> None:
    output = run(python, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tests)
    assert " passed" in output
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert [line.partition("numpy is not installed")[1] != "" for line in skipped] == [True], output
    imported = "import taste_grpc_client as c; print(c.__file__)"
    assert Path(run(python, "-I", "-c", imported).strip()).is_relative_to(python.parents[1])


def test_a_program_with_strict_types_is_accepted(python: Path, tests: Path) -> None:
    program = tests / "tests" / "typed_program.py"
    run(python, "-I", "-m", "mypy", "--strict", "--cache-dir", tests / "cache", program, cwd=tests)
    # and it is looked at: a wrong use is seen
    wrong = program.with_name("wrong_program.py")
    wrong.write_text("from taste_grpc_client import TasteClient\nTasteClient().tokenize(5, text=7)\n", encoding="utf-8")
    command = [str(python), "-I", "-m", "mypy", "--strict", "--cache-dir", str(tests / "cache"), str(wrong)]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("arg-type") == 2, done.stdout
