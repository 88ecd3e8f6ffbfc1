"""How long a model may take for an answer."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from taste_grpc.dialogue.answer import AnswerError
from taste_grpc.dialogue.events import ErrorCode
from taste_grpc.dialogue.time_budget import TimeBudget

T = TypeVar("T")


class AnswerTime:
    """Limits on the waiting for a model: until its answer begins, and in all.

    Args:
        model: what errors call it.
        first_token_s: until its first token.
        total_s: for the whole answer, its first token included.
    """

    def __init__(self, model: str, *, first_token_s: float, total_s: float) -> None:
        self._model, self._total_s = model, total_s
        limits = ((first_token_s, "its first token"), (total_s, "its answer"))
        self._limit_s, self._what = min(limits, key=lambda limit: limit[0])
        self._budget = TimeBudget(self._limit_s)

    async def spend(self, awaitable: Awaitable[T]) -> T:
        """The result of `awaitable`, which the model gives. Raises AnswerError and cancels it when time is up."""
        try:
            return await self._budget.spend(awaitable)
        except TimeoutError:
            message = f"{self._model} took longer than {self._limit_s:g} s for {self._what}"
            raise AnswerError(ErrorCode.LLM_TIMEOUT, message) from None

    def has_begun(self) -> None:
        """The first token has come; may be called again for later ones."""
        self._budget = TimeBudget(self._total_s - self._limit_s + self._budget.left_s)
        self._limit_s, self._what = self._total_s, "its answer"
