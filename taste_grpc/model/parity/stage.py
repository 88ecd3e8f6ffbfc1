"""What a parity stage is given, and the type of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from taste_grpc.model.parity.goldens import GoldenOutput, GoldenSet

if TYPE_CHECKING:
    from taste_grpc.model.processor import TasteProcessor
    from taste_grpc.model.taste import TasteForCausalLM
    from taste_grpc.model.voice_generator.generator import VoiceGenerator

T = TypeVar("T")


class Checkpoint:
    """The model under test, each part loaded when a stage first asks for it; float32 on the CPU."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def model(self) -> TasteForCausalLM:
        """The model, in float32."""
        from taste_grpc.model.taste import TasteForCausalLM

        return TasteForCausalLM.from_pretrained(self.directory, dtype="float32", device="cpu").eval()

    @cached_property
    def processor(self) -> TasteProcessor:
        """Its tokenizers and front ends."""
        from taste_grpc.model.processor import TasteProcessor

        return TasteProcessor.from_pretrained(self.directory)

    @cached_property
    def voice_generator(self) -> VoiceGenerator:
        """Flow and vocoder."""
        return self.processor.get_generator(device="cpu")


class StageInput:
    """One recorded output to recompute.

    `arg(name)` gives the recorded tensors it is computed from, `params` the literal settings.
    """

    def __init__(self, goldens: GoldenSet, output: GoldenOutput, checkpoint: Checkpoint, memo: dict[Any, Any]) -> None:
        self.goldens = goldens
        self.output = output
        self.checkpoint = checkpoint
        self.params = output.params
        self._memo = memo

    def arg(self, name: str) -> Any:
        """The recorded tensor (or list of tensors) named `name`, floats as float32."""
        value = self.goldens.resolve(self.output.entry["args"][name])
        return value

    def has(self, name: str) -> bool:
        """Whether the output has an argument of that name."""
        return name in (self.output.entry.get("args") or {})

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """`compute()`, run once for all outputs of the same file and case that use `key`."""
        full_key = (self.output.file, self.output.case, key)
        if full_key not in self._memo:
            with torch.inference_mode():
                self._memo[full_key] = compute()
        result: T = self._memo[full_key]
        return result


StageFunction = Callable[[StageInput], Tensor]
