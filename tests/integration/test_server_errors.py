"""Values of megabytes in every field that an error might quote, and errors that nobody foresaw."""

from __future__ import annotations

import logging

import grpc
import pytest
from google.protobuf.message import Message

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.errors import InvalidInputError
from tests.support import messages
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server
from tests.support.recording_engine import RecordingEngine

HUGE = 15_000_000
TEXTS = {"letters": "x" * HUGE, "line feeds": "a\n" * (HUGE // 2), "characters of four bytes": "🎉" * (HUGE // 4)}


def tokens(text: str) -> common_pb2.Segment:
    segment = messages.token_segment()
    segment.tokens.text = text
    return segment


def words(text: str) -> common_pb2.Segment:
    spoken = common_pb2.SpokenWord(text=text)
    return common_pb2.Segment(words=common_pb2.SegmentWords(words=[spoken]))


REQUESTS = {
    "text of Tokenize": lambda text: messages.tokenize_request(text),
    "text of a segment": lambda text: taste_pb2.GenerateRequest(segments=[messages.text_segment(text)]),
    "text beside tokens": lambda text: taste_pb2.GenerateRequest(segments=[tokens(text)]),
    "a word": lambda text: taste_pb2.GenerateRequest(segments=[words(text)]),
    "conversation format": lambda text: taste_pb2.GenerateRequest(
        segments=[messages.text_segment()], conversation_format=text
    ),
    "data of a clip": lambda text: taste_pb2.TokenizeRequest(
        audio=common_pb2.AudioClip(
            format=common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_FLAC), data=text.encode()[:HUGE]
        )
    ),
    "resume state": lambda text: taste_pb2.DetokenizeRequest(
        config=taste_pb2.DetokenizeConfig(resume_state=text.encode()[:HUGE])
    ),
}


async def ask(live: Live, request: Message) -> None:
    if isinstance(request, taste_pb2.TokenizeRequest):
        await live.stub.Tokenize(request)
    elif isinstance(request, taste_pb2.GenerateRequest):
        await live.stub.Generate(request).read()
    else:
        await live.stub.Detokenize(iter([request])).read()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("make", REQUESTS.values(), ids=REQUESTS)
async def test_a_refusal_does_not_repeat_what_it_refuses(make, text):
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(live, make(text))
        failure = read_failure(refused.value)
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.fields[0]
        assert failure.trailer_bytes < 8192
        await live.stub.Tokenize(messages.tokenize_request())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_an_engine_that_quotes_everything_does_no_harm(text):
    engine = RecordingEngine()
    engine.failure = InvalidInputError(text, text)
    async with live_server(engine) as live:
        for request in (messages.tokenize_request(), messages.generate_request()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(live, request)
            failure = read_failure(refused.value)
            assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
            assert failure.trailer_bytes < 8192


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), KeyError("secret"), MemoryError("secret"), OSError("secret")]
)
async def test_what_an_engine_breaks_at_stays_in_the_log(error, caplog):
    engine = RecordingEngine()
    engine.failure = error
    async with live_server(engine) as live:
        for request in (messages.tokenize_request(), messages.generate_request()):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await ask(live, request)
            failure = read_failure(failed.value)
            assert failure.code is grpc.StatusCode.INTERNAL
            assert failure.request_id in failure.message
            told = repr((failed.value.details(), failed.value.trailing_metadata(), failed.value.debug_error_string()))
            assert "secret" not in told
            assert "Traceback" not in told
        engine.failure = None
        await live.stub.Tokenize(messages.tokenize_request())
    traces = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in traces if record.exc_info] == [str(error)] * 2
