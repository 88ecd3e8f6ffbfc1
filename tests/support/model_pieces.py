"""Watching the pieces of model work that a call may be stopped between, from outside of the code that stops."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from torch import nn

from taste_grpc.engine import LocalEngine
from taste_grpc.engine.call_abort import CallAbort

_HOLD_S = 20.0
_STEPPED = ("llm layer", "unit layer")


class ModelPieces:
    """Counts the pieces that the network of an engine begins, and stops at a given one.

    A piece is a layer of a prefill, some rows of a layer of the audio tower, a decode step, a speech unit, an Euler
    step, or a block of the vocoder. One call at a time; the modules themselves are watched, so work that nobody checks
    is seen.

    Attributes:
        begun: pieces by kind since `arm`.
        late: those among them that were begun when their call was asked to stop already.
        reached: set once the piece that was asked for has begun.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._handles = [module.register_forward_pre_hook(self._hook(kind)) for kind, module in _pieces(engine)]
        self.arm(0)

    def arm(self, at: int, *, hold: bool = False) -> None:
        """Count from 0 and tell of piece number `at`; with `hold` that piece waits until its call is asked to stop."""
        self.begun: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.reached = asyncio.Event()
        self._at, self._holds = at, hold

    @property
    def call(self) -> CallAbort | None:
        """The stop flag of the running call."""
        return next(iter(tuple(self._engine._calls._running)), None)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, kind: str) -> Any:
        def before(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            (rows,) = arguments[:1]
            # A step has layers of one row, which belong to what is embedded; a prefill may embed no unit at all.
            if rows.numel() and not (kind in _STEPPED and rows.shape[:-1].numel() == 1):
                self._count(kind)

        return before

    def _count(self, kind: str) -> None:
        call = self.call
        self.begun[kind] += 1
        if call is not None and call.is_set:
            self.late[kind] += 1
        if self.begun.total() == self._at:
            self._loop.call_soon_threadsafe(self.reached.set)
            if self._holds and call is not None:
                until = time.monotonic() + _HOLD_S
                while not call.is_set and time.monotonic() < until:
                    time.sleep(0.001)


def _pieces(engine: LocalEngine) -> list[tuple[str, nn.Module]]:
    loaded = engine._started.loaded
    model, generator = loaded.model, loaded.processor.get_generator(loaded.model.device)
    tower, decoder = model.audio_tower.audio_joint_encoder_segmenter, model.speech_decoder
    blocks = len(generator.hift.config.kernels)
    found: dict[str, list[nn.Module]] = {
        "listening layer": [layer.fc1 for layer in tower.audio_encoder.encoder.layers],
        "pooling layer": [*tower.audio_segmenter.decoder.layers],
        "llm layer": [layer.mlp.act_fn for layer in model.spoken_lm.llama.model.layers],
        "llm step": [model.spoken_lm.llama.model.embed_tokens],
        "text layer": [layer.feed_forward for layer in decoder.text_encoder.encoders],
        "audio layer": [layer.feed_forward for layer in decoder.audio_token_encoder.encoders],
        "unit layer": [layer.feed_forward for layer in decoder.llm.encoders],
        "unit": [decoder.speech_embedding],
        "flow layer": [layer.feed_forward for layer in generator.flow.encoder.encoders],
        "euler step": [generator.flow.decoder.estimator],
        # the first of the parallel blocks of a stage belongs to its upsampling
        "vocoder block": [*generator.hift.ups, *(b for i, b in enumerate(generator.hift.resblocks) if i % blocks)],
    }
    return [(kind, module) for kind, modules in found.items() for module in modules]
