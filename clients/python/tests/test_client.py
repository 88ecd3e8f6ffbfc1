from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from echo_server import EchoServicer

from taste.v1 import common_pb2, taste_pb2
from taste_grpc_client import (
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    ServerError,
    TasteClient,
    TasteClientError,
    UnavailableError,
    text_segment,
    token_segment,
)


@pytest.fixture
def client(target: str) -> Iterator[TasteClient]:
    with TasteClient(target) as opened:
        yield opened


def test_unary_calls(client: TasteClient, servicer: EchoServicer) -> None:
    assert client.model_info().model_id == "echo"
    response = client.tokenize(b"\x01\x00" * 400, text_ids=[5, 6], sample_rate_hz=16000)
    assert list(response.text_ids) == [5, 6]
    assert not servicer.received[0].HasField("text")
    assert servicer.received[0].audio.format.sample_rate_hz == 16000
    segment = token_segment(response, "assistant")
    assert segment.role == common_pb2.ROLE_ASSISTANT
    assert list(segment.tokens.text_ids) == [5, 6]


def test_generate_streams_and_sends_only_what_was_given(client: TasteClient, servicer: EchoServicer) -> None:
    results = list(client.generate([text_segment("hi")], seed=3, emit=2, text_top_p=0.0))
    assert [result.segment.tokens.text for result in results] == ["w0", "w1", "w2"]
    assert [result.is_complete for result in results] == [False, False, True]
    request: taste_pb2.GenerateRequest = servicer.received[0]
    assert request.emit_policy.every_words == 2
    assert request.HasField("text_top_p")
    assert request.text_top_p == 0.0
    assert not request.HasField("taste_top_p")
    assert not request.HasField("eos_id")


@pytest.mark.parametrize(("emit", "field"), [("word", "every_word"), ("sentence", "sentence_end")])
def test_emit_policies(client: TasteClient, servicer: EchoServicer, emit: str, field: str) -> None:
    list(client.generate([text_segment("hi")], seed=1, emit=emit))  # type: ignore[arg-type]
    assert servicer.received[0].emit_policy.WhichOneof("policy") == field


def test_generated_segments_can_be_spoken_while_they_come(client: TasteClient, servicer: EchoServicer) -> None:
    segments = (text_segment(result.segment.tokens.text) for result in client.generate([text_segment("x")], seed=3))
    chunks = list(client.detokenize(segments, speaker=[1.0, 0.0], sample_rate_hz=24000, encoding="float32le", seed=9))
    assert [chunk.audio for chunk in chunks] == [b"w0", b"w1", b"w2"]
    assert [chunk.format.sample_rate_hz for chunk in chunks] == [24000] * 3
    # the two calls run side by side, so either may arrive first
    config = next(each.config for each in servicer.received if isinstance(each, taste_pb2.DetokenizeRequest))
    assert list(config.speaker_embedding.values) == [1.0, 0.0]
    assert config.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
    assert (config.out_sample_rate_hz, config.seed) == (24000, 9)


def test_speakers(client: TasteClient, servicer: EchoServicer) -> None:
    for speaker in (None, [], b"RIFF....WAVE", common_pb2.SpeakerEmbedding(values=[2.0])):
        list(client.detokenize([], speaker=speaker))
    kinds = [request.config.WhichOneof("speaker") for request in servicer.received]
    assert kinds == [None, "speaker_embedding", "reference", "speaker_embedding"]


def test_leaving_the_block_ends_the_call_on_the_server(client: TasteClient, servicer: EchoServicer) -> None:
    with client.generate([text_segment("hi")]) as stream:
        assert next(stream).index == 0
        assert not servicer.cancelled.is_set()
    assert servicer.cancelled.wait(10)
    with pytest.raises(CallCancelledError):
        list(stream)


def test_what_the_segments_raise_reaches_the_reader(client: TasteClient, servicer: EchoServicer) -> None:
    def segments() -> Iterator[common_pb2.Segment]:
        yield text_segment("one")
        assert servicer.speaking.wait(10)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(client.detokenize(segments(), speaker=[1.0]))
    assert servicer.cancelled.wait(10)


def test_errors_carry_what_the_server_said(client: TasteClient) -> None:
    with pytest.raises(InvalidArgumentError, match="text: is empty") as caught:
        client.tokenize(b"RIFF....WAVE", text="")
    assert isinstance(caught.value, ValueError)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "ERROR_REASON_INVALID_FIELD"
    assert caught.value.violations == (FieldViolation("text", "is empty"),)
    assert caught.value.retry_after_s == 1.5
    assert caught.value.request_id == "r-7"
    with pytest.raises(ServerError, match="broken") as garbled:
        client.tokenize(b"RIFF....WAVE", text="garbled")
    assert (garbled.value.reason, garbled.value.violations) == ("", ())


def test_deadline_and_absent_server(client: TasteClient) -> None:
    with pytest.raises(DeadlineExceededError) as late:
        client.model_info(timeout_s=0.2)
    assert isinstance(late.value, TimeoutError)
    with TasteClient("127.0.0.1:1") as nowhere, pytest.raises(UnavailableError) as absent:
        nowhere.model_info(timeout_s=30)
    assert isinstance(absent.value, TasteClientError)


def test_a_channel_that_was_given_stays_open(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        for _ in range(2):
            with TasteClient(channel=channel) as client:
                assert client.model_info().vq_dim == 4


def test_importing_the_client_needs_neither_torch_nor_numpy_nor_the_server() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'taste_grpc', 'soundfile']));"
        "import taste_grpc_client as c; assert all(hasattr(c, name) for name in c.__all__);"
        "print(len(c.text_segment('x').text))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("1", "")
