"""Every third-party module that the packages import belongs to a distribution that they declare to need."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER, CLIENT = ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml"

# `google` is shared by several distributions; the project's own packages come from this checkout, where an editable
# install names no files.
DISTRIBUTIONS = {
    "google.api": "googleapis-common-protos",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "taste": "taste-grpc-client",
    "taste_grpc": "taste-grpc",
    "taste_grpc_client": "taste-grpc-client",
}
INSTALLED = packages_distributions()
OPTIONAL_ROOMS = {"gateway"}
"""Imported as a whole only where what users can add is there."""


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """The modules that a module imports when it runs, and whether a function does it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from google import rpc` imports a module, too.
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(node.orelse, []), lazy)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, lazy or inside)


def distributions(module: str) -> set[str]:
    """Those that bring `module`; one that is not installed is taken to be called like it."""
    parts = module.split(".")
    for name in (".".join(parts[:2]), parts[0]):
        if name in DISTRIBUTIONS:
            return {DISTRIBUTIONS[name]}
    return {normal(name) for name in INSTALLED.get(parts[0], [parts[0]])}


def normal(requirement: str) -> str:
    """The distribution that a requirement names, as indices spell it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(project: dict[str, Any]) -> tuple[set[str], set[str]]:
    """What is always there where a project is installed, itself included, and what its users can add."""
    extras = project["project"].get("optional-dependencies", {})
    added = [name for extra, names in extras.items() if extra != "dev" for name in names]
    added += project.get("dependency-groups", {}).get("no-deps", [])
    always = [project["project"]["name"], *project["project"]["dependencies"]]
    return {normal(name) for name in always}, {normal(name) for name in added}


def undeclared(package: Path, project: dict[str, Any]) -> list[str]:
    always, added = declared(project)
    missing = set()
    for path in package.rglob("*.py"):
        optional = path.parent.name in OPTIONAL_ROOMS
        for module, lazy in imports(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            known = always | added if lazy or optional else always
            if top not in sys.stdlib_module_names and not distributions(module) & known:
                missing.add(f"{path.relative_to(package.parent)}: {top}")
    return sorted(missing)


@pytest.mark.parametrize(
    ("package", "pyproject"),
    [("taste_grpc", SERVER), ("clients/python/src/taste_grpc_client", CLIENT), ("clients/python/src/taste", CLIENT)],
)
def test_what_is_imported_is_declared(package: str, pyproject: Path) -> None:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    assert undeclared(ROOT / package, project) == []


def test_what_is_not_declared_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text(
        "import os, numpy.linalg\n"
        "from google.rpc import status_pb2\n"
        "from package import other\n"
        "from . import another\n"
        "if TYPE_CHECKING:\n"
        "    import yaml\n"
        "import matplotlib\n"
        "def draw():\n"
        "    import matplotlib.figure\n"
        "    class Inner:\n"
        "        import pytest\n",
        encoding="utf-8",
    )
    needed = {
        "name": "package",
        "dependencies": ["numpy>=2"],
        "optional-dependencies": {"plot": ["matplotlib"], "dev": ["pytest"]},
    }
    assert undeclared(package, {"project": needed}) == [
        "package/module.py: google",
        "package/module.py: matplotlib",
        "package/module.py: pytest",
    ]
    needed["dependencies"] = ["numpy", "matplotlib", "googleapis_common.protos[x]>=1", "Pytest"]
    assert undeclared(package, {"project": needed}) == []
