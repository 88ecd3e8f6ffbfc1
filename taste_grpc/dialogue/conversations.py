"""All live conversations of a server: opened, counted, told to leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from taste_grpc.dialogue.conversation import ConversationParts, Manner
from taste_grpc.dialogue.ear import Ear
from taste_grpc.dialogue.events import ErrorCode, Options, Start, VoiceChoice
from taste_grpc.dialogue.memory import Memory
from taste_grpc.dialogue.resume import ResumeStore, SavedConversation
from taste_grpc.dialogue.session import Session
from taste_grpc.dialogue.settings import DialogueSettings
from taste_grpc.errors import InvalidInputError, OverloadedError, TasteError, UnavailableError
from taste_grpc.observability import log_event
from taste_grpc.speech import SpeechDetector

logger = logging.getLogger(__name__)

_RETRY_MS = 5_000


class ConversationRefusedError(TasteError):
    """A conversation cannot be opened as `Start` asks; `code` says why."""

    grpc_code = "INVALID_ARGUMENT"
    reason = "ERROR_REASON_INVALID_FIELD"

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Conversations:
    """Opens conversations. To be used on one event loop.

    Args:
        parts: what they work with.
        settings: theirs, unless a client wants others.
        make_detector: a voice-activity detector for each.
        store: keeps those that have to go on elsewhere.
        most: that may be open at a time.
        ears: threads on which microphone audio is looked at.
    """

    def __init__(
        self,
        parts: ConversationParts,
        settings: DialogueSettings,
        make_detector: Callable[[], SpeechDetector],
        store: ResumeStore,
        *,
        most: int = 16,
        ears: int = 2,
    ) -> None:
        self._parts, self._settings, self._make_detector, self._store = parts, settings, make_detector, store
        self._most = most
        self._ears = ThreadPoolExecutor(ears, thread_name_prefix="ear")
        self._sessions: dict[Session, str | None] = {}
        self._opening = 0
        self._leaving = False

    @property
    def open_sessions(self) -> int:
        """Conversations that hold anything."""
        return len(self._sessions)

    async def open(self, start: Start) -> Session:
        """A new conversation, or the one of `start.resume_token` going on.

        Raises:
            ConversationRefusedError: `start` cannot be had.
            OverloadedError: too many are open.
            UnavailableError: the server is about to stop.
            UnsupportedByModelError: the recogniser does not know the language.
        """
        self._check_open()
        self._parts.transcriber.check_language(start.language)
        if start.voice is not None:
            self._check_voice(start.voice)
        under_way = len(self._sessions) + self._opening
        if under_way >= self._most:
            raise OverloadedError(f"{under_way} conversations are under way", retry_after_ms=_RETRY_MS)
        self._opening += 1
        try:
            detector = await asyncio.to_thread(self._make_detector)
            ear = Ear(start.encoding, start.sample_rate_hz, start.channels, detector)
            self._check_open()
            saved = None if start.resume_token is None else await self._take(start.resume_token)
            return self._begin(start, saved, ear)
        finally:
            self._opening -= 1

    def _check_voice(self, voice: VoiceChoice) -> None:
        try:
            self._parts.answerer.check_voice(voice)
        except InvalidInputError as error:
            raise error.at("start") from error

    def _check_open(self) -> None:
        if self._leaving:
            raise UnavailableError("the server is about to stop")

    async def _take(self, token: str) -> SavedConversation:
        saved = await asyncio.to_thread(self._store.take, token)
        if saved is None:
            raise ConversationRefusedError(
                ErrorCode.PROTOCOL_VIOLATION, "resume_token: is unknown, too old, or was used before"
            )
        if self._leaving:  # meanwhile: another server may have it
            await asyncio.to_thread(self._store.put_back, token, saved)
            self._check_open()
        return saved

    def _begin(self, start: Start, saved: SavedConversation | None, ear: Ear) -> Session:
        session = Session(
            self._parts,
            self._manner(start, saved),
            Memory(saved.exchanges if saved else ()),
            ear,
            self._ears,
            resumed=saved is not None,
            on_over=self._save_last_turn,
            on_closed=self._forget,
        )
        self._sessions[session] = None
        return session

    async def leave(self, grace_s: float) -> None:
        """Take no more, and tell those that are open to go on elsewhere; each ends with its running turn.

        One that cannot be saved gets an empty token: it has to end all the same.
        """
        self._leaving = True
        lifetime_ms = round(1000 * self._store.lifetime_s)
        for session in [session for session, token in self._sessions.items() if token is None]:
            token = await self._save(session)
            if session.is_over:
                await asyncio.to_thread(self._store.take, token)  # nobody will come with it
                continue
            self._sessions[session] = token
            session.go_away(token, round(1000 * grace_s), lifetime_ms)

    async def _save(self, session: Session) -> str:
        try:
            return await asyncio.to_thread(self._store.save, _saved(session))
        except OSError as error:
            log_event(logger, logging.ERROR, "a conversation was not kept", error=error, session=session.session_id)
            return ""

    async def aclose(self) -> None:
        """End all that are left."""
        self._leaving = True
        for session in tuple(self._sessions):
            session.cut()
        await asyncio.gather(*(session.aclose() for session in tuple(self._sessions)))
        await asyncio.to_thread(self._ears.shutdown)

    def _manner(self, start: Start, saved: SavedConversation | None) -> Manner:
        options = replace(saved.options if saved else Options(), **start.options.given)
        prompt = start.system_prompt if start.system_prompt is not None else (saved.system_prompt if saved else None)
        return Manner(
            system_prompt=self._settings.system_prompt if prompt is None else prompt,
            language=start.language or (saved.language if saved else None),
            voice=start.voice or (saved.voice if saved else VoiceChoice()),
            options=options,
            settings=self._settings.with_options(options),
        )

    async def _save_last_turn(self, session: Session) -> None:
        """What was said since a conversation was told to leave goes along."""
        token = self._sessions.get(session)
        if token:
            await asyncio.to_thread(self._store.renew, token, _saved(session))

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session, None)


def _saved(session: Session) -> SavedConversation:
    manner = session.manner
    return SavedConversation(
        session.memory.exchanges, manner.system_prompt, manner.language, manner.voice, manner.options
    )
