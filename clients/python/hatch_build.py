"""Builds the typed gRPC stubs `taste.v1` from the .proto files.

As a hatch build hook it runs before every build and editable install, so the
stubs are in each wheel without being committed. As a script
(`python hatch_build.py`, or `make protos` in the repository) it only builds them.
The .proto files are those of the checkout (`../../protos`), or, in an unpacked
sdist, the copy the sdist carries (`protos`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ROOT = Path(__file__).resolve().parent
_OUT = _ROOT / "src" / "taste"
_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def find_protos() -> Path:
    """The directory that holds `taste/v1/*.proto`. Raises FileNotFoundError."""
    candidates = [_ROOT / "protos", _ROOT.parent.parent / "protos"]
    for candidate in candidates:
        if any((candidate / "taste" / "v1").glob("*.proto")):
            return candidate
    raise FileNotFoundError(f"taste/v1/*.proto is in none of: {', '.join(map(str, candidates))}")


def _plugin(name: str) -> str:
    # The interpreter's own scripts first: a virtual environment need not be activated to be built in.
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=search)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; it comes with mypy-protobuf")
    return found


def generate() -> None:
    """Replaces `src/taste` by stubs built from the .proto files; on failure the old ones stay."""
    protos = find_protos()
    sources = sorted((protos / "taste" / "v1").glob("*.proto"))
    (_ROOT / "src").mkdir(exist_ok=True)
    # Built beside its place, then swapped in whole: an interrupted or failed build never leaves half a package.
    with tempfile.TemporaryDirectory(dir=_ROOT / "src", prefix=".taste-") as scratch:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}"]
        command += [f"--plugin={name}={_plugin(name)}" for name in _PLUGINS]
        command += [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        result = subprocess.run([*command, *map(str, sources)], check=False, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"protoc failed on {protos}:\n{result.stderr}")
        package = Path(scratch) / "taste"
        (package / "__init__.py").write_text('"""The protocol of taste-grpc; generated."""\n')
        (package / "v1" / "__init__.py").write_text('"""Version 1 of the protocol of taste-grpc; generated."""\n')
        (package / "py.typed").touch()
        for source in sources:
            shutil.copy(source, package / "v1")
        shutil.rmtree(_OUT, ignore_errors=True)
        package.rename(_OUT)


class StubsHook(BuildHookInterface[Any]):
    """Builds the stubs for wheels; puts the .proto files into sdists."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if self.target_name == "sdist":
            for source in sorted(find_protos().rglob("*.proto")):
                build_data["force_include"][str(source)] = f"protos/{source.relative_to(find_protos()).as_posix()}"
        else:
            generate()


if __name__ == "__main__":
    generate()
