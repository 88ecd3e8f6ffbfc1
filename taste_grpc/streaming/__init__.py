"""One stream over the model: the Python API."""

from taste_grpc.streaming.answer import Answer, EmitStatus, GenerateOptions, NewWords
from taste_grpc.streaming.conversation import (
    ConversationPrompt,
    build_completion_prompt,
    build_conditional_prompt,
    conversation_formats,
)
from taste_grpc.streaming.detokenize import DetokenizedChunk, taste_detokenize
from taste_grpc.streaming.generate import ResultIterator, streaming_generate
from taste_grpc.streaming.segments import StreamingResult, TASTESegment
from taste_grpc.streaming.tokenize import taste_tokenize

__all__ = [
    "Answer",
    "ConversationPrompt",
    "DetokenizedChunk",
    "EmitStatus",
    "GenerateOptions",
    "NewWords",
    "ResultIterator",
    "StreamingResult",
    "TASTESegment",
    "build_completion_prompt",
    "build_conditional_prompt",
    "conversation_formats",
    "streaming_generate",
    "taste_detokenize",
    "taste_tokenize",
]
