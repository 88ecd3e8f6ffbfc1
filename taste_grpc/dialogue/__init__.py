"""Conversations by voice: turns, phrases, and what was heard. Pure of gRPC and WebSocket."""

from taste_grpc.dialogue.phases import TRANSITIONS, IllegalTransitionError, Phase, TurnPhases
from taste_grpc.dialogue.phrase_cutter import PhraseCutter
from taste_grpc.dialogue.playback import Heard, Playback
from taste_grpc.dialogue.turn_taking import SpeechBegan, SpeechEnded, TurnTaking, TurnTakingSettings

__all__ = [
    "TRANSITIONS",
    "Heard",
    "IllegalTransitionError",
    "Phase",
    "PhraseCutter",
    "Playback",
    "SpeechBegan",
    "SpeechEnded",
    "TurnPhases",
    "TurnTaking",
    "TurnTakingSettings",
]
