"""Why a conversation does not begin."""

from __future__ import annotations

from taste_grpc.dialogue.events import ErrorCode
from taste_grpc.errors import TasteError


class ConversationRefusedError(TasteError):
    """A conversation cannot be opened as it was asked for; `code` says what is in the way."""

    grpc_code = "FAILED_PRECONDITION"

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
