"""When a client may send `start` again."""

from __future__ import annotations

from websockets.frames import CloseCode

from taste_grpc.dialogue import Phase
from taste_grpc.dialogue.events import PhaseChanged, ServerEvent
from taste_grpc.gateway.protocol import ViolationError


class Starts:
    """One `start` for each turn: after a turn is over, the next one announces the turn that follows.

    It need not be sent, as the microphone is listened to all the time. For the same reason the person may begin to
    speak while it is on its way, so it is in time until that turn is being answered.
    """

    def __init__(self) -> None:
        self._phase = Phase.IDLE
        self._is_due = False

    def saw(self, event: ServerEvent) -> None:
        """`event` goes out to the client."""
        if not isinstance(event, PhaseChanged):
            return
        self._phase = event.phase
        if event.phase in (Phase.COMPLETE, Phase.ERROR):
            self._is_due = True

    def check(self) -> None:
        """A `start` has come. Raises ViolationError when it may not."""
        if not self._is_due:
            raise ViolationError(
                "a second start before the turn is complete; the conversation is open", CloseCode.PROTOCOL_ERROR
            )
        if self._phase in (Phase.THINKING, Phase.RESPONDING):
            raise ViolationError(f"start while a turn is {self._phase.value}", CloseCode.PROTOCOL_ERROR)

    def take(self) -> None:
        """The `start` that came counts: no further one until the next turn is over."""
        self._is_due = False
