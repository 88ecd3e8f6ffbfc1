"""Imports of the package point one way, and heavy ones stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "taste_grpc"

LEVELS = (("audio",), ("model", "speech"), ("streaming",), ("engine",), ("dialogue",), ("server", "gateway"))
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SHARED = {"errors", "file_stamp", "observability", "settings"}
"""Modules every room may import; they import no room."""

GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "taste", "taste_grpc_client"}
TORCH = {"torch", "transformers", "safetensors", "tokenizers"}
THREADS = {"threading", "_thread", "concurrent", "multiprocessing", "queue", "asyncio"}
FORBIDDEN = {
    "audio": GRPC | TORCH | THREADS,
    "model": GRPC | THREADS,
    "speech": GRPC | TORCH,
    "streaming": GRPC,
    "engine": GRPC,
    "dialogue": GRPC,
    "server": TORCH,
    "gateway": TORCH,
}
COMMAND_LINE = "cli"
"""Stands above all rooms and may use any of them."""

TORCH_FREE_MODULES = {"engine/__init__.py", "engine/protocol.py", "errors.py", "settings.py"}


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Dotted names that `source`, a module in `package`, imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from a import b` may import the module a.b as well as a name in a.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(imported_modules(path.read_text(encoding="utf-8"), package))


def own_part(module: str) -> str | None:
    """The room or top-level module of taste_grpc that `module` is in; None for others' modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == "taste_grpc" and len(parts) > 1 else None


def layer_faults(room: str, imported: set[str]) -> list[str]:
    """What a module of `room` imports and must not."""
    top_level = {path.stem for path in PACKAGE.glob("*.py")} - SHARED - {"__init__"}
    faults = []
    for module in sorted(imported):
        part = own_part(module)
        too_high = part in top_level or (part in LEVEL and part != room and LEVEL[part] >= LEVEL[room])
        if too_high or module.split(".")[0] in FORBIDDEN[room]:
            faults.append(module)
    return faults


def test_every_room_has_its_place() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {COMMAND_LINE}
    assert rooms == set(LEVEL) == set(FORBIDDEN)


@pytest.mark.parametrize("room", LEVEL)
def test_rooms_import_only_lower_rooms(room: str) -> None:
    sources = sorted((PACKAGE / room).rglob("*.py"))
    assert sources
    faults = {str(path.relative_to(ROOT)): layer_faults(room, imports_of(path)) for path in sources}
    assert {path: found for path, found in faults.items() if found} == {}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_modules_import_no_room(name: str) -> None:
    assert {own_part(module) for module in imports_of(PACKAGE / f"{name}.py")} & set(LEVEL) == set()


@pytest.mark.parametrize("name", sorted(TORCH_FREE_MODULES))
def test_what_a_server_shares_with_engines_names_no_torch(name: str) -> None:
    assert {module.split(".")[0] for module in imports_of(PACKAGE / name)} & TORCH == set()


@pytest.mark.parametrize(
    ("room", "source", "fault"),
    [
        ("model", "from taste_grpc.streaming import x", "taste_grpc.streaming.x"),
        ("model", "from taste_grpc import server", "taste_grpc.server"),
        ("model", "def f():\n    import threading", "threading"),
        ("model", "from ..engine.protocol import Engine", "taste_grpc.engine.protocol.Engine"),
        ("model", "from .. import cli", "taste_grpc.cli"),
        ("speech", "import taste_grpc.model.taste", "taste_grpc.model.taste"),
        ("gateway", "import taste_grpc.server", "taste_grpc.server"),
        ("audio", "import torch.nn", "torch.nn"),
        ("engine", "from taste.v1 import taste_pb2", "taste.v1.taste_pb2"),
    ],
)
def test_the_reader_sees_each_kind_of_import(room: str, source: str, fault: str) -> None:
    imported = set(imported_modules(source, f"taste_grpc.{room}"))
    if fault != "taste_grpc.cli" or (PACKAGE / "cli.py").exists():
        assert layer_faults(room, imported) == [fault]


def test_the_reader_lets_lower_rooms_and_errors_pass() -> None:
    source = (
        "from taste_grpc.errors import TasteError\nfrom taste_grpc.audio import mel\nfrom .rvq import Q\nimport torch"
    )
    assert layer_faults("model", set(imported_modules(source, "taste_grpc.model"))) == []


LOADED = """
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for found in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(found.name)
print(" ".join(sorted({heavy!r} & sys.modules.keys())))
"""


@pytest.mark.parametrize("package", ["server", "audio", "gateway", "errors", "settings", "cli"])
def test_importing_it_brings_no_torch(package: str) -> None:
    code = LOADED.format(package=f"taste_grpc.{package}", heavy={"torch", "transformers"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
