"""What the gateway asks of conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from taste_grpc.dialogue.events import ClientEvent, ServerEvent, Start


class Session(Protocol):
    """One conversation."""

    @property
    def session_id(self) -> str:
        """Its name in the log."""
        ...

    @property
    def was_cut(self) -> bool:
        """Whether the server ended it, before its end."""
        ...

    async def put(self, event: ClientEvent) -> None:
        """Take what the client did; waits while much is queued. Does nothing once the conversation has ended."""
        ...

    def violate(self, message: str) -> None:
        """The client broke the protocol: the failure goes out, then the conversation ends."""
        ...

    def events(self) -> AsyncGenerator[ServerEvent]:
        """What happens, `Started` first; ends with the conversation. For one reader."""
        ...

    async def aclose(self) -> None:
        """Give everything up at once. May be called more than once."""
        ...


class Conversations(Protocol):
    """Where conversations are opened."""

    async def open(self, start: Start) -> Session:
        """A new conversation, or one that goes on.

        Raises:
            ConversationRefusedError, InvalidInputError: it cannot be had as `start` asks.
            OverloadedError: too many are open.
            UnavailableError: the server loads, or is about to stop.
            UnsupportedByModelError: the loaded models lack what is asked.
        """
        ...


Authenticate = Callable[[str | None], str]
"""Name of the client with this bearer token, None for one that has shown none; empty where nobody is asked.

Raises UnauthenticatedError. Called on the event loop.
"""


def anybody(token: str | None) -> str:
    """Lets everybody in."""
    return ""
