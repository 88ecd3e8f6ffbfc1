"""The language model that needs nothing but packages: SmolLM2-135M-Instruct on llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from taste_grpc.dialogue.context_window import fit
from taste_grpc.dialogue.language_model import Message, Sampling
from taste_grpc.dialogue.llama_server import LlamaServer, versions
from taste_grpc.dialogue.piece_stream import PieceStream
from taste_grpc.dialogue.settings import SHORT_PROMPT
from taste_grpc.dialogue.slot_choice import SlotChoice
from taste_grpc.errors import InvalidInputError, LanguageModelError, TasteError

MIN_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS = 256, 8_192
"""The largest is what the model was trained with."""

MAX_SLOTS = 64
"""Answers that one model may be asked for at once."""
"""Where a chat brings no system message. The model's own makes it talk about itself, in several languages."""
_OPENING_TOKENS = 4
"""The markers that begin the answer."""
_MOST_AHEAD = 4


class EmbeddedLanguageModel:
    """Answers of a small model on the CPU, some 30 tokens a second together.

    Each answer has a thread of its own while it is generated; calls beyond `slots` wait in order. An answer is the
    same each time with temperature 0, on the same machine, unless turns were left out before it: what is remembered
    of the turns after those was read with them in sight.

    llama.cpp generates on while the caller does not read, up to `max_new_tokens`; of that only a few pieces are handed
    over.

    Args:
        slots: answers under way at once, and conversations that are remembered from turn to turn; others are read again
            as a whole, some 70 tokens a second.
        context_tokens: the longest conversation, with its answer. A slot takes 23 KB of memory for each.
        threads: of the model; two are much slower than one when the cores have other work.
    """

    def __init__(self, slots: int = 4, context_tokens: int = 2_048, threads: int = 1) -> None:
        for field, value, low, high in (
            ("slots", slots, 1, MAX_SLOTS),
            ("context_tokens", context_tokens, MIN_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS),
            ("threads", threads, 1, 1_024),
        ):
            if not low <= value <= high:
                raise InvalidInputError(field, f"is {value}; allowed are {low:,} to {high:,}")
        self._slots, self._context_tokens, self._threads = slots, context_tokens, threads
        self._llama: LlamaServer | None = None
        self._choice = SlotChoice(slots)
        self._pool: ThreadPoolExecutor
        self._running: set[PieceStream] = set()

    @property
    def name(self) -> str:
        """The model, and the packages it comes from and runs on."""
        return f"SmolLM2-135M-Instruct ({versions()})"

    async def start(self) -> None:
        """Load the model, a second or two, during which the library lets no other thread run Python.

        Raises UnsupportedByModelError when a package is missing.
        """
        if self._llama is None:
            self._llama = await asyncio.to_thread(LlamaServer, self._slots, self._context_tokens, self._threads)
            self._choice = SlotChoice(self._slots)
            self._pool = ThreadPoolExecutor(self._slots, "taste-llm")

    async def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        """The answer to the last message, piece by piece.

        Closing the iterator, or cancelling the task that reads it, takes no time; the generation then ends with its
        next token, or, while it still reads the prompt, within 16 tokens of that.

        Raises LanguageModelError when the generation fails, the last message is too long, or the model is closed.
        """
        llama = self._llama
        if llama is None:
            raise LanguageModelError("the embedded language model is not started")
        given = list(messages)
        pieces = PieceStream(_MOST_AHEAD)
        self._running.add(pieces)
        work = self._pool.submit(self._generate, llama, given, sampling, pieces)
        try:
            while (piece := await pieces.take()) is not None:
                yield piece
        finally:
            pieces.close()
            work.cancel()  # when it has not begun
            self._running.discard(pieces)

    async def aclose(self) -> None:
        """End the answers under way with LanguageModelError, and the threads."""
        llama, self._llama = self._llama, None
        if llama is None:
            return
        for pieces in self._running:
            pieces.close()
            pieces.end(LanguageModelError("the embedded language model was closed"))
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(llama.close)

    def _generate(self, llama: LlamaServer, messages: list[Message], sampling: Sampling, pieces: PieceStream) -> None:
        """The work of one answer, on its thread."""
        error: Exception | None = None
        try:
            fitting = self._fitting(llama, messages, sampling.max_new_tokens)
            with self._choice.lend(fitting) as slot:
                llama.chat(fitting, sampling, slot, lambda piece: pieces.put(piece) if piece else not pieces.is_closed)
        except TasteError as failure:
            error = failure
        except Exception as failure:
            error = LanguageModelError(f"the embedded language model failed: {failure!r}")
        pieces.end(error)

    def _fitting(self, llama: LlamaServer, messages: list[Message], max_new_tokens: int) -> list[Message]:
        if not messages or messages[0].role != "system":
            messages = [Message("system", SHORT_PROMPT), *messages]
        # An answer may take half of the context; it ends where that is full.
        reserved = min(max_new_tokens, self._context_tokens // 2)
        return fit(messages, self._context_tokens - reserved - _OPENING_TOKENS, llama.count)
