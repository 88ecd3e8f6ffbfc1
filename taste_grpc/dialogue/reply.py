"""What a reply model is: one spoken question in, the text of the answer out in chunks of a few words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from taste_grpc.dialogue.reply_audio import AudioData

ReplyMode = Literal["conversation", "transcription"]
"""What to do with a question: answer it, or write it down."""

REPLY_MODES: tuple[ReplyMode, ...] = get_args(ReplyMode)


@dataclass(frozen=True, slots=True)
class ReplyChunk:
    """A few words of an answer.

    Attributes:
        success: whether all is well; False only in the last chunk.
        text: what is new, in whole words, with the blanks before them: put together, the chunks are the answer. May be
            empty in the last chunk. When `success` is false: what to say instead, nothing if nobody spoke.
        is_final: whether this is the last chunk, which every reply that is read to its end has.
        chunk_index: counts the chunks from 0.
        processing_time_ms: from the call until this chunk.
        error: why it failed; None when it did not.
        chunk_id: that of the request.
    """

    success: bool
    text: str
    is_final: bool
    chunk_index: int
    processing_time_ms: float
    error: str | None = None
    chunk_id: str = ""


class ReplyModel(Protocol):
    """Answers spoken questions in text. To be used on one event loop; several replies may be under way at once."""

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    @property
    def is_initialised(self) -> bool:
        """Whether it can be asked."""
        ...

    async def initialize(self) -> None:
        """Load what is needed. Does nothing the second time.

        Raises UnsupportedByModelError or CheckpointError when it is not there or cannot be used.
        """
        ...

    def process_realtime_chunk_streaming(
        self,
        audio_data: AudioData,
        chunk_id: str,
        mode: str = "conversation",
        *,
        sampling_rate: int = 16_000,
        **overrides: Any,
    ) -> AsyncGenerator[ReplyChunk]:
        """The answer to a spoken question, chunk by chunk; exactly one chunk, the last, has `is_final`.

        A question without speech, an answer that fails and one that takes too long end with a chunk that is no success.
        Closing the iterator, and cancelling its reader, end the model's work.

        Args:
            audio_data: the question, 0.02 to 30 s: a tensor, an array, a path, the bytes of a file, or a Waveform.
            chunk_id: names the request in chunks and log lines.
            mode: `conversation` answers, `transcription` writes down.
            sampling_rate: of a tensor or an array.
            overrides: fields of ChunkedResponseSettings, for this request.

        Raises:
            NotInitialisedError: before `initialize` and after `aclose`; it is a RuntimeError too.
            InvalidInputError: an argument is not allowed.
            InvalidTypeError: `audio_data` is nothing that holds audio.
            OSError: its file cannot be read.
        """
        ...

    async def aclose(self) -> None:
        """End what runs, and free what was loaded."""
        ...
