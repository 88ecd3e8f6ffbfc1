"""Files that commands are given: recordings, voices, `.taste.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taste_grpc.cli.failure import CommandError, usage_error

if TYPE_CHECKING:
    from taste.v1.common_pb2 import AudioClip
    from taste.v1.taste_pb2 import GetModelInfoResponse
    from taste_grpc_client import SpokenText


def read_clip(option: str, path: Path) -> AudioClip:
    """The recording in a file that `option` names. Raises CommandError when it holds none."""
    from taste_grpc_client import audio_clip

    try:
        return audio_clip(path)
    except OSError as error:
        raise usage_error(option, f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise usage_error(option, str(error)) from None


def read_spoken(option: str, path: Path) -> SpokenText:
    """Text and codes in a `.taste.json` file that `option` names. Raises CommandError when it holds none."""
    from taste_grpc_client import SpokenText

    try:
        return SpokenText.load(path)
    except OSError as error:
        raise usage_error(option, f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise usage_error(option, str(error)) from None


def read_voice(option: str, path: Path) -> AudioClip | tuple[float, ...]:
    """The voice in a recording or a `.taste.json` file. Raises CommandError when there is none in it."""
    if path.suffix.lower() != ".json":
        return read_clip(option, path)
    speaker = read_spoken(option, path).speaker
    if speaker is None:
        raise usage_error(option, f"{path}: has no speaker")
    return speaker


def save_spoken(spoken: SpokenText, path: Path) -> None:
    """Write `spoken` to a `.taste.json` file, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spoken.save(path)


def require_model(place: str, spoken: SpokenText, info: GetModelInfoResponse) -> None:
    """Raise CommandError, blaming `place`, when there is nothing said, or codes are not those of the model."""
    if not spoken.words:
        raise CommandError(place, "has no words")
    try:
        spoken.require_model(info)
    except ValueError as error:
        raise CommandError(place, str(error)) from None
