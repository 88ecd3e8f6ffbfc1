"""Both distributions build from a checkout into sdists, and from those sdists, anywhere, into wheels that work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SDISTS = {
    "taste-grpc": (".", "taste_grpc-"),
    "taste-grpc-client": ("clients/python", "taste_grpc_client-"),
}
PROTOS = {f"taste/v1/{name}.proto" for name in ("common", "taste", "dialogue")}
STUBS = {
    f"taste/v1/{name}_{kind}"
    for name in ("common", "taste", "dialogue")
    for kind in ("pb2.py", "pb2.pyi", "pb2_grpc.py", "pb2_grpc.pyi")
}


def build(kind: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the builds read, without the stubs: they must come from the .proto files."""
    copy = tmp_path_factory.mktemp("checkout")
    skipped = shutil.ignore_patterns("__pycache__", "dist", "taste")
    for name in ("taste_grpc", "clients/python"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    shutil.copytree(ROOT / "protos", copy / "protos")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdists(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: build("sdist", checkout / source, tmp_path_factory.mktemp("sdist"))
        for name, (source, _) in SDISTS.items()
    }


@pytest.fixture(scope="module")
def wheels(sdists: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, sdist in sdists.items():
        clean = tmp_path_factory.mktemp("clean")
        with tarfile.open(sdist) as archive:
            archive.extractall(clean, filter="data")
        (unpacked,) = clean.iterdir()
        found[name] = build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))
    return found


@pytest.mark.parametrize("name", SDISTS)
def test_sdists_carry_the_contract_and_the_licence_but_no_stubs(name: str, sdists: dict[str, Path]) -> None:
    with tarfile.open(sdists[name]) as archive:
        members = {member.split("/", 1)[1] for member in archive.getnames() if "/" in member}
    assert sdists[name].name.startswith(SDISTS[name][1])
    assert {f"protos/{proto}" for proto in PROTOS} <= members
    assert {"LICENSE", "README.md", "pyproject.toml"} <= members
    assert not [member for member in members if "_pb2" in member or "__pycache__" in member]


def test_the_client_owns_the_stubs(checkout: Path, wheels: dict[str, Path]) -> None:
    client = set(zipfile.ZipFile(wheels["taste-grpc-client"]).namelist())
    assert STUBS | PROTOS | {"taste/py.typed", "taste_grpc_client/py.typed", "taste_grpc_client/client.py"} <= client
    server = set(zipfile.ZipFile(wheels["taste-grpc"]).namelist())
    assert not [member for member in server if member.startswith("taste/")]
    files = (path for path in (checkout / "taste_grpc").rglob("*") if path.is_file())
    assert {str(path.relative_to(checkout)) for path in files} <= server
    assert "taste_grpc/py.typed" in server


def test_wheels_work_where_there_is_no_checkout(wheels: dict[str, Path], tmp_path: Path) -> None:
    # Dependencies are those of this environment; the two distributions come from the wheels, before all else.
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--no-index"]
    subprocess.run([*install, "--target", str(site), *map(str, wheels.values())], check=True, timeout=60)
    parents = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(parents))
    code = (
        "import taste.v1, taste_grpc, taste_grpc_client, taste_grpc.server;"
        "from importlib.metadata import entry_points, version;"
        "from taste.v1 import taste_pb2, taste_pb2_grpc, dialogue_pb2_grpc;"
        "request = taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(seed=1));"
        "print(taste_pb2.DetokenizeRequest.FromString(request.SerializeToString()).WhichOneof('request'));"
        "print(taste.v1.__file__, taste_grpc.__file__, taste_grpc_client.__file__, sep='\\n');"
        "print(version('taste-grpc') == taste_grpc.__version__)"
    )
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    oneof, *files, same_version = done.stdout.split()
    assert oneof == "config"
    assert [Path(file).is_relative_to(site) for file in files] == [True] * 3
    assert same_version == "True"
