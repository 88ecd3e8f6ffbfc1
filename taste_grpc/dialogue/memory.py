"""What a conversation remembers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from taste_grpc.dialogue.language_model import Message

MAX_TURNS = 256
"""More are forgotten, oldest first; a language model sees as many of them as fit into its context."""


@dataclass(frozen=True)
class Exchange:
    """One turn as it is remembered.

    Attributes:
        user: what the person said.
        assistant: the answer as far as it was heard; empty when nothing of it was.
    """

    user: str
    assistant: str


class Memory:
    """The turns of a conversation, in order. `updates` counts how often one was added."""

    def __init__(self, exchanges: Iterable[Exchange] = ()) -> None:
        self._exchanges = deque(exchanges, MAX_TURNS)
        self.updates = 0

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The turns, oldest first."""
        return tuple(self._exchanges)

    def remember(self, user: str, assistant: str) -> None:
        """Add a turn."""
        self._exchanges.append(Exchange(user, assistant))
        self.updates += 1

    def messages(self, system_prompt: str, question: str) -> list[Message]:
        """All of it as a chat that ends with `question`; system prompt first, unless it is empty.

        A question that was not answered is put before the one that follows it, as speakers take turns.
        """
        messages = [Message("system", system_prompt)] if system_prompt else []
        unanswered: list[str] = []
        for exchange in self._exchanges:
            unanswered.append(exchange.user)
            if exchange.assistant:
                messages += [Message("user", "\n".join(unanswered)), Message("assistant", exchange.assistant)]
                unanswered = []
        return [*messages, Message("user", "\n".join([*unanswered, question]))]
