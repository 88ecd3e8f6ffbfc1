"""taste-nano, assembled once per run and removed after it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from taste_grpc.model.embedded.nano import ensure_taste_nano


@dataclass(frozen=True)
class NanoAssembly:
    """taste-nano, asked for by two callers at once: where each found it and what each was told."""

    cache: Path
    directories: tuple[Path, Path]
    messages: tuple[list[str], list[str]]


@pytest.fixture(scope="session")
def nano_assembly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NanoAssembly]:
    """The cache of taste-nano. Do not write there."""
    cache = tmp_path_factory.mktemp("cache")
    messages: tuple[list[str], list[str]] = ([], [])
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ensure_taste_nano, cache, heard.append) for heard in messages]
        first, second = (call.result() for call in calls)
    yield NanoAssembly(cache, (first, second), messages)
    shutil.rmtree(cache)


@pytest.fixture(scope="session")
def nano_directory(nano_assembly: NanoAssembly) -> Path:
    """Directory of taste-nano. Do not write there."""
    return nano_assembly.directories[0]
