"""Every stage the goldens can name, by its identifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taste_grpc.model.parity.goldens import GoldenSet
from taste_grpc.model.parity.stage import Checkpoint, StageFunction
from taste_grpc.model.parity.stages import audio, end_to_end, speech, spoken_lm

JsonStageFunction = Callable[[GoldenSet, dict[str, Any], Checkpoint], Any]

TENSOR_STAGES: dict[str, StageFunction] = {
    **audio.STAGES,
    **spoken_lm.STAGES,
    **speech.STAGES,
    **end_to_end.STAGES,
}

JSON_STAGES: dict[str, JsonStageFunction] = {
    **spoken_lm.JSON_STAGES,
    **end_to_end.JSON_STAGES,
}
