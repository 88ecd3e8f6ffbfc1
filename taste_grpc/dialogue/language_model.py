"""What a conversation asks of a language model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: who says it; `system` comes first, once, or not at all. User and assistant take turns.
        text: what is said.
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        max_new_tokens: the longest answer; an answer that reaches it just ends.
        temperature: 0 takes the most likely token.
        top_p: nucleus, 0 to 1.
        seed: None for another answer each time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int | None = None


class LanguageModel(Protocol):
    """Chat messages to an answer that comes token by token.

    Used from the event loop; several answers may be under way.
    """

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        """The answer to the last message, in pieces of text as they come, none of them empty.

        Nothing is read ahead of the caller by more than a few pieces; closing the iterator stops the generation.
        When the messages do not fit beside `max_new_tokens`, the oldest turns after `system` are left out.

        Raises LanguageModelError when the model fails or cannot be reached.
        """
        ...

    async def start(self) -> None:
        """Load what is needed. Raises UnsupportedByModelError when it is not installed or cannot be used."""
        ...

    async def aclose(self) -> None:
        """End what it runs: servers, threads, connections."""
        ...
