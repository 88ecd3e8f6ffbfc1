"""Where a turn of a conversation stands, and where it may go from there."""

from __future__ import annotations

from enum import Enum

from taste_grpc.errors import TasteError


class Phase(Enum):
    """A phase of a turn."""

    IDLE = "idle"
    """Nobody speaks."""
    CAPTURING = "capturing"
    """The person speaks."""
    THINKING = "thinking"
    """The person has finished; the answer has not begun."""
    RESPONDING = "responding"
    """The answer is being given."""
    COMPLETE = "complete"
    """The turn is over."""
    ERROR = "error"
    """The turn has failed."""


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # A typed turn has nothing to capture.
    Phase.IDLE: frozenset({Phase.CAPTURING, Phase.THINKING, Phase.ERROR}),
    # A turn that is cancelled, or in which nothing was said, is complete at once.
    Phase.CAPTURING: frozenset({Phase.THINKING, Phase.COMPLETE, Phase.ERROR}),
    Phase.THINKING: frozenset({Phase.RESPONDING, Phase.COMPLETE, Phase.ERROR}),
    Phase.RESPONDING: frozenset({Phase.COMPLETE, Phase.ERROR}),
    Phase.COMPLETE: frozenset({Phase.IDLE}),
    Phase.ERROR: frozenset({Phase.IDLE}),
}
"""Where each phase may lead. Speech that interrupts an answer completes its turn and begins the next."""


class IllegalTransitionError(TasteError):
    """A turn was to enter a phase that does not follow from the one it is in."""

    grpc_code = "FAILED_PRECONDITION"

    def __init__(self, current: Phase, wanted: Phase) -> None:
        super().__init__(f"a turn that is {current.value} cannot become {wanted.value}")
        self.current, self.wanted = current, wanted


class TurnPhases:
    """The phase of the running turn, and the number of that turn."""

    def __init__(self) -> None:
        self.current = Phase.IDLE
        self.turn = 0

    def enter(self, phase: Phase) -> None:
        """Go on to `phase`; the turn after a finished one begins with IDLE. Raises IllegalTransitionError."""
        if phase not in TRANSITIONS[self.current]:
            raise IllegalTransitionError(self.current, phase)
        if phase is Phase.IDLE:
            self.turn += 1
        self.current = phase
