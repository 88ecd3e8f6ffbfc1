"""What every benchmark prints: a table for people and, as the last line, one JSON object."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from taste_grpc import __version__


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    model = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "taste_grpc": __version__,
    }


def report(title: str, rows: Sequence[tuple[str, str]], figures: Mapping[str, Any], quick: bool) -> None:
    """Print the table and the JSON line."""
    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)
    print(json.dumps({**figures, "quick": quick, "command": " ".join(sys.argv), "machine": machine()}))
