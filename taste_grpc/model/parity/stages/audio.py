from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taste_grpc.model.parity.stage import StageFunction

STAGES: dict[str, StageFunction] = {}
JSON_STAGES: dict[str, Callable[..., Any]] = {}
