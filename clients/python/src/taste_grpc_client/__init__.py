"""Client of taste-grpc: speech in, text and speech out, while they are being generated.

`TasteClient` is for threads, `AsyncTasteClient` for asyncio; both have the same
methods and return the messages of `taste.v1`, whose .proto files are the manual
of every field. `converse` holds a live conversation, whose events are dataclasses.
`SpokenText` keeps text and how it is said in a file; `write_wav` keeps the sound.
"""

from __future__ import annotations

from taste_grpc_client.aio import AsyncResultStream, AsyncSpeechStream, AsyncTasteClient
from taste_grpc_client.aio_conversation import AsyncConversation
from taste_grpc_client.audio import AudioSource, BinaryFile, SampleArray, audio_clip
from taste_grpc_client.client import ResultStream, SpeechStream, TasteClient
from taste_grpc_client.conversation import Conversation
from taste_grpc_client.conversation_events import (
    ConversationEvent,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    MarkReached,
    Notice,
    PartialTranscript,
    Phase,
    PhaseChanged,
    SpeechChunk,
    SpeechComplete,
    Started,
    TurnMetrics,
)
from taste_grpc_client.conversation_requests import AnswerVoice, ConversationOptions, MicrophoneAudio
from taste_grpc_client.errors import (
    AuthenticationError,
    CallCancelledError,
    ConversationEndedError,
    ConversationError,
    DeadlineExceededError,
    FieldViolation,
    IdleError,
    InvalidArgumentError,
    MessageTooLargeError,
    ModelError,
    OverloadedError,
    ServerError,
    TasteClientError,
    TlsError,
    UnavailableError,
    UnimplementedError,
)
from taste_grpc_client.requests import Emit, GenerateOptions, PcmEncoding, ReplyOptions, Speaker
from taste_grpc_client.retry import Retry
from taste_grpc_client.security import PemSource, Tls
from taste_grpc_client.segments import RoleName, audio_segment, text_segment, token_segment
from taste_grpc_client.spoken_text import SpokenText
from taste_grpc_client.streams import OnResult
from taste_grpc_client.taste_file import TasteFileError
from taste_grpc_client.wav import WavWriter, write_wav
from taste_grpc_client.word import Word

__all__ = [
    "AnswerVoice",
    "AsyncConversation",
    "AsyncResultStream",
    "AsyncSpeechStream",
    "AsyncTasteClient",
    "AudioSource",
    "AuthenticationError",
    "BinaryFile",
    "CallCancelledError",
    "Conversation",
    "ConversationEndedError",
    "ConversationError",
    "ConversationEvent",
    "ConversationOptions",
    "DeadlineExceededError",
    "Emit",
    "ErrorCode",
    "Failure",
    "FieldViolation",
    "FinalTranscript",
    "GenerateOptions",
    "GoingAway",
    "IdleError",
    "Interrupted",
    "InvalidArgumentError",
    "LlmToken",
    "MarkReached",
    "MessageTooLargeError",
    "MicrophoneAudio",
    "ModelError",
    "Notice",
    "OnResult",
    "OverloadedError",
    "PartialTranscript",
    "PcmEncoding",
    "PemSource",
    "Phase",
    "PhaseChanged",
    "ReplyOptions",
    "ResultStream",
    "Retry",
    "RoleName",
    "SampleArray",
    "ServerError",
    "Speaker",
    "SpeechChunk",
    "SpeechComplete",
    "SpeechStream",
    "SpokenText",
    "Started",
    "TasteClient",
    "TasteClientError",
    "TasteFileError",
    "Tls",
    "TlsError",
    "TurnMetrics",
    "UnavailableError",
    "UnimplementedError",
    "WavWriter",
    "Word",
    "audio_clip",
    "audio_segment",
    "text_segment",
    "token_segment",
    "write_wav",
]
