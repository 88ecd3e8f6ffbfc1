"""One stream over the model: the Python API."""

from taste_grpc.streaming.conversation import (
    ConversationPrompt,
    build_completion_prompt,
    build_conditional_prompt,
    conversation_formats,
)
from taste_grpc.streaming.detokenize import DetokenizedChunk, taste_detokenize
from taste_grpc.streaming.generate import EmitStatus, GenerateOptions, GenerationStream, streaming_generate
from taste_grpc.streaming.segments import StreamingResult, TASTESegment
from taste_grpc.streaming.tokenize import taste_tokenize

__all__ = [
    "ConversationPrompt",
    "DetokenizedChunk",
    "EmitStatus",
    "GenerateOptions",
    "GenerationStream",
    "StreamingResult",
    "TASTESegment",
    "build_completion_prompt",
    "build_conditional_prompt",
    "conversation_formats",
    "streaming_generate",
    "taste_detokenize",
    "taste_tokenize",
]
