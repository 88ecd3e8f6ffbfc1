"""The conversation that `generate` continues."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_clip, read_spoken, require_model

if TYPE_CHECKING:
    from taste.v1.common_pb2 import Segment
    from taste.v1.taste_pb2 import GetModelInfoResponse
    from taste_grpc_client import SpokenText

Role = Literal["system", "user", "assistant"]
Kind = Literal["text", "audio", "taste"]
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_KINDS: tuple[Kind, ...] = ("text", "audio", "taste")


@dataclass
class Entry:
    """One thing that was said.

    Attributes:
        place: option, or place in a file, that it comes from.
        kind: `text`, `audio` (a recording) or `taste` (a `.taste.json` file).
        value: the text, or the path of the file.
    """

    place: str
    role: Role
    kind: Kind
    value: str | Path
    transcript: str | None = None

    def read(self) -> Segment | SpokenText:
        """The segment, or what is in the `.taste.json` file. Raises CommandError when a file cannot be read."""
        from taste_grpc_client import audio_segment, text_segment

        if self.kind == "text":
            return text_segment(str(self.value), self.role)
        if self.kind == "audio":
            clip = read_clip(self.place, Path(self.value))
            return audio_segment(clip, self.role, transcript=self.transcript)
        return read_spoken(self.place, Path(self.value))


class Conversation:
    """What was said so far, read from its files.

    Raises CommandError when there is nothing, or a file cannot be read.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        if not entries:
            raise usage_error("CONVERSATION", "nothing to continue: give a file, or --user and the like")
        self._said = [(entry, entry.read()) for entry in entries]

    @property
    def speaker(self) -> tuple[float, ...] | None:
        """The last voice that a `.taste.json` file of the conversation tells; None when none does."""
        from taste_grpc_client import SpokenText

        voices = [said.speaker for _, said in self._said if isinstance(said, SpokenText)]
        return next((voice for voice in reversed(voices) if voice is not None), None)

    def segments(self, info: GetModelInfoResponse) -> list[Segment]:
        """The conversation for the model `info` describes. Raises CommandError when codes are another model's."""
        from taste_grpc_client import SpokenText

        segments = []
        for entry, said in self._said:
            if isinstance(said, SpokenText):
                require_model(entry.place, said, info)
                said = said.segment(entry.role)
            segments.append(said)
        return segments


def read_conversation(path: Path) -> list[Entry]:
    """The entries in a JSON file, or in what comes from stdin when `path` is `-`.

    The file holds a list of objects, or an object with such a list under `segments`. Each has a `role` (system, user,
    assistant) and one of `text`, `audio` and `taste`: words, or the path of a recording (which may have a
    `transcript` beside it) or of a `.taste.json` file. Paths start at the folder of the file.

    Raises CommandError, which names the place.
    """
    try:
        content = json.loads(sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes())
    except OSError as error:
        raise usage_error("CONVERSATION", f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise usage_error("CONVERSATION", f"{path}: is no JSON: {error}") from None
    segments = content.get("segments") if isinstance(content, dict) else content
    if not isinstance(segments, list):
        raise usage_error("CONVERSATION", f"{path}: a list of segments is expected")
    return [_file_entry(f"{path}: segments[{k}]", entry, path.parent) for k, entry in enumerate(segments)]


def _file_entry(place: str, given: Any, folder: Path) -> Entry:
    if not isinstance(given, dict):
        raise usage_error(place, "an object with role and text, audio or taste is expected")
    if unknown := given.keys() - {"role", "transcript", *_KINDS}:
        raise usage_error(f"{place}.{min(unknown)}", "there is no such member")
    kinds = [kind for kind in _KINDS if kind in given]
    if len(kinds) != 1:
        raise usage_error(place, f"exactly one of {', '.join(_KINDS)} is expected")
    for name, value in given.items():
        if not isinstance(value, str):
            raise usage_error(f"{place}.{name}", f"a string is expected, not {value!r}")
    role, kind = given.get("role"), kinds[0]
    if role not in _ROLES:
        raise usage_error(f"{place}.role", f"{role!r} is none of {', '.join(_ROLES)}")
    if "transcript" in given and kind != "audio":
        raise usage_error(f"{place}.transcript", "goes with audio")
    value = given[kind] if kind == "text" else folder / given[kind]
    return Entry(f"{place}.{kind}", role, kind, value, given.get("transcript"))
