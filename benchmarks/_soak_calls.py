"""The calls of the soak test: what is asked for, how each call ends, and what it has to bring."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from google.protobuf.message import Message

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import ModelInfo

SERVICE = "/taste.v1.TasteService/"
METHODS = ("Generate", "Detokenize", "Tokenize")
RESPONSES: dict[str, Callable[[bytes], Any]] = {
    "Generate": taste_pb2.StreamingResult.FromString,
    "Detokenize": taste_pb2.DetokenizeResponse.FromString,
    "Tokenize": taste_pb2.TokenizeResponse.FromString,
}
VARIANTS = {"Generate": 10, "Detokenize": 6, "Tokenize": 4}
_SHARES = {"Generate": 0.55, "Detokenize": 0.25, "Tokenize": 0.2}
_CANCELLED, _SLOW, _MALFORMED = 1 / 3, 1 / 10, 1 / 33
_TEXTS = (
    "good morning, little robot.",
    "what shall we do today?",
    "tell me about the sea",
    "and then nothing happened",
)


class Fate(Enum):
    """How a client treats its call."""

    COMPLETE = "reads it to its end"
    SLOW = "reads it to its end, with pauses"
    CANCEL = "cancels it"
    MALFORMED = "asks for what cannot be"


@dataclass(frozen=True)
class Request:
    """One call's request messages; `variant` is None for those that must be refused."""

    method: str
    variant: int | None
    messages: tuple[bytes, ...]


@dataclass(frozen=True)
class Planned:
    """A call to make. `moment` in [0, 1) says when it is cancelled, by messages read or by the clock."""

    request: Request
    fate: Fate
    moment: float
    by_messages: bool


def plan(count: int, requests: Sequence[Request], refused: Sequence[Request], seed: int) -> list[Planned]:
    """`count` calls in random order: exactly the shares of methods and fates, whatever the seed."""
    rng = random.Random(seed)
    fates = [Fate.CANCEL] * round(count * _CANCELLED) + [Fate.SLOW] * round(count * _SLOW)
    fates += [Fate.MALFORMED] * max(1, round(count * _MALFORMED))
    fates += [Fate.COMPLETE] * (count - len(fates))
    rng.shuffle(fates)
    calls = []
    for fate in fates:
        streams = [request for request in requests if request.method != "Tokenize"]
        if fate is Fate.MALFORMED:
            request = rng.choice(refused)
        elif fate is Fate.SLOW:
            request = rng.choice(streams)
        else:
            method = rng.choices(METHODS, [_SHARES[method] for method in METHODS])[0]
            request = rng.choice([request for request in requests if request.method == method])
        calls.append(Planned(request, fate, rng.random(), rng.random() < 0.5))
    return calls


def good_requests(info: ModelInfo) -> list[Request]:
    """Every request that is made, with a seed of its own."""
    makers: dict[str, Callable[[ModelInfo, int], list[Message]]] = {
        "Generate": _generate,
        "Detokenize": _detokenize,
        "Tokenize": _tokenize,
    }
    return [
        Request(method, variant, tuple(message.SerializeToString() for message in makers[method](info, variant)))
        for method in METHODS
        for variant in range(VARIANTS[method])
    ]


def bad_requests(info: ModelInfo) -> list[Request]:
    """Requests that must end in INVALID_ARGUMENT."""
    (generate,) = _generate(info, 0)
    assert isinstance(generate, taste_pb2.GenerateRequest)
    generate.text_top_p = 2.0
    (tokenize,) = _tokenize(info, 0)
    assert isinstance(tokenize, taste_pb2.TokenizeRequest)
    tokenize.audio.data = tokenize.audio.data[:-1]
    config, segment, *_ = _detokenize(info, 0)
    state = taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(resume_state=b"x" * 99))
    written = taste_pb2.DetokenizeRequest(segment=_text("this has no codes"))
    cases: list[tuple[str, Sequence[Message]]] = [
        ("Generate", [generate]),
        ("Tokenize", [tokenize]),
        ("Detokenize", [segment]),  # no config
        ("Detokenize", [state, segment]),
        ("Detokenize", [config, segment, written]),
    ]
    refused = [Request(method, None, tuple(m.SerializeToString() for m in given)) for method, given in cases]
    return [*refused, *(Request(method, None, (b"\xff\xff",)) for method in METHODS)]


