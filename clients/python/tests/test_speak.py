"""Answers that are spoken while they are generated."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_server import FakeServicer

from taste.v1 import taste_pb2
from taste_grpc_client import CallCancelledError, InvalidArgumentError, ServerError, text_segment

HISTORY = [text_segment("hi")]


def test_an_answer_is_spoken_and_kept(client: Any, servicer: FakeServicer) -> None:
    told: list[taste_pb2.StreamingResult] = []
    options = {"sample_rate_hz": 24000, "encoding": "float32le", "text_top_p": 0.5}
    phrases = {"max_chunk_words": 3, "look_ahead_words": 2}
    stream = client.speak(HISTORY, speaker=[1.0, 0.0], on_result=told.append, seed=3, **options, **phrases)
    chunks = list(stream)
    assert [chunk.audio for chunk in chunks] == [b"w0", b"w1", b"w2"]
    assert [chunk.format.sample_rate_hz for chunk in chunks] == [24000] * 3
    assert [result.segment.tokens.text for result in stream.results] == ["w0", "w1", "w2"]
    assert told == stream.results
    generate, config = calls(servicer)
    assert (generate.seed, generate.text_top_p, config.seed) == (3, 0.5, 3)
    assert {name: getattr(config, name) for name in phrases} == phrases
    assert generate.emit_policy.WhichOneof("policy") == "sentence_end"
    assert list(config.speaker_embedding.values) == [1.0, 0.0]


def calls(servicer: FakeServicer) -> tuple[taste_pb2.GenerateRequest, taste_pb2.DetokenizeConfig]:
    (generate,) = (each for each in servicer.received if isinstance(each, taste_pb2.GenerateRequest))
    config = next(each.config for each in servicer.received if isinstance(each, taste_pb2.DetokenizeRequest))
    return generate, config


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"speaker": b"RIFF....WAVE"}, "reference"), ({"resume_state": b"state"}, None)],
)
def test_voices(client: Any, servicer: FakeServicer, options: dict[str, Any], kind: str | None) -> None:
    assert len(list(client.speak(HISTORY, seed=1, emit=4, **options))) == 1
    generate, config = calls(servicer)
    assert generate.emit_policy.every_words == 4
    assert config.WhichOneof("speaker") == kind
    assert config.resume_state == options.get("resume_state", b"")


def test_a_model_that_does_not_speak_leaves_the_stream_empty(client: Any) -> None:
    stream = client.speak(HISTORY, speaker=[1.0], conversation_format="silent")
    assert list(stream) == []
    assert [result.is_complete for result in stream.results] == [True]


def test_a_failing_answer_ends_the_speech(client: Any, servicer: FakeServicer) -> None:
    stream = client.speak(HISTORY, speaker=[1.0], seed=9, conversation_format="fails")
    with pytest.raises(ServerError, match="the answer failed"):
        list(stream)
    assert list(stream) == []
    assert len(stream.results) == 2
    assert servicer.ended["Detokenize"].wait(10)


def test_failing_speech_ends_the_answer(client: Any, servicer: FakeServicer) -> None:
    # for ever, were it not for the speech: the servicer refuses what carries this text
    servicer.bad = "w1"
    stream = client.speak(HISTORY, speaker=[1.0], seed=0)
    with pytest.raises(InvalidArgumentError, match="segment: is bad"):
        list(stream)
    assert list(stream) == []
    assert servicer.ended["Generate"].wait(10)
    assert servicer.ended["Detokenize"].wait(10)


def test_what_the_callback_raises_reaches_the_reader(client: Any, servicer: FakeServicer) -> None:
    def refuse(result: taste_pb2.StreamingResult) -> None:
        raise LookupError(f"result {result.index}")

    with pytest.raises(LookupError, match="result 0"):
        list(client.speak(HISTORY, speaker=[1.0], on_result=refuse))
    assert servicer.ended["Generate"].wait(10)
    # Detokenize may have been cancelled before it arrived.
    assert all(servicer.ended[method].wait(10) for method in servicer.attempts)


def test_cancel_ends_both_calls(client: Any, servicer: FakeServicer) -> None:
    stream = client.speak(HISTORY, speaker=[1.0])
    next(stream)
    stream.cancel()
    with pytest.raises(CallCancelledError):
        list(stream)
    assert list(stream) == []
    assert servicer.ended["Generate"].wait(10)
    assert servicer.ended["Detokenize"].wait(10)


def test_what_is_wrong_is_raised_before_a_call_is_made(client: Any, servicer: FakeServicer) -> None:
    with pytest.raises(ValueError, match="encoding: 'mp3' is none of"):
        client.speak(HISTORY, speaker=[1.0], encoding="mp3")
    with pytest.raises(TypeError, match="segments: a Segment was expected"):
        client.speak(["hi"], speaker=[1.0])
    with pytest.raises(FileNotFoundError):
        client.speak(HISTORY, speaker="absent.wav")
    assert servicer.attempts == []


def test_the_reader_sets_the_pace(client: Any, servicer: FakeServicer) -> None:
    """An answer that is not listened to is not generated on and on."""
    servicer.padding = "." * 10_000
    told = threading.Semaphore(0)
    with client.speak(HISTORY, speaker=[1.0], on_result=lambda result: told.release()) as stream:
        next(stream)
        taken = 0
        while told.acquire(timeout=1.0):
            taken += 1
            assert taken < 10_000, "results are taken without end"
    assert taken > 1
