"""`taste.v1.DialogueService`: conversations by voice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from taste.v1 import dialogue_pb2, dialogue_pb2_grpc
from taste_grpc.dialogue import Conversations, DialogueMetrics, ReplyModel
from taste_grpc.dialogue.events import ErrorCode, Failure
from taste_grpc.errors import CheckpointError, MethodNotOfferedError
from taste_grpc.server.converse import ConverseCalls
from taste_grpc.server.converse_messages import ConverseResponses
from taste_grpc.server.gate import Gate
from taste_grpc.server.reply import ReplyCalls
from taste_grpc.settings import Settings


class Dialogue(Protocol):
    """What a server offers conversations with. To be used on one event loop."""

    @property
    def conversations(self) -> Conversations:
        """Live ones; after `start`."""
        ...

    @property
    def reply_model(self) -> ReplyModel:
        """Answers spoken questions; after `start`."""
        ...

    @property
    def metrics(self) -> DialogueMetrics:
        """Figures of all of them."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what listens, answers and speaks; after `start`."""
        ...

    async def start(self) -> None:
        """Load everything. Raises TasteError when a part cannot be had."""
        ...

    async def aclose(self) -> None:
        """End everything."""
        ...


class DialogueService(dialogue_pb2_grpc.DialogueServiceServicer):
    """Hands calls over to conversations behind the gate.

    Attributes:
        failure: why no conversation can be had, once that is known.
    """

    def __init__(self, gate: Gate[Dialogue], settings: Settings, *, offered: bool) -> None:
        self._gate, self._offered = gate, offered
        self._converse, self._replies = ConverseCalls(settings.limits), ReplyCalls(settings)
        self.failure: str | None = None

    def close(self) -> None:
        """Refuse those who wait to be let in, and end the decoding threads."""
        self._replies.close()

    async def Converse(self, request_iterator: Any, context: Any) -> AsyncGenerator[dialogue_pb2.ConverseResponse]:
        """A live conversation."""
        self._check_offered("Converse")
        if self.failure is not None:
            yield ConverseResponses().message(Failure(None, ErrorCode.MODEL_LOAD_FAIL, self.failure))
            raise CheckpointError(self.failure)
        with self._gate.enter() as dialogue:
            async with aclosing(self._converse.converse(dialogue.conversations, request_iterator)) as responses:
                async for response in responses:
                    yield response

    async def Reply(
        self, request: dialogue_pb2.ReplyRequest, context: Any
    ) -> AsyncGenerator[dialogue_pb2.ReplyResponse]:
        """The answer to a spoken question, in chunks of a few words."""
        self._check_offered("Reply")
        if self.failure is not None:
            raise CheckpointError(self.failure)
        with self._gate.enter() as dialogue:
            async with aclosing(self._replies.reply(dialogue.reply_model, request)) as responses:
                async for response in responses:
                    yield response

    def _check_offered(self, method: str) -> None:
        if not self._offered:
            raise MethodNotOfferedError(f"DialogueService.{method} is not offered by this server")
