"""The calls of both clients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fake_server import FakeServicer

from taste.v1 import common_pb2, taste_pb2
from taste_grpc_client import (
    AuthenticationError,
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    IdleError,
    InvalidArgumentError,
    ModelError,
    OverloadedError,
    ServerError,
    TasteClientError,
    UnavailableError,
    UnimplementedError,
    text_segment,
    token_segment,
)

FILE = b"RIFF....WAVE"


def test_unary_calls(client: Any, servicer: FakeServicer) -> None:
    assert client.model_info().model_id == "fake"
    response = client.tokenize(b"\x01\x00" * 400, text_ids=[5, 6], sample_rate_hz=16000)
    assert list(response.text_ids) == [5, 6]
    assert not servicer.received[0].HasField("text")
    assert servicer.received[0].audio.format.sample_rate_hz == 16000
    segment = token_segment(response, "assistant")
    assert segment.role == common_pb2.ROLE_ASSISTANT
    assert list(segment.tokens.text_ids) == [5, 6]


def test_generate_streams_and_sends_only_what_was_given(client: Any, servicer: FakeServicer) -> None:
    results = list(client.generate(text_segment("hi"), seed=3, emit=2, text_top_p=0.0))
    assert [result.segment.tokens.text for result in results] == ["w0", "w1", "w2"]
    assert [result.is_complete for result in results] == [False, False, True]
    request: taste_pb2.GenerateRequest = servicer.received[0]
    assert [segment.text for segment in request.segments] == ["hi"]
    assert request.emit_policy.every_words == 2
    assert request.HasField("text_top_p")
    assert request.text_top_p == 0.0
    assert not request.HasField("taste_top_p")
    assert not request.HasField("eos_id")


@pytest.mark.parametrize(("emit", "field"), [("word", "every_word"), ("sentence", "sentence_end")])
def test_emit_policies(client: Any, servicer: FakeServicer, emit: str, field: str) -> None:
    list(client.generate([text_segment("hi")], seed=1, emit=emit))
    assert servicer.received[0].emit_policy.WhichOneof("policy") == field


def test_segments_are_spoken_as_they_come(client: Any, servicer: FakeServicer) -> None:
    options = {"sample_rate_hz": 24000, "encoding": "float32le", "seed": 9, "max_chunk_words": 4, "look_ahead_words": 0}
    chunks = list(client.detokenize(iter([text_segment("a"), text_segment("b")]), speaker=[1.0, 0.0], **options))
    assert [chunk.audio for chunk in chunks] == [b"a", b"b"]
    assert [chunk.format.sample_rate_hz for chunk in chunks] == [24000, 24000]
    config = servicer.received[0].config
    assert list(config.speaker_embedding.values) == [1.0, 0.0]
    assert config.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
    assert (config.out_sample_rate_hz, config.seed) == (24000, 9)
    assert (config.max_chunk_words, config.look_ahead_words, config.HasField("look_ahead_words")) == (4, 0, True)
    assert [chunk.audio for chunk in client.detokenize(text_segment("alone"), speaker=[1.0])] == [b"alone"]


def test_speakers(client: Any, servicer: FakeServicer) -> None:
    for speaker in (None, [], FILE, common_pb2.SpeakerEmbedding(values=[2.0])):
        list(client.detokenize([], speaker=speaker))
    kinds = [request.config.WhichOneof("speaker") for request in servicer.received]
    assert kinds == [None, "speaker_embedding", "reference", "speaker_embedding"]


@pytest.mark.parametrize("method", ["generate", "detokenize", "speak"])
def test_leaving_the_block_ends_the_call_on_the_server(client: Any, servicer: FakeServicer, method: str) -> None:
    segments = endless() if method == "detokenize" else [text_segment("hi")]
    options = {} if method == "generate" else {"speaker": [1.0]}
    with getattr(client, method)(segments, **options) as stream:
        assert next(stream).index == 0
        assert not any(event.is_set() for event in servicer.ended.values())
    for name in {"generate": ["Generate"], "detokenize": ["Detokenize"]}.get(method, servicer.ended):
        assert servicer.ended[name].wait(10)
    with pytest.raises(CallCancelledError):
        list(stream)
    assert list(stream) == []


def endless() -> Iterator[common_pb2.Segment]:
    while True:
        yield text_segment("more")


def test_closing_the_client_ends_its_streams(client: Any, servicer: FakeServicer) -> None:
    stream = client.generate([text_segment("hi")])
    assert next(stream).index == 0
    client.close()
    with pytest.raises(CallCancelledError):
        list(stream)
    assert servicer.ended["Generate"].wait(10)


def test_what_the_segments_raise_reaches_the_reader_once(client: Any, servicer: FakeServicer) -> None:
    def segments() -> Iterator[common_pb2.Segment]:
        yield text_segment("one")
        assert servicer.speaking.wait(10)
        raise LookupError("no more")

    stream = client.detokenize(segments(), speaker=[1.0])
    with pytest.raises(LookupError, match="no more"):
        list(stream)
    assert list(stream) == []
    assert servicer.ended["Detokenize"].wait(10)


@pytest.mark.parametrize("wrong", ["text", 7])
def test_what_is_no_segment_is_refused(client: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match="segments: a Segment"):
        list(client.detokenize([wrong], speaker=[1.0]))
    with pytest.raises(TypeError, match="segments: a Segment was expected"):
        client.generate([wrong])


@pytest.mark.parametrize("method", ["generate", "speak"])
def test_an_option_that_there_is_not_is_named(client: Any, servicer: FakeServicer, method: str) -> None:
    options = {"generate": {}, "speak": {"speaker": [1.0]}}[method]
    with pytest.raises(TypeError, match=r"max_word: there is no such option; there are text_top_p, .*extra_words"):
        getattr(client, method)([text_segment("hi")], max_word=3, **options)
    assert servicer.received == []


def test_errors_carry_what_the_server_said(client: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="text: is empty") as caught:
        client.tokenize(FILE, text="bad")
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_INVALID_FIELD"
    assert error.field == "text"
    assert error.violations == (FieldViolation("text", "is empty"), FieldViolation("audio", "is empty too"))
    assert error.retry_after_s == 1.5
    assert error.request_id == "r-7"
    with pytest.raises(InvalidArgumentError, match="segment: is bad") as spoken:
        list(client.detokenize([text_segment("bad")], speaker=[1.0]))
    assert spoken.value.request_id == "r-7"


def test_details_that_cannot_be_read_cost_nothing_else(client: Any) -> None:
    with pytest.raises(ServerError, match="broken") as garbled:
        client.tokenize(FILE, text="garbled")
    assert (garbled.value.reason, garbled.value.violations, garbled.value.field) == ("", (), "")
    assert garbled.value.request_id == "r-8"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_LACKS_CAPABILITY", ModelError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING", UnavailableError),
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", AuthenticationError),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", AuthenticationError),
        (grpc.StatusCode.CANCELLED, "CANCELLED", CallCancelledError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", DeadlineExceededError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE", IdleError),
        (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", UnimplementedError),
        (grpc.StatusCode.INTERNAL, "INTERNAL", ServerError),
        (grpc.StatusCode.DATA_LOSS, "INTERNAL", ServerError),
    ],
)
def test_each_ending_has_its_exception(
    make_client: Any, target: str, code: grpc.StatusCode, reason: str, kind: type[TasteClientError]
) -> None:
    client = make_client(target, retry=None)
    with pytest.raises(TasteClientError, match="as asked") as caught:
        client.tokenize(FILE, text=f"status {code.value[0]} {reason}")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, f"ERROR_REASON_{reason}")


def test_deadlines(make_client: Any, target: str) -> None:
    client = make_client(target, timeout_s=0.2)
    with pytest.raises(DeadlineExceededError, match="longer than its timeout_s") as late:
        client.model_info()
    assert isinstance(late.value, TimeoutError)
    assert client.model_info(timeout_s=math.inf).vq_dim == 2
    with pytest.raises(DeadlineExceededError):
        list(make_client(target).generate([text_segment("for ever")], timeout_s=0.2))
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="timeout_s: a number of seconds"):
            client.model_info(timeout_s=wrong)
        with pytest.raises(ValueError, match="timeout_s: a number of seconds"):
            make_client(target, timeout_s=wrong)
