"""Through which the gateway opens conversations: the gate of the calls, for those that come over WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Protocol

from taste_grpc.dialogue import Session
from taste_grpc.dialogue.events import ClientEvent, ServerEvent, Start
from taste_grpc.errors import CheckpointError
from taste_grpc.server.dialogue_service import Dialogue
from taste_grpc.server.gate import Gate


class WebServer(Protocol):
    """Serves conversations over WebSocket, beside gRPC."""

    async def start(self) -> int:
        """Listen; returns the port. Raises SettingsError when the address cannot be had."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...


class WebSession:
    """A conversation that counts as a call for as long as it is open."""

    def __init__(self, session: Session, inside: ExitStack) -> None:
        self._session, self._inside = session, inside

    @property
    def session_id(self) -> str:
        """Its name in the log."""
        return self._session.session_id

    @property
    def was_cut(self) -> bool:
        """Whether the server ended it, before its end."""
        return self._session.was_cut

    async def put(self, event: ClientEvent) -> None:
        """Take in `event`; waits while many are queued."""
        await self._session.put(event)

    def violate(self, message: str) -> None:
        """The client has broken the protocol."""
        self._session.violate(message)

    def events(self) -> AsyncGenerator[ServerEvent]:
        """What the client is to be told."""
        return self._session.events()

    async def aclose(self) -> None:
        """End at once."""
        try:
            await self._session.aclose()
        finally:
            self._inside.close()


class WebDoor:
    """Opens conversations for the gateway. To be used on one event loop.

    Args:
        gate: that calls go through, too.
        failure: why no conversation can be had; None while it is not known that none can.
    """

    def __init__(self, gate: Gate[Dialogue], failure: Callable[[], str | None]) -> None:
        self._gate, self._failure = gate, failure

    async def open(self, start: Start) -> WebSession:
        """A conversation. Raises what `Conversations.open` raises, UnavailableError and CheckpointError."""
        failure = self._failure()
        if failure is not None:
            raise CheckpointError(failure)
        with ExitStack() as inside:
            dialogue = inside.enter_context(self._gate.enter())
            session = await dialogue.conversations.open(start)
            return WebSession(session, inside.pop_all())
