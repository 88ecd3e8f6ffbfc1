"""Client of taste-grpc: speech in, text and speech out, while they are being generated.

`TasteClient` is for threads, `AsyncTasteClient` for asyncio; both have the same
methods and return the messages of `taste.v1`, whose .proto files are the manual
of every field.
"""

from __future__ import annotations

from taste_grpc_client.aio import AsyncResultStream, AsyncTasteClient
from taste_grpc_client.audio import AudioSource, SampleArray, audio_clip
from taste_grpc_client.client import ResultStream, TasteClient
from taste_grpc_client.errors import (
    AuthenticationError,
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    ModelError,
    OverloadedError,
    ServerError,
    TasteClientError,
    UnavailableError,
    UnimplementedError,
)
from taste_grpc_client.requests import GenerateOptions
from taste_grpc_client.segments import RoleName, audio_segment, text_segment, token_segment

__all__ = [
    "AsyncResultStream",
    "AsyncTasteClient",
    "AudioSource",
    "AuthenticationError",
    "CallCancelledError",
    "DeadlineExceededError",
    "FieldViolation",
    "GenerateOptions",
    "InvalidArgumentError",
    "ModelError",
    "OverloadedError",
    "ResultStream",
    "RoleName",
    "SampleArray",
    "ServerError",
    "TasteClient",
    "TasteClientError",
    "UnavailableError",
    "UnimplementedError",
    "audio_clip",
    "audio_segment",
    "text_segment",
    "token_segment",
]
