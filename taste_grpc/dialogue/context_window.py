"""What of a conversation fits into the context of a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taste_grpc.dialogue.language_model import Message
from taste_grpc.errors import LanguageModelError


def fit(messages: Sequence[Message], budget_tokens: int, count: Callable[[Message], int]) -> list[Message]:
    """`messages` without as many of the oldest turns as it takes to stay within `budget_tokens`.

    A turn is a user message and what follows it up to the next one. The system message and the last user message,
    with what follows that, always stay.

    Args:
        messages: a chat; `system` comes first or not at all.
        budget_tokens: the most that may be left.
        count: tokens of one message, with the markers around it.

    Raises:
        LanguageModelError: what has to stay does not fit.
    """
    head = list(messages[:1]) if messages and messages[0].role == "system" else []
    rest = messages[len(head) :]
    sizes = [count(message) for message in rest]
    needed = sum(map(count, head)) + sum(sizes)
    starts = [at for at, message in enumerate(rest) if at and message.role == "user"]
    begin = 0
    for start in starts:
        if needed <= budget_tokens:
            break
        needed -= sum(sizes[begin:start])
        begin = start
    if needed > budget_tokens:
        what = "the system message and the last message have" if head else "the last message has"
        raise LanguageModelError(f"{what} {needed} tokens, and the language model has room for {max(0, budget_tokens)}")
    return [*head, *rest[begin:]]
