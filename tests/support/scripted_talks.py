"""A server whose conversations go over gRPC as they do in earnest, and whose parts do what a test tells them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taste_grpc.dialogue import Conversations, DialogueMetrics, DialogueSettings, ResumeStore
from taste_grpc.engine.protocol import Engine
from taste_grpc.settings import Settings
from tests.support.live_server import Live, live_server
from tests.support.recording_engine import RecordingEngine
from tests.support.scripted import LoudnessDetector, Scripts


class ScriptedTalks:
    """The dialogue of a server: conversations with scripted parts, and no replies."""

    parts = ("scripted",)
    reply_model = None

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        stream = settings.stream
        assert stream.resume_dir is not None, "tests keep conversations in a directory of their own"
        self.scripts = scripts
        self.conversations = Conversations(
            scripts.parts,
            DialogueSettings(system_prompt="Be kind."),
            LoudnessDetector,
            ResumeStore(stream.resume_dir, stream.resume_lifetime_s),
            most=stream.max_sessions,
        )

    @property
    def metrics(self) -> DialogueMetrics:
        return self.scripts.metrics

    @property
    def phases(self) -> list[str]:
        """Of the conversations that hold anything."""
        return [session.phase.name for session in self.conversations._sessions]

    @property
    def at_rest(self) -> bool:
        """Whether nothing of any conversation is left, and no part is at work."""
        scripts = self.scripts
        working = (scripts.transcriber.running, scripts.model.open, scripts.voice.open)
        return working == (0, 0, 0) and not self.conversations.open_sessions

    async def start(self) -> None:
        """Nothing to load."""

    async def aclose(self) -> None:
        await self.conversations.aclose()


@asynccontextmanager
async def talks(scripts: Scripts | None = None, **flags: Any) -> AsyncIterator[tuple[Live, ScriptedTalks]]:
    """A live server, and what it converses with; `flags` name a `resume_dir` in `stream`."""
    made: list[ScriptedTalks] = []

    def make(settings: Settings, _: Engine) -> ScriptedTalks:
        made.append(ScriptedTalks(scripts or Scripts(), settings))
        return made[0]

    async with live_server(RecordingEngine(), make_dialogue=make, **flags) as live:
        yield live, made[0]
