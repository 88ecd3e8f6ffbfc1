"""`taste.v1.DialogueService`: declared, not offered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from taste.v1 import dialogue_pb2, dialogue_pb2_grpc
from taste_grpc.errors import MethodNotOfferedError


class DialogueService(dialogue_pb2_grpc.DialogueServiceServicer):
    """Refuses every call with UNIMPLEMENTED, before anything is read."""

    async def Converse(self, request_iterator: Any, context: Any) -> AsyncGenerator[dialogue_pb2.ConverseResponse]:
        """Refused."""
        raise MethodNotOfferedError("DialogueService.Converse is not offered by this server")
        yield  # type: ignore[unreachable]  # makes it the generator that its kind of method is

    async def Reply(self, request: Any, context: Any) -> AsyncGenerator[dialogue_pb2.ReplyResponse]:
        """Refused."""
        raise MethodNotOfferedError("DialogueService.Reply is not offered by this server")
        yield  # type: ignore[unreachable]
