"""Many calls over one model, behind the `Engine` protocol.

`LocalEngine` brings torch with it and is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taste_grpc.engine.protocol import (
    CompletionReason,
    DetokenizeChunk,
    DetokenizeConfig,
    EmitPolicy,
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    SegmentInput,
    TokenizeRequest,
    TokenizeResult,
)

if TYPE_CHECKING:
    from taste_grpc.engine.local import EngineSettings, LocalEngine

__all__ = [
    "CompletionReason",
    "DetokenizeChunk",
    "DetokenizeConfig",
    "EmitPolicy",
    "Engine",
    "EngineSettings",
    "EngineStats",
    "GenerateRequest",
    "GenerateResult",
    "LocalEngine",
    "ModelInfo",
    "SegmentInput",
    "TokenizeRequest",
    "TokenizeResult",
]


def __getattr__(name: str) -> Any:
    if name in ("EngineSettings", "LocalEngine"):
        from taste_grpc.engine import local

        return getattr(local, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
