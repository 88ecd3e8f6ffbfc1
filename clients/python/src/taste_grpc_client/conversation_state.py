"""What the conversations of both clients keep account of."""

from __future__ import annotations

import grpc

from taste.v1.common_pb2 import AudioFormat
from taste.v1.dialogue_pb2 import ConverseResponse
from taste_grpc_client.conversation_events import (
    ConversationEvent,
    Failure,
    GoingAway,
    Started,
    read_event,
)
from taste_grpc_client.errors import ConversationError, ServerError


class ConversationState:
    """Where a conversation stands, by what has come in.

    Attributes:
        started: what the server said first; None until it has.
        resume_token: with which the conversation can go on elsewhere; None unless the server is about to stop.
    """

    def __init__(self) -> None:
        self.started: Started | None = None
        self.resume_token: str | None = None
        self._output_format = AudioFormat()

    def received(self, response: ConverseResponse) -> ConversationEvent | None:
        """The event in a response; None for one that this version does not know.

        Raises:
            ConversationError: the server gives the conversation up.
            ServerError: it says something else before it has begun.
        """
        event = read_event(response, self._output_format)
        if isinstance(event, Failure) and (self.started is None or not response.error.recoverable):
            session_id = self.started.session_id if self.started else ""
            raise ConversationError(event.code, event.message, session_id)
        if isinstance(event, Started):
            self.started = event
            self._output_format.CopyFrom(response.started.output_format)
        elif self.started is None:
            raise never_began()
        elif isinstance(event, GoingAway):
            self.resume_token = event.resume_token
        return event


def never_began() -> ServerError:
    """The exception for a conversation whose first message is not `started`."""
    return ServerError(grpc.StatusCode.INTERNAL, "the server did not begin the conversation")


def half_closed_error() -> ValueError:
    """The exception for sending after `half_close`."""
    return ValueError("the conversation was half-closed, so nothing more can be sent")
