"""Conversations that go on in another call: what is kept of them, under tokens that count once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from taste_grpc.audio import Encoding
from taste_grpc.dialogue.events import Options, VoiceChoice
from taste_grpc.dialogue.memory import Exchange

_SAVED, _TAKEN, _SCRATCH = ".json", ".taken", ".new"
_OURS = re.compile(r"[0-9a-f]{64}(\.json|\.taken|\.[0-9a-f]{16}\.new)")


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

    A token is the only key to its file: the file's name is a hash of it. That it was taken says a file beside it, which
    only one can make: so nobody who renews a conversation stands in the way of somebody who takes it. Calls block for
    the time of a small file, and may come from any thread.

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
        self._write(self._path(token), conversation, self._clock())
        return token

    def renew(self, token: str, conversation: SavedConversation) -> None:
        """Keep the newer state of a conversation under its token, unless it was taken in the meantime.

        Its lifetime stays what it was. What cannot be written leaves the older state there.
        """
        path, taken = self._path(token), self._taken(token)
        with suppress(OSError):
            saved_at = path.stat().st_mtime
            if not taken.exists():
                self._write(path, conversation, saved_at)
            if taken.exists():
                path.unlink()

    def take(self, token: str) -> SavedConversation | None:
        """The conversation of `token`, which is worth nothing from now on; None when it was already."""
        path, taken = self._path(token), self._taken(token)
        try:
            expires_at = path.stat().st_mtime + self.lifetime_s
            text = path.read_text("utf-8")  # before others can see that it is taken, and delete it
            os.close(os.open(taken, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # of two that try, one succeeds
            now = self._clock()
            os.utime(taken, (now, now))
            path.unlink(missing_ok=True)
            return SavedConversation.from_json(text) if now <= expires_at else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put_back(self, token: str, conversation: SavedConversation) -> None:
        """Let a token count again that was just taken, its lifetime anew. Raises OSError when it cannot be written."""
        self._taken(token).unlink(missing_ok=True)
        self._write(self._path(token), conversation, self._clock())

    def _path(self, token: str) -> Path:
        return self._directory / (hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest() + _SAVED)

    def _taken(self, token: str) -> Path:
        """Says that the token counts no more; outlives a state that is written too late."""
        return self._path(token).with_suffix(_TAKEN)

    def _write(self, path: Path, conversation: SavedConversation, saved_at: float) -> None:
        scratch = path.with_suffix(f".{secrets.token_hex(8)}{_SCRATCH}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(conversation.to_json())
            os.utime(scratch, (saved_at, saved_at))
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise

    def _forget_old(self) -> None:
        """Delete what is too old, of what this store has written; other files in the directory are none of its own."""
        oldest = self._clock() - self.lifetime_s
        for path in self._directory.iterdir():
            if _OURS.fullmatch(path.name):
                with suppress(OSError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()
