"""`manifest.json` beside a checkpoint: which parts were trained, and what its files must be."""

from __future__ import annotations

from pathlib import Path

from taste_grpc.errors import CheckpointError
from taste_grpc.model.checkpoint import read_json

MANIFEST_FILE = "manifest.json"
PARTS = ("audio_tower", "spoken_lm", "speech_decoder", "voice_generator", "speaker_encoder")


def trained_parts(directory: Path) -> dict[str, bool]:
    """For each part of a checkpoint, whether its weights were trained (False: they are random).

    A checkpoint without a manifest is somebody's own and counts as trained. Raises CheckpointError for a
    manifest that cannot be read.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return dict.fromkeys(PARTS, True)
    parts = read_json(path).get("trained")
    if not isinstance(parts, dict) or any(not isinstance(parts.get(name), bool) for name in PARTS):
        raise CheckpointError(f"{path} does not say for every part whether it is trained")
    return {name: bool(parts[name]) for name in PARTS}
