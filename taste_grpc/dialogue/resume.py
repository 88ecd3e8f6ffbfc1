"""Conversations that go on in another call: what is kept of them, under tokens that count once."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from taste_grpc.audio import Encoding
from taste_grpc.dialogue.events import Options, VoiceChoice
from taste_grpc.dialogue.memory import Exchange

_SUFFIX = ".json"


@dataclass(frozen=True)
class SavedConversation:
    """What goes on: history, voice, options, instructions."""

    exchanges: tuple[Exchange, ...]
    system_prompt: str
    language: str | None
    voice: VoiceChoice
    options: Options

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        voice = {**asdict(self.voice), "encoding": self.voice.encoding.name}
        return json.dumps({**asdict(self), "voice": voice})

    @classmethod
    def from_json(cls, text: str) -> SavedConversation:
        """The conversation that `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        tree = json.loads(text)
        voice = tree["voice"]
        embedding = voice["speaker_embedding"]
        voice |= {
            "encoding": Encoding[voice["encoding"]],
            "speaker_embedding": None if embedding is None else tuple(embedding),
        }
        return cls(
            exchanges=tuple(Exchange(**exchange) for exchange in tree["exchanges"]),
            system_prompt=tree["system_prompt"],
            language=tree["language"],
            voice=VoiceChoice(**voice),
            options=Options(**tree["options"]),
        )


class ResumeStore:
    """Saved conversations as files of one directory, which all servers that shall take them over have in common.

    A token is the only key to its file: the file's name is a hash of it. Calls block for the time of a small file.

    Args:
        directory: made when it is not there, for its owner only.
        lifetime_s: after which a token is worth nothing.
        clock: seconds since the epoch.
    """

    def __init__(self, directory: Path, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._directory, self.lifetime_s, self._clock = directory, lifetime_s, clock

    def save(self, conversation: SavedConversation) -> str:
        """Keep `conversation`; returns the token for it. Raises OSError when it cannot be written."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget_old()
        token = secrets.token_urlsafe(32)
        self._write(self._path(token), conversation)
        return token

    def renew(self, token: str, conversation: SavedConversation) -> None:
        """Keep the newer state of a conversation under its token, unless it was taken in the meantime."""
        path = self._path(token)
        with suppress(OSError):
            saved_at = path.stat().st_mtime
            self._write(path, conversation, only_if_there=True)
            os.utime(path, (saved_at, saved_at))

    def take(self, token: str) -> SavedConversation | None:
        """The conversation of `token`, which is worth nothing from now on; None when it was already."""
        path = self._path(token)
        mine = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.taken")
        try:
            path.rename(mine)  # of two that try, one succeeds
        except OSError:
            return None
        try:
            if self._clock() - mine.stat().st_mtime > self.lifetime_s:
                return None
            return SavedConversation.from_json(mine.read_text("utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            mine.unlink(missing_ok=True)

    def _path(self, token: str) -> Path:
        return self._directory / (hashlib.sha256(token.encode()).hexdigest() + _SUFFIX)

    def _write(self, path: Path, conversation: SavedConversation, *, only_if_there: bool = False) -> None:
        scratch = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.new")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(conversation.to_json())
        now = self._clock()
        os.utime(scratch, (now, now))
        if only_if_there and not path.exists():
            scratch.unlink()
            return
        scratch.replace(path)

    def _forget_old(self) -> None:
        oldest = self._clock() - self.lifetime_s
        for path in self._directory.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
