"""taste-grpc: live spoken conversation with a text-aligned spoken language model, as a service."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taste_grpc.model.processor import TasteProcessor
    from taste_grpc.model.taste import TasteForCausalLM

__all__ = ["TasteForCausalLM", "TasteProcessor", "__version__"]
__version__ = "0.1.0"

# torch and transformers take seconds to import, so they wait until the model is asked for
_LAZY = {
    "TasteForCausalLM": "taste_grpc.model.taste",
    "TasteProcessor": "taste_grpc.model.processor",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
