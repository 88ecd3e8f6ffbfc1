"""What a conversation can be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from taste_grpc.dialogue.events import Options

SPOKEN_PROMPT = (
    "You are a friendly voice assistant. Your answers are spoken aloud: use one to three short sentences of plain "
    "words, without lists, headings or emoji."
)
SHORT_PROMPT = "You are a helpful assistant."
"""For the embedded language model, which longer instructions confuse."""
TEMPERATURE, EMBEDDED_TEMPERATURE = 0.7, 0.2
"""Of language models; the embedded one wanders with more."""


@dataclass(frozen=True)
class DialogueSettings:
    """Settings of the conversations of a server.

    Attributes:
        system_prompt: instructions to the language model.
        vad_silence_ms: silence that ends a turn.
        partial_interval_ms: time between partial transcripts.
        max_utterance_ms: the longest turn.
        max_utterance_bytes: the most microphone audio of one turn, as it comes.
        barge_in_ms: speech that interrupts an answer.
        barge_in: whether speech interrupts an answer at all.
        max_new_tokens: the longest answer.
        asr_timeout_s: for the final transcript of a turn.
        ack_grace_s: how much longer than it takes to play an answer its acks may stay out.
    """

    system_prompt: str = SPOKEN_PROMPT
    vad_silence_ms: int = 700
    partial_interval_ms: int = 1_000
    max_utterance_ms: int = 30_000
    max_utterance_bytes: int = 16 << 20
    barge_in_ms: int = 240
    barge_in: bool = True
    max_new_tokens: int = 160
    asr_timeout_s: float = 15.0
    ack_grace_s: float = 5.0

    def with_options(self, options: Options) -> DialogueSettings:
        """These, with what `options` gives in their place."""
        return replace(self, **options.given)
