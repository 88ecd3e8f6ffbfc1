"""How much memory a server takes there to be."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from taste_grpc.engine.memory import memory_bytes

TOTAL = psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ((None, None), TOTAL),
        (("max\n", None), TOTAL),
        (("1073741824\n", None), 1 << 30),
        ((None, "536870912\n"), 1 << 29),
        ((None, f"{1 << 62}\n"), TOTAL),
    ],
)
def test_a_container_has_what_it_may_use(contents: tuple[str | None, ...], expected: int, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        if content is not None:
            file.write_text(content)
    assert memory_bytes(files) == expected