def _text(text: str) -> common_pb2.Segment:
    return common_pb2.Segment(role=common_pb2.ROLE_USER, modality=common_pb2.MODALITY_TEXT, text=text)


def _generate(info: ModelInfo, variant: int) -> list[Message]:
    """Short and long prompts, in every format the model has, with answers of different lengths."""
    history = " ".join(_TEXTS[(variant + k) % len(_TEXTS)] for k in range(40 if variant % 5 == 4 else 1))
    return [
        taste_pb2.GenerateRequest(
            segments=[_text(history)],
            seed=variant,
            text_top_p=0.9,
            text_temperature=1.0,
            max_length=(8, 20, 45, 90)[variant % 4],
            extra_words=64,
            eos_id=0 if variant % 2 else None,
            conversation_format=info.conversation_formats[variant % len(info.conversation_formats)],
        )
    ]


def _detokenize(info: ModelInfo, variant: int) -> list[Message]:
    """One to three segments of several phrases, at several rates, with and without words shown ahead."""
    rng = np.random.default_rng(variant)
    config = taste_pb2.DetokenizeConfig(
        speaker_embedding=common_pb2.SpeakerEmbedding(values=rng.standard_normal(info.speaker_embedding_dim)),
        seed=variant,
        out_sample_rate_hz=(16_000, 24_000, 8_000)[variant % 3],
        look_ahead_words=2 if variant % 4 == 3 else 0,
    )
    messages: list[Message] = [taste_pb2.DetokenizeRequest(config=config)]
    for number in range((1, 2, 1, 3)[variant % 4]):
        words = _TEXTS[(variant + number) % len(_TEXTS)].split()
        messages.append(taste_pb2.DetokenizeRequest(segment=_spoken(words, info, rng)))
    return messages


def _spoken(words: Sequence[str], info: ModelInfo, rng: np.random.Generator) -> common_pb2.Segment:
    def codes() -> common_pb2.TasteTokens:
        ids = rng.integers(0, info.codebook_size, info.vq_dim).tolist()
        return common_pb2.TasteTokens(codes=common_pb2.TasteCodes(vq_dim=info.vq_dim, ids=ids))

    spoken = [common_pb2.SpokenWord(text=word, taste_tokens=codes()) for word in words]
    return common_pb2.Segment(role=common_pb2.ROLE_ASSISTANT, words=common_pb2.SegmentWords(words=spoken))


def _tokenize(info: ModelInfo, variant: int) -> list[Message]:
    """Clips of different lengths and rates, with what is said in them."""
    rate_hz = (16_000, 44_100)[variant % 2]
    samples = np.random.default_rng(variant).standard_normal(rate_hz * (1 + variant)) * 0.1
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=rate_hz, channels=1)
    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    audio = common_pb2.AudioClip(format=form, data=data)
    return [taste_pb2.TokenizeRequest(audio=audio, text=_TEXTS[variant % len(_TEXTS)])]


def content(method: str, answers: Sequence[Any]) -> Any:
    """What of a call's answers must be the same whenever the call is made: all but how long it took.

    Of speech, where one message ends and the next begins depends on when segments arrive; what they hold does not.
    """
    if method == "Detokenize":
        return (
            b"".join(answer.audio for answer in answers),
            [unit for answer in answers for unit in answer.speech_ids],
            [answer.resume_state for answer in answers if answer.is_final],
        )
    kept = []
    for answer in answers:
        copy = type(answer)()
        copy.CopyFrom(answer)
        copy.ClearField("timing")
        kept.append(copy.SerializeToString(deterministic=True))
    return kept
