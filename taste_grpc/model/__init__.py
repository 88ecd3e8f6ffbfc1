"""The TASTE network, its processor and its checkpoints: pure torch.

The names below are imported when they are asked for, because torch and transformers take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taste_grpc.model.config import TasteConfig
    from taste_grpc.model.processor import TasteProcessor
    from taste_grpc.model.taste import TasteForCausalLM
    from taste_grpc.model.voice_generator.generator import VoiceGenerator

__all__ = ["TasteConfig", "TasteForCausalLM", "TasteProcessor", "VoiceGenerator"]

_HOMES = {
    "TasteConfig": "config",
    "TasteForCausalLM": "taste",
    "TasteProcessor": "processor",
    "VoiceGenerator": "voice_generator.generator",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
