"""From what a request carries (audio, text, words or tokens) to segments in token form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from taste_grpc.audio import Waveform, resample
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.model_thread import CallAbort, ModelThread
from taste_grpc.engine.protocol import Float32Array, Int64Array, SegmentInput, SpokenWord
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.model.processor import MODEL_SAMPLE_RATE_HZ
from taste_grpc.model.text.words import derive_word_ids, encode_words, split_words, written_word_ids, written_words
from taste_grpc.streaming import TASTESegment, taste_tokenize
from taste_grpc.streaming.tokenize import asr_tokens

_MIN_SPEAKER_SAMPLES = 400  # one frame of the speaker front end


@dataclass
class _Fragment:
    """A segment on its way to token form; `where` is its field path."""

    given: SegmentInput
    where: str
    ids: list[int] = field(default_factory=list)
    word_ids: list[int] = field(default_factory=list)
    codes: Int64Array | None = None
    samples: Float32Array | None = None

    @property
    def is_spelled(self) -> bool:
        """Whether its text ids are known."""
        return bool(self.ids)

    @property
    def is_heard(self) -> bool:
        """Whether codes are to be made from its audio."""
        return self.given.audio is not None and self.given.modality == "audio"

    @property
    def spoken_field(self) -> str:
        """What is to blame for words that audio cannot be tokenized with."""
        return "audio" if self.given.text is None else "audio.transcript"

    def finished(self) -> TASTESegment:
        codes = torch.from_numpy(self.codes)[None] if self.codes is not None else None
        text_ids = torch.tensor([self.ids], dtype=torch.long)
        return TASTESegment(self.given.role, self.given.modality, text_ids, codes)


class Hearing:
    """Recognition and tokenizing for the calls of one engine.

    The coroutines run on the event loop and hand their work to the model and recogniser threads.

    Attributes:
        work: counts the pieces of model work, by the part of the model that did them.
    """

    def __init__(
        self, loaded: LoadedModel, model_thread: ModelThread, asr_thread: ModelThread, max_text_tokens: int
    ) -> None:
        self._loaded = loaded
        self._model_thread = model_thread
        self._asr_thread = asr_thread
        self._max_text_tokens = max_text_tokens
        self.work: Counter[str] = Counter()

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
        self.work["recogniser"] += 1
        text = await self._asr_thread.run(lambda: recogniser.transcribe(samples), abort, wait=False)
        if not text.split():
            raise InvalidInputError("audio", "no speech was recognised in it")
        return " ".join(text.split())

    def words(self, text: str) -> tuple[list[int], list[int]]:
        """Text ids and word ids of `text`, word by word. Raises InvalidInputError when there is no word."""
        tokens = encode_words(self._loaded.processor.text_tokenizer, split_words(text))
        if not tokens.ids:
            raise InvalidInputError("text", "has no words")
        ranks = {word: rank for rank, word in enumerate(dict.fromkeys(tokens.word_ids))}
        return tokens.ids, [ranks[word] for word in tokens.word_ids]

    def written_words(self, ids: Sequence[int], word_ids: Sequence[int]) -> tuple[str, ...]:
        """The texts of the words that `word_ids` number, without blanks; one for each."""
        return tuple(written_words(ids, word_ids, self._loaded.processor.text_tokenizer))

    def check_ids(self, text_ids: Int64Array) -> tuple[list[int], list[int]]:
        """The given ids and their words. Raises InvalidInputError for ids out of range, or none."""
        ids = [int(text_id) for text_id in text_ids]
        vocab = self._loaded.info.text_vocab_size
        if not ids or min(ids) < 0 or max(ids) >= vocab:
            raise InvalidInputError("text_ids", f"must be ids in 0..{vocab - 1}, at least one")
        return ids, derive_word_ids(ids, self._loaded.processor.text_tokenizer.sets(vocab))

    async def codes(
        self, samples: Float32Array, ids: list[int], words: list[int], abort: CallAbort, blame: str = "text"
    ) -> Int64Array:
        """Codes `[S, vq_dim]` of the words spoken in 16 kHz `samples`; errors of the words name the field `blame`."""
        loaded = self._loaded

        def tokenize() -> Int64Array:
            asr_tokens(loaded.model, loaded.processor, ids, words)
            self.work["audio_tower"] += 1
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
            raise _blamed(error, blame) from None

    async def voice(self, samples: Float32Array, abort: CallAbort) -> Float32Array:
        """Speaker embedding of 16 kHz `samples`."""
        padded = np.pad(samples, (0, max(0, _MIN_SPEAKER_SAMPLES - len(samples))))
        encoder = self._loaded.processor.speaker_encoder
        self.work["speaker_encoder"] += 1
        return await self._model_thread.run(lambda: encoder.embed([padded]), abort)

    async def segment(self, given: SegmentInput, where: str, abort: CallAbort) -> TASTESegment:
        """A segment in token form, whatever form it came in; errors name fields below `where`."""
        (segment,) = await self._in_tokens([_Fragment(given, where)], where, abort)
        return segment

    async def segments(self, given: Sequence[SegmentInput], abort: CallAbort) -> list[TASTESegment]:
        """The segments of a conversation in token form; errors name fields of `segments`."""
        fragments = [_Fragment(one, f"segments[{index}]") for index, one in enumerate(given)]
        return await self._in_tokens(fragments, "segments", abort)

    async def _in_tokens(self, fragments: list[_Fragment], where: str, abort: CallAbort) -> list[TASTESegment]:
        """Everything that can be refused without work of the model is refused before there is any."""
        for fragment in fragments:
            try:
                await self._model_thread.run(partial(self._spell, fragment), abort)
            except InvalidInputError as error:
                raise error.at(fragment.where) from None
        self._check_length(fragments, where)
        for fragment in fragments:
            try:
                await self._recognise(fragment, abort)
            except InvalidInputError as error:
                raise error.at(fragment.where) from None
        self._check_length(fragments, where)
        for fragment in fragments:
            if fragment.is_heard and fragment.samples is not None:
                blame = f"{fragment.where}.{fragment.spoken_field}"
                fragment.codes = await self.codes(fragment.samples, fragment.ids, fragment.word_ids, abort, blame)
        return [fragment.finished() for fragment in fragments]

    def _check_length(self, fragments: Iterable[_Fragment], where: str) -> None:
        total = sum(len(fragment.ids) for fragment in fragments)
        if total > self._max_text_tokens:
            raise InvalidInputError(
                where, f"amounts to {total} text tokens; at most {self._max_text_tokens} are allowed"
            )

    def _spell(self, fragment: _Fragment) -> None:
        """Text ids, as far as they can be told without listening; runs on the model thread, where the tokenizer is."""
        given = fragment.given
        if given.words is not None:
            fragment.ids, fragment.codes = self._spell_words(given.words)
        elif given.text_ids is not None:
            fragment.ids, fragment.word_ids = self.check_ids(given.text_ids)
            fragment.codes = given.taste_ids if given.modality == "audio" else None
        elif given.audio is None:
            if given.text is None:
                raise InvalidInputError("", "has neither text, words, tokens nor audio")
            fragment.ids = self._loaded.processor.text_tokenizer.encode(given.text)
        elif given.text is not None:
            self._spell_speech(fragment, given.text)

    def _spell_words(self, words: Sequence[SpokenWord]) -> tuple[list[int], Int64Array]:
        """Ids of words, and their codes: a word's at its first id, -1 at all others."""
        tokenizer = self._loaded.processor.text_tokenizer
        ids: list[int] = []
        starts: list[int] = []
        for index, word in enumerate(words):
            own = written_word_ids(word.text, () if word.text_ids is None else word.text_ids.tolist(), tokenizer)
            if not own:
                raise InvalidInputError(
                    f"words.words[{index}].text", f"{word.text[:40]!r} spells nothing in the model's tokenizer"
                )
            starts.append(len(ids))
            ids += own
        codes = np.full((len(ids), self._loaded.info.vq_dim), -1, np.int64)
        codes[starts] = np.stack([word.taste_ids for word in words])
        return ids, codes

    def _spell_speech(self, fragment: _Fragment, text: str) -> None:
        try:
            fragment.ids, fragment.word_ids = self.words(text)
            if fragment.is_heard:
                asr_tokens(self._loaded.model, self._loaded.processor, fragment.ids, fragment.word_ids)
        except InvalidInputError as error:
            raise _blamed(error, fragment.spoken_field) from None

    async def _recognise(self, fragment: _Fragment, abort: CallAbort) -> None:
        """Samples of a fragment that is audio, and what is said in them where the request does not tell."""
        if fragment.given.audio is None:
            return
        fragment.samples = await self.at_model_rate(fragment.given.audio, abort)
        if not fragment.is_spelled:
            text = await self.transcribe(fragment.samples, abort)
            await self._model_thread.run(partial(self._spell_speech, fragment, text), abort)


def _blamed(error: InvalidInputError, blame: str) -> InvalidInputError:
    """`error`, with `blame` for the field when something is wrong with a text or its ids."""
    return InvalidInputError(blame, error.description) if error.field in ("text", "text_ids") else error
