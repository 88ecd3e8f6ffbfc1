"""From what a request carries (audio, text or tokens) to segments in token form."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from taste_grpc.audio import Waveform, resample
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.model_thread import CallAbort, ModelThread
from taste_grpc.engine.protocol import Float32Array, Int64Array, SegmentInput
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ
from taste_grpc.model.text.words import derive_word_ids, encode_words, split_words
from taste_grpc.streaming import TASTESegment, taste_tokenize

_MIN_SPEAKER_SAMPLES = 400  # one frame of the speaker front end


class Hearing:
    """Recognition and tokenizing for the calls of one engine.

    The coroutines run on the event loop and hand their work to the model and recogniser threads.
    """

    def __init__(self, loaded: LoadedModel, model_thread: ModelThread, asr_thread: ModelThread) -> None:
        self._loaded = loaded
        self._model_thread = model_thread
        self._asr_thread = asr_thread

    async def at_model_rate(self, audio: Waveform, abort: CallAbort) -> Float32Array:
        """Samples of `audio` at the rate the model listens to."""
        return await self._asr_thread.run(
            lambda: resample(audio.samples, audio.sample_rate_hz, MODEL_SAMPLE_RATE_HZ), abort, wait=False
        )

    async def transcribe(self, samples: Float32Array, abort: CallAbort) -> str:
        """What is said in 16 kHz `samples`.

        Raises UnsupportedByModelError without a recogniser, InvalidInputError when no speech is found.
        """
        recogniser = self._loaded.recogniser
        if recogniser is None:
            raise UnsupportedByModelError(
                "the server has no speech recogniser, so audio must come with its text; "
                "install taste-grpc[embedded] on the server for one"
            )
        text = await self._asr_thread.run(lambda: recogniser.transcribe(samples), abort, wait=False)
        if not text.split():
            raise InvalidInputError("audio", "no speech was recognised in it")
        return " ".join(text.split())

    def words(self, text: str) -> tuple[list[int], list[int]]:
        """Text ids and word ids of `text`, word by word. Raises InvalidInputError when there is no word."""
        words = split_words(text)
        if not words:
            raise InvalidInputError("text", "has no words")
        tokens = encode_words(self._loaded.processor.text_tokenizer, words)
        return tokens.ids, tokens.word_ids

    def check_ids(self, text_ids: Int64Array) -> tuple[list[int], list[int]]:
        """The given ids and their words. Raises InvalidInputError for ids out of range, or none."""
        ids = [int(text_id) for text_id in text_ids]
        vocab = self._loaded.info.text_vocab_size
        if not ids or min(ids) < 0 or max(ids) >= vocab:
            raise InvalidInputError("text_ids", f"must be ids in 0..{vocab - 1}, at least one")
        return ids, derive_word_ids(ids, self._loaded.processor.text_tokenizer.sets(vocab))

    async def codes(
        self, samples: Float32Array, ids: list[int], words: list[int], abort: CallAbort, field: str = "text"
    ) -> Int64Array:
        """Codes `[S, vq_dim]` of the words spoken in 16 kHz `samples`; errors of the ids are blamed on `field`."""
        loaded = self._loaded

        def tokenize() -> Int64Array:
            rows = taste_tokenize(
                loaded.model,
                loaded.processor,
                torch.from_numpy(samples)[None],
                torch.tensor([ids]),
                word_ids=torch.tensor([words]),
                abort=abort,
            )
            codes: Int64Array = rows[0].numpy()
            return codes

        try:
            return await self._model_thread.run(tokenize, abort)
        except InvalidInputError as error:
            if error.field != "text_ids":
                raise
            raise InvalidInputError(field, error.description) from None

    async def voice(self, samples: Float32Array, abort: CallAbort) -> Float32Array:
        """Speaker embedding of 16 kHz `samples`."""
        padded = np.pad(samples, (0, max(0, _MIN_SPEAKER_SAMPLES - len(samples))))
        encoder = self._loaded.processor.speaker_encoder
        return await self._model_thread.run(lambda: encoder.embed([padded]), abort)

    async def segment(self, given: SegmentInput, where: str, abort: CallAbort) -> TASTESegment:
        """A segment in token form, whatever form it came in; errors name fields below `where`."""
        try:
            ids, codes = await self._tokens(given, abort)
            taste_ids = torch.from_numpy(codes)[None] if given.modality == "audio" and codes is not None else None
            return TASTESegment(given.role, given.modality, torch.tensor([ids], dtype=torch.long), taste_ids)
        except InvalidInputError as error:
            raise error.at(where) from None

    async def _tokens(self, given: SegmentInput, abort: CallAbort) -> tuple[list[int], Int64Array | None]:
        if given.audio is not None:
            samples = await self.at_model_rate(given.audio, abort)
            text = given.text if given.text is not None else await self.transcribe(samples, abort)
            ids, words = await self._model_thread.run(partial(self.words, text), abort)
            codes = None if given.modality == "text" else await self.codes(samples, ids, words, abort)
            return ids, codes
        if given.text_ids is not None:
            return self.check_ids(given.text_ids)[0], given.taste_ids
        if given.text is None:
            raise InvalidInputError("", "has neither text, tokens nor audio")
        encode = self._loaded.processor.text_tokenizer.encode
        return await self._model_thread.run(partial(encode, given.text), abort), None
