"""`manifest.json` beside an assembled checkpoint: what every file must be, and what has learned anything.

It is written last, so a directory with a valid manifest is complete. A checkpoint without one is a
user's own; nothing is known against any part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taste_grpc.errors import CheckpointError
from taste_grpc.model.checkpoint.loading import read_json

MANIFEST = "manifest.json"
PARTS = ("audio_tower", "spoken_lm", "speech_bridge", "speech_decoder", "voice_generator", "speaker_encoder")
"""Names of the parts. `spoken_lm` chooses the words; `speech_bridge` is what joins it to speech: the
fusion of its input and the head that names the codes."""

_FORMAT = 1
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        recipe: name and version of what wrote the directory.
        files: every other file by its relative path.
        trained: for each part, whether it has learned anything.
        inputs: SHA-256 of what went in, by name.
    """

    recipe: str
    files: Mapping[str, FileRecord]
    trained: Mapping[str, bool]
    inputs: Mapping[str, str]


def write_manifest(directory: Path, *, recipe: str, trained: Mapping[str, bool], inputs: Mapping[str, str]) -> None:
    """Record every file of `directory` in its manifest; call it when all else is written."""
    content = {
        "format": _FORMAT,
        "recipe": recipe,
        "inputs": dict(inputs),
        "trained": {part: trained[part] for part in PARTS},
        "files": {
            name: {"size": (directory / name).stat().st_size, "sha256": sha256_of(directory / name)}
            for name in _files(directory)
        },
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of `directory`, None when it has none.

    Raises:
        CheckpointError: there is one, but it cannot be read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')!r}; this program knows {_FORMAT}")
    try:
        return Manifest(
            recipe=str(content["recipe"]),
            files={name: FileRecord(int(file["size"]), str(file["sha256"])) for name, file in content["files"].items()},
            trained={str(part): bool(value) for part, value in content["trained"].items()},
            inputs={str(name): str(value) for name, value in content["inputs"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__} {error}") from error


def find_damage(directory: Path, manifest: Manifest) -> str | None:
    """What is wrong with the files of `directory`, in words; None when every byte is as recorded.

    Reads all files: about a second for half a gigabyte.
    """
    found = set(_files(directory))
    for name in sorted(manifest.files.keys() - found):
        return f"{name} is missing"
    for name in sorted(found - manifest.files.keys()):
        return f"{name} does not belong there"
    for name, file in manifest.files.items():
        size = (directory / name).stat().st_size
        if size != file.size:
            return f"{name} has {size} bytes instead of {file.size}"
    for name, file in manifest.files.items():
        if sha256_of(directory / name) != file.sha256:
            return f"the content of {name} has changed"
    return None


def trained_parts(directory: Path) -> dict[str, bool]:
    """For each part of a checkpoint, whether it has learned anything; all of `PARTS` when there is no manifest.

    Raises:
        CheckpointError: there is a manifest, but it does not say.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return dict.fromkeys(PARTS, True)
    trained = read_json(path).get("trained")
    if not isinstance(trained, dict) or not trained or any(not isinstance(value, bool) for value in trained.values()):
        raise CheckpointError(f"{path} does not say which parts are trained")
    return {str(part): value for part, value in trained.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(name for name in names if name != MANIFEST)
