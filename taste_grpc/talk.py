"""One spoken question through a server: hear it, answer it, say the answer while it is being made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from taste.v1.common_pb2 import AudioEncoding, Segment
from taste.v1.taste_pb2 import (
    CompletionReason,
    DetokenizeResponse,
    GetModelInfoResponse,
    StreamingResult,
    TokenizeResponse,
)
from taste_grpc.audio import Encoding, Waveform, decode_clip, decode_pcm, write_wav
from taste_grpc.plot import Utterance
from taste_grpc.settings import DEFAULT_MODEL
from taste_grpc.word_places import Span
from taste_grpc_client import GenerateOptions, SpokenText, TasteClient, audio_clip, text_segment, token_segment

EMBEDDED_SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the embedded language model was tuned with; without it its answers are shaky."""

_CONVERSATION = "conversation"


@dataclass(frozen=True)
class TalkOptions:
    """How to answer.

    Attributes:
        system: instruction before the question; none when empty, the embedded model's own when None. Models
            without conversations get none.
        text: what is said in the recording; the server listens for itself when None.
        extra_words: a sentence that ends at or after so many words ends the answer.
        every_words: words that are spoken at a time.
        text_top_p: share of probability each id is drawn from, 0 for the best one always; the server's
            default when None.
        seed: makes the answer repeatable.
        sample_rate_hz: of the answer's audio.
        max_chunk_words, look_ahead_words: as of `TasteClient.speak`.
    """

    system: str | None = None
    text: str | None = None
    extra_words: int = 12
    every_words: int = 4
    text_top_p: float | None = None
    seed: int | None = None
    sample_rate_hz: int = 24_000
    max_chunk_words: int | None = None
    look_ahead_words: int | None = None

    def sampling(self) -> GenerateOptions:
        """How the words are chosen, as far as that is said here."""
        chosen: GenerateOptions = {"extra_words": self.extra_words}
        if self.seed is not None:
            chosen["seed"] = self.seed
        if self.text_top_p is not None:
            chosen["text_top_p"] = self.text_top_p
        return chosen


@dataclass(frozen=True)
class Talked:
    """A question and its answer.

    Attributes:
        latency_ms: by name, from the sending of the recording on.
        audio: the answer; empty when the model chose not to speak.
        ends_ms: where in `audio` each segment of the answer ends, in the order they were spoken.
    """

    question: TokenizeResponse
    results: list[StreamingResult]
    audio: Waveform
    ends_ms: list[float]
    random_parts: list[str]
    latency_ms: dict[str, float]

    @property
    def answer_text(self) -> str:
        """What the answer says."""
        return "".join(result.segment.tokens.text for result in self.results).strip()

    @property
    def completion_reason(self) -> str:
        """Why the answer ended, in the words of the contract."""
        return CompletionReason.Name(self.results[-1].completion_reason).removeprefix("COMPLETION_REASON_").lower()

    def as_json(self) -> dict[str, Any]:
        """Everything but the audio, in plain values."""
        tokens = [result.segment.tokens for result in self.results if result.HasField("segment")]
        return {
            "transcript": self.question.text,
            "answer": {
                "text": self.answer_text,
                "completion_reason": self.completion_reason,
                "text_ids": [text_id for part in tokens for text_id in part.text_ids],
                "word_ids": [word_id for part in tokens for word_id in part.word_ids],
                "vq_dim": tokens[0].taste_tokens.codes.vq_dim if tokens else 0,
                "codes": [code for part in tokens for code in part.taste_tokens.codes.ids],
                "audio_ms": round(self.audio.duration_ms, 3),
            },
            "random_parts": self.random_parts,
            "latency_ms": {name: round(value, 1) for name, value in self.latency_ms.items()},
        }


def random_parts(info: GetModelInfoResponse) -> list[str]:
    """Names of the parts of a model that have learned nothing."""
    return [part.name for part in info.parts if not part.trained]


