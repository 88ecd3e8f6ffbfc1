"""Conversations by voice: turns, answers, what is remembered; spoken questions. Pure of gRPC and WebSocket."""

from taste_grpc.dialogue.answer import Answerer, AnswerError, AnswerSink, Question
from taste_grpc.dialogue.cascade import Cascade, CascadeSettings
from taste_grpc.dialogue.cascade_reply import CascadeModel
from taste_grpc.dialogue.chunked_reply import check_reply_options
from taste_grpc.dialogue.conversation import Conversation, ConversationParts, Manner
from taste_grpc.dialogue.conversations import ConversationRefusedError, Conversations
from taste_grpc.dialogue.language_model import LanguageModel, Message, Sampling
from taste_grpc.dialogue.metrics import DialogueMetrics
from taste_grpc.dialogue.phases import TRANSITIONS, IllegalTransitionError, Phase
from taste_grpc.dialogue.reply import ReplyChunk, ReplyMode, ReplyModel
from taste_grpc.dialogue.resume import ResumeStore
from taste_grpc.dialogue.session import Session
from taste_grpc.dialogue.settings import DialogueSettings
from taste_grpc.dialogue.voxtral import VoxtralModel

__all__ = [
    "TRANSITIONS",
    "AnswerError",
    "AnswerSink",
    "Answerer",
    "Cascade",
    "CascadeModel",
    "CascadeSettings",
    "Conversation",
    "ConversationParts",
    "ConversationRefusedError",
    "Conversations",
    "DialogueMetrics",
    "DialogueSettings",
    "IllegalTransitionError",
    "LanguageModel",
    "Manner",
    "Message",
    "Phase",
    "Question",
    "ReplyChunk",
    "ReplyMode",
    "ReplyModel",
    "ResumeStore",
    "Sampling",
    "Session",
    "VoxtralModel",
    "check_reply_options",
]
