"""When a recording that is played to a conversation has been answered for good."""

from __future__ import annotations

from collections.abc import Container
from enum import Enum, auto

_SILENCE_MS = 500
"""Silence after which speech before it has been noticed, if there was any."""


class Step(Enum):
    """What to do now."""

    WAIT = auto()
    ASK = auto()
    """Send the mark `Ending.mark`."""
    END = auto()


class Ending:
    """Finds the moment at which nothing more is to be expected.

    That nothing happens at the moment does not tell: what was sent last may not have been listened to. So a mark is
    sent when all is quiet; when it comes back and nothing has happened since, what was sent before it has been dealt
    with.
    """

    def __init__(self) -> None:
        self.mark = ""
        self._asked = 0
        self._activity = 0

    def step(self, silent_ms: float, is_quiet: bool, activity: int, marks: Container[str]) -> Step:
        """What to do.

        Args:
            silent_ms: silence sent after the recording.
            is_quiet: whether no turn is under way and no answer is being played.
            activity: changes whenever something happens in the conversation.
            marks: those that have come back.
        """
        if silent_ms < _SILENCE_MS:
            return Step.WAIT
        if self.mark:
            if self.mark not in marks:
                return Step.WAIT
            if is_quiet and activity == self._activity:
                return Step.END
            self.mark = ""
        if not is_quiet:
            return Step.WAIT
        self._asked += 1
        self.mark, self._activity = f"quiet-{self._asked}", activity
        return Step.ASK
