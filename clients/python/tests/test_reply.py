"""`reply` of both clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from both_clients import MakeClient
from fake_server import FakeServicer, Refusals

from taste.v1 import common_pb2, dialogue_pb2
from taste_grpc_client import (
    AsyncTasteClient,
    CallCancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    OverloadedError,
    TasteClient,
)

FILE = b"RIFF....WAVE"


def test_chunks_come_and_only_what_was_given_is_sent(client: Any, servicer: FakeServicer) -> None:
    chunks = list(client.reply(FILE, chunk_id="q-1", max_new_tokens=3, temperature=0.0))
    assert [chunk.text for chunk in chunks] == [" w0", " w1", " w2"]
    assert [chunk.is_final for chunk in chunks] == [False, False, True]
    assert {chunk.chunk_id for chunk in chunks} == {"q-1"}
    request: dialogue_pb2.ReplyRequest = servicer.received[0]
    assert request.audio.data == FILE
    assert request.audio.format.encoding == common_pb2.AUDIO_ENCODING_WAV
    given = {"audio", "chunk_id", "max_new_tokens", "temperature"}
    assert {field.name for field, _ in request.ListFields()} == given
    assert request.HasField("temperature")


def test_every_option_is_sent(client: Any, servicer: FakeServicer) -> None:
    options: dict[str, Any] = {
        "chunk_id": "q",
        "mode": "conversation",
        "system_prompt": "Be brief.",
        "max_new_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.25,
        "chunk_size_words": 2,
        "timeout_ms": 3,
        "chunk_timeout_ms": 4,
    }
    list(client.reply(FILE, **options))
    request = servicer.received[0]
    assert {field.name: value for field, value in request.ListFields() if field.name != "audio"} == options
    assert options.keys() | {"audio"} == {field.name for field in request.DESCRIPTOR.fields}
    with pytest.raises(ValueError, match="words"):
        client.reply(FILE, words=3)


def test_samples_and_files_are_questions_too(client: Any, servicer: FakeServicer, tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(FILE)
    list(client.reply(path, max_new_tokens=1))
    list(client.reply([0, 1, 2], sample_rate_hz=8000, max_new_tokens=1))
    file, samples = (request.audio for request in servicer.received)
    assert file.data == FILE
    assert (samples.format.sample_rate_hz, samples.data) == (8000, b"\0\0\1\0\2\0")
    with pytest.raises(OSError, match="none"):
        client.reply(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="sample_rate_hz"):
        client.reply([0, 1, 2])


def test_a_failure_is_a_response_and_no_exception(client: Any) -> None:
    (response,) = client.reply(FILE, mode="transcription")
    assert (response.success, response.text, response.is_final) == (False, "", True)
    assert response.error == "no speech was heard"


def test_what_is_not_allowed_is_raised(client: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="system_prompt: is bad"):
        list(client.reply(FILE, system_prompt="bad"))


def test_leaving_the_block_ends_the_call_on_the_server(client: Any, servicer: FakeServicer) -> None:
    with client.reply(FILE) as stream:
        assert next(stream).chunk_index == 0
        assert not servicer.reply_ended.is_set()
    assert servicer.reply_ended.wait(10)
    with pytest.raises(CallCancelledError):
        list(stream)
    assert list(stream) == []


def test_a_deadline_ends_it(client: Any, servicer: FakeServicer) -> None:
    with pytest.raises(DeadlineExceededError):
        list(client.reply(FILE, timeout_s=0.2))
    assert servicer.reply_ended.wait(10)


def test_a_call_that_was_refused_is_made_again(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=2)
    assert len(list(client.reply(FILE, max_new_tokens=2))) == 2
    assert servicer.attempts == ["Reply"] * 3
    assert len(servicer.received) == 1


def test_one_of_which_something_has_arrived_is_not(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals = Refusals(times=1, after=1)
    stream = client.reply(FILE, max_new_tokens=2)
    assert next(stream).text == " w0"
    with pytest.raises(OverloadedError):
        list(stream)
    assert servicer.attempts == ["Reply"]


def test_the_token_goes_with_it(make_client: MakeClient, target: str, servicer: FakeServicer) -> None:
    list(make_client(target, token="secret-of-mine").reply(FILE, max_new_tokens=1))
    assert servicer.metadata[0]["authorization"] == "Bearer secret-of-mine"


def test_it_is_described() -> None:
    assert "is_final" in (TasteClient.reply.__doc__ or "")
    assert "TasteClient.reply" in (AsyncTasteClient.reply.__doc__ or "")