@dataclass
class _Stopwatch:
    started: float = field(default_factory=time.monotonic)
    marks_ms: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Note the first time something happens."""
        self.marks_ms.setdefault(name, 1000.0 * (time.monotonic() - self.started))


def talk(
    client: TasteClient,
    recording: Path,
    options: TalkOptions,
    *,
    on_transcript: Callable[[str], None] = lambda text: None,
    on_words: Callable[[str], None] = lambda text: None,
) -> Talked:
    """Send a recording through Tokenize, Generate and Detokenize.

    The words of the answer are spoken while the following ones are generated. `on_words` is called on a
    thread of gRPC's. Raises TasteClientError when a call fails, OSError and ValueError when the recording
    cannot be read.
    """
    info = client.model_info()
    watch = _Stopwatch()
    question = client.tokenize(recording, text=options.text)
    watch.mark("question tokenized")
    on_transcript(question.text)

    def on_result(result: StreamingResult) -> None:
        if result.HasField("segment"):
            watch.mark("first words")
            on_words(result.segment.tokens.text)

    with client.speak(
        _conversation(info, question, options),
        speaker=question.speaker_embedding,
        emit=options.every_words,
        on_result=on_result,
        sample_rate_hz=options.sample_rate_hz,
        max_chunk_words=options.max_chunk_words,
        look_ahead_words=options.look_ahead_words,
        **options.sampling(),
    ) as chunks:
        audio, ends_ms = _heard(chunks, options.sample_rate_hz, watch)
        results = chunks.results
    watch.mark("answer complete")
    return Talked(question, results, audio, ends_ms, random_parts(info), watch.marks_ms)


def _heard(
    chunks: Iterable[DetokenizeResponse], sample_rate_hz: int, watch: _Stopwatch
) -> tuple[Waveform, list[float]]:
    """All audio of an answer, and where in it each segment ends, in ms."""
    pieces, ends_ms, samples = [np.zeros(0, np.float32)], [], 0
    for chunk in chunks:
        if chunk.audio:
            watch.mark("first audio")
        pieces.append(decode_pcm(chunk.audio, Encoding.LINEAR16))
        samples += len(pieces[-1])
        if chunk.is_final:
            ends_ms.append(1000.0 * samples / sample_rate_hz)
    return Waveform(np.concatenate(pieces), sample_rate_hz), ends_ms


def _conversation(info: GetModelInfoResponse, question: TokenizeResponse, options: TalkOptions) -> list[Segment]:
    asked = token_segment(question, "user")
    system = options.system
    if system is None and info.model_id == DEFAULT_MODEL:
        system = EMBEDDED_SYSTEM_PROMPT
    if system and _CONVERSATION in info.conversation_formats:
        return [text_segment(system, "system"), asked]
    return [asked]


def save(talked: Talked, path: Path) -> None:
    """Write the answer's audio as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, talked.audio)


def utterances(recording: Path, talked: Talked) -> list[Utterance]:
    """The question, recorded in the file `recording`, and its answer, to be drawn by `save_plot`."""
    clip = audio_clip(recording)
    encoding = Encoding[AudioEncoding.Name(clip.format.encoding).removeprefix("AUDIO_ENCODING_")]
    asked, said = SpokenText.from_tokenized(talked.question), SpokenText.from_results(talked.results)
    counts = [len(result.segment.tokens.words) for result in talked.results if result.HasField("segment")]
    borders = pairwise([0.0, *talked.ends_ms])
    parts = [(count, Span(start, end)) for count, (start, end) in zip(counts, borders, strict=True)]
    return [
        _utterance("question", asked, decode_clip(clip.data, encoding)),
        _utterance("answer", said, talked.audio, parts),
    ]


def _utterance(who: str, spoken: SpokenText, audio: Waveform, parts: Sequence[tuple[int, Span]] = ()) -> Utterance:
    words = spoken.words
    return Utterance(
        f"{who}: {spoken.text}", audio, [word.text for word in words], [word.codes for word in words], parts
    )
