"""The exceptions of taste-grpc.

::

    TasteError
    ├── InvalidInputError (ValueError)      a value the caller passed is not allowed
    │   └── BatchSizeError (AssertionError) a batch of one was expected
    ├── InvalidTypeError (TypeError)        a value the caller passed has the wrong type
    ├── CheckpointError                     a model directory cannot be loaded
    ├── SettingsError                       the settings are not usable
    ├── UnsupportedByModelError             the loaded model lacks what was asked
    ├── OverloadedError                     admission is full; try again later
    ├── UnavailableError                    loading, draining or failed; try again later
    │   └── NotInitialisedError (RuntimeError) a model was used before it was loaded, or after its end
    ├── UnauthenticatedError                no credentials, or unknown ones
    ├── MethodNotOfferedError               the method is declared, and not offered
    ├── IdleError                           the caller's next message did not come in time
    ├── LanguageModelError                  a language model failed or cannot be reached
    ├── SpeechError                         a recogniser or a voice failed
    └── CallAbortedError                    the call was cancelled or its deadline passed

Every leaf knows the canonical gRPC code it becomes (`grpc_code`, the name of a
`grpc.StatusCode`) and a machine-readable `reason`, a member name of
`taste.v1.ErrorReason`. Nothing here imports gRPC.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TasteError(Exception):
    """Base of all errors raised on purpose by taste-grpc."""

    grpc_code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "ERROR_REASON_INTERNAL"


class InvalidInputError(TasteError, ValueError):
    """A value passed by the caller is not allowed.

    Attributes:
        field: name of the argument, or path of the request field, that is wrong
            (`segments[2].text`); empty when no single one is to blame.
        description: what is wrong with it and what is allowed.
    """

    grpc_code = "INVALID_ARGUMENT"
    reason = "ERROR_REASON_INVALID_FIELD"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}" if field else description)
        self.field = field
        self.description = description

    def at(self, prefix: str) -> InvalidInputError:
        """The same error with `prefix` put before its field path."""
        path = f"{prefix}.{self.field}" if self.field else prefix
        return type(self)(path, self.description)


class BatchSizeError(InvalidInputError, AssertionError):
    """The streaming API works on one utterance at a time; another batch size was given."""


class InvalidTypeError(TasteError, TypeError):
    """A value passed by the caller has the wrong type; `field` names it."""

    grpc_code = "INVALID_ARGUMENT"
    reason = "ERROR_REASON_INVALID_FIELD"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class CheckpointError(TasteError):
    """A model directory is incomplete, damaged or not of the published layout.

    The message names the file and, where one is to blame, the tensor.
    """

    grpc_code = "FAILED_PRECONDITION"
    reason = "ERROR_REASON_MODEL_LOAD_FAILED"


class SettingsError(TasteError):
    """A setting has a value that cannot be used; the message names it."""

    grpc_code = "FAILED_PRECONDITION"
    reason = "ERROR_REASON_INVALID_FIELD"


class UnsupportedByModelError(TasteError):
    """The request is well formed, but the loaded model cannot do what it asks."""

    grpc_code = "FAILED_PRECONDITION"
    reason = "ERROR_REASON_MODEL_LACKS_CAPABILITY"


class _RetryableError(TasteError):
    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class OverloadedError(_RetryableError):
    """No room for another call; `retry_after_ms` suggests when to try again."""

    grpc_code = "RESOURCE_EXHAUSTED"
    reason = "ERROR_REASON_OVERLOADED"


class UnavailableError(_RetryableError):
    """The service is loading, draining, or has failed; `retry_after_ms` suggests when to try again."""

    grpc_code = "UNAVAILABLE"
    reason = "ERROR_REASON_NOT_SERVING"


class NotInitialisedError(UnavailableError, RuntimeError):
    """A model was asked for something before `initialize`, or after `aclose`."""


class UnauthenticatedError(TasteError):
    """The call carries no credentials, or ones that are not known; the message never repeats them."""

    grpc_code = "UNAUTHENTICATED"
    reason = "ERROR_REASON_UNAUTHENTICATED"


class MethodNotOfferedError(TasteError):
    """The method is declared, and this server does not offer it."""

    grpc_code = "UNIMPLEMENTED"
    reason = "ERROR_REASON_NOT_IMPLEMENTED"


class IdleError(TasteError):
    """The server waited longer for the caller's next message than its settings allow."""

    grpc_code = "DEADLINE_EXCEEDED"
    reason = "ERROR_REASON_IDLE"


class LanguageModelError(TasteError):
    """A language model failed, or the endpoint that serves it did or cannot be reached."""

    grpc_code = "UNAVAILABLE"
    reason = "ERROR_REASON_NOT_SERVING"


class SpeechError(TasteError):
    """A recogniser or a voice failed on what it was given."""

    grpc_code = "UNAVAILABLE"
    reason = "ERROR_REASON_NOT_SERVING"


class CallAbortedError(TasteError):
    """The call was cancelled, or its deadline passed, while the model worked on it."""

    grpc_code = "CANCELLED"
    reason = "ERROR_REASON_CANCELLED"


def type_name(value: Any) -> str:
    """Name of the type of `value`, for error messages."""
    return type(value).__name__
