"""Each RPC against a live server over a recording engine: what passes through, and how."""

from __future__ import annotations

import json
import logging

import grpc
import numpy as np
import pytest

from taste.v1 import common_pb2, dialogue_pb2, dialogue_pb2_grpc, taste_pb2
from taste_grpc.errors import OverloadedError, UnsupportedByModelError
from taste_grpc.observability import JsonFormatter
from taste_grpc.server import taste_service
from tests.support import messages
from tests.support.details import read_failure
from tests.support.live_server import live_server
from tests.support.recording_engine import INFO, RecordingEngine


async def test_model_info_tells_everything():
    async with live_server(RecordingEngine()) as live:
        info = await live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
    assert (info.model_id, info.revision, info.vq_dim, info.codebook_size) == ("recording", "r1", 4, 512)
    assert {part.name: part.trained for part in info.parts} == INFO.parts_trained
    assert {token.name: token.id for token in info.special_tokens} == {"sos": 1}
    assert info.taste_layout == taste_pb2.TASTE_LAYOUT_CODES
    assert info.limits.max_audio_ms == 30_000
    assert info.limits.max_request_bytes == 16 << 20
    assert info.limits.max_idle_ms == 300_000
    unset = [field.name for field in info.DESCRIPTOR.fields if not getattr(info, field.name)]
    assert unset == []
    assert [f.name for f in info.limits.DESCRIPTOR.fields if not getattr(info.limits, f.name)] == []


async def test_limits_are_those_of_the_settings():
    async with live_server(
        RecordingEngine(), limits={"max_segments": 1, "max_audio_ms": 400, "max_idle_ms": 5}
    ) as live:
        info = await live.stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
        assert (info.limits.max_segments, info.limits.max_audio_ms, info.limits.max_idle_ms) == (1, 400, 5)
        two = taste_pb2.GenerateRequest(segments=[messages.text_segment()] * 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Generate(two).read()
        assert read_failure(refused.value).fields == ["segments"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Tokenize(messages.tokenize_request())
        assert read_failure(refused.value).fields == ["audio.data"]


async def test_heavy_requests_are_not_looked_through_on_the_event_loop(monkeypatch):
    """16 MiB hold eight million segments; even one look at each would stop everybody for seconds."""
    looked_through = []
    monkeypatch.setattr(taste_service, "_has_recordings", lambda request: looked_through.append(len(request.segments)))
    async with live_server(RecordingEngine()) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.stub.Generate(taste_pb2.GenerateRequest(segments=[common_pb2.Segment()] * 10_000)).read()
        assert read_failure(refused.value).fields == ["segments"]
        assert await live.stub.Generate(messages.generate_request()).read()
    assert looked_through == [1]


async def test_tokenize_passes_audio_and_text_on():
    async with live_server(RecordingEngine()) as live:
        response = await live.stub.Tokenize(messages.tokenize_request("hello there"))
        (request,) = live.engine.requests
    np.testing.assert_allclose(request.audio.samples, messages.tone(), atol=1e-7)
    assert request.audio.sample_rate_hz == 16_000
    assert (request.text, request.text_ids) == ("hello there", None)
    assert (response.text, list(response.text_ids), list(response.word_ids)) == ("hello there", [5, 6], [0, 1])
    assert list(response.taste_tokens.codes.ids) == list(range(8))
    assert list(response.words) == ["made", "up"]
    assert len(response.speaker_embedding.values) == 192
    assert response.audio_ms == 500
    assert dict(response.timing.stages_ms) == {"audio_tower": 1.5}
    assert response.timing.elapsed_ms > 0


async def test_generate_passes_settings_on_and_unset_ones_keep_their_defaults():
    request = taste_pb2.GenerateRequest(
        segments=[messages.text_segment("hi"), messages.token_segment()],
        text_top_p=0.0,
        eos_id=0,
        seed=2**64 - 1,
        emit_policy=taste_pb2.EmitPolicy(every_words=3),
    )
    async with live_server(RecordingEngine()) as live:
        results = [result async for result in live.stub.Generate(request)]
        (seen,) = live.engine.requests
    assert (seen.text_top_p, seen.eos_id, seen.seed) == (0.0, 0, 2**64 - 1)
    assert (seen.text_temperature, seen.max_length, seen.conversation_format) == (0.5, 512, None)
    assert (seen.emit.every_words, seen.emit.at_sentence_end) == (3, False)
    assert [(s.role, s.modality) for s in seen.segments] == [("user", "text"), ("user", "audio")]
    assert seen.segments[1].taste_ids.shape == (3, 4)
    assert [result.is_complete for result in results] == [False] * 4 + [True]
    assert [result.index for result in results] == list(range(5))
    assert [result.segment.tokens.text for result in results[:4]] == [" word"] * 4
    assert [list(result.segment.tokens.words) for result in results[:4]] == [["word"]] * 4
    assert not results[-1].HasField("segment")
    assert results[-1].completion_reason == taste_pb2.COMPLETION_REASON_SEGMENT_END


async def test_defaults_give_way_to_limits():
    limits = {"max_length": 7, "max_extra_words": 3, "min_sample_rate_hz": 24_000}
    async with live_server(RecordingEngine(), limits=limits) as live:
        await live.stub.Generate(messages.generate_request()).read()
        await live.stub.Detokenize(iter(messages.detokenize_requests())).read()
        generate, config, _ = live.engine.requests
    assert (generate.max_length, generate.extra_words) == (7, 3)
    assert config.out_sample_rate_hz == 24_000


async def test_words_are_passed_on_with_their_codes_and_ids():
    spoken = messages.word_segment(("Hi,", "you"))
    spoken.words.words[0].text_ids[:] = [7, 8]
    spoken.words.words[1].taste_tokens.codes.ids[:] = [4, 3, 2, 1]
    async with live_server(RecordingEngine()) as live:
        await live.stub.Generate(taste_pb2.GenerateRequest(segments=[spoken])).read()
        config = taste_pb2.DetokenizeRequest(config=messages.config())
        await live.stub.Detokenize(iter([config, taste_pb2.DetokenizeRequest(segment=spoken)])).read()
        generated, _, spelled = live.engine.requests
    for segment in (*generated.segments, spelled):
        assert (segment.role, segment.modality, segment.text, segment.text_ids) == ("user", "audio", None, None)
        first, second = segment.words
        assert (first.text, first.text_ids.tolist(), first.taste_ids.tolist()) == ("Hi,", [7, 8], [1, 1, 1, 1])
        assert (second.text, second.text_ids, second.taste_ids.tolist()) == ("you", None, [4, 3, 2, 1])


async def test_results_may_be_sent_back():
    async with live_server(RecordingEngine()) as live:
        results = [result async for result in live.stub.Generate(messages.generate_request())]
        history = taste_pb2.GenerateRequest(segments=[r.segment for r in results if r.HasField("segment")])
        assert len([result async for result in live.stub.Generate(history)]) == 5


async def test_detokenize_states_its_format_once_and_numbers_its_audio():
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Detokenize(iter(messages.detokenize_requests(3)))
        responses = [response async for response in call]
        config, *segments = live.engine.requests
    np.testing.assert_allclose(np.linalg.norm(config.speaker_embedding), 1, atol=1e-6)
    assert (config.out_sample_rate_hz, config.seed) == (None, 1)
    assert len(segments) == 3
    assert [response.HasField("format") for response in responses] == [True, False, False]
    form = responses[0].format
    assert (form.encoding, form.sample_rate_hz, form.channels) == (common_pb2.AUDIO_ENCODING_LINEAR16, 16_000, 1)
    assert [response.first_sample for response in responses] == [0, 1600, 3200]
    assert all(len(response.audio) == 3200 and response.is_final for response in responses)
    assert np.frombuffer(responses[0].audio, "<i2")[0] == 8192
    assert responses[0].resume_state == b"state"


async def test_detokenize_speaks_while_segments_still_arrive():
    requests = messages.detokenize_requests(2)
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Detokenize()
        await call.write(requests[0])
        await call.write(requests[1])
        assert (await call.read()).segment_index == 0
        await call.write(requests[2])
        assert (await call.read()).segment_index == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_float_output_and_another_rate():
    first, *rest = messages.detokenize_requests(1)
    first.config.encoding = common_pb2.AUDIO_ENCODING_FLOAT32LE
    first.config.out_sample_rate_hz = 8000
    async with live_server(RecordingEngine()) as live:
        (response,) = [r async for r in live.stub.Detokenize(iter([first, *rest]))]
    assert response.format.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
    assert response.format.sample_rate_hz == 8000
    np.testing.assert_array_equal(np.frombuffer(response.audio, "<f4"), np.full(1600, 0.25, "<f4"))


async def test_dialogue_service_is_unimplemented():
    async with live_server(RecordingEngine()) as live:
        stub = dialogue_pb2_grpc.DialogueServiceStub(live.channel)
        for call in (stub.Converse(), stub.Reply(dialogue_pb2.ReplyRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            failure = read_failure(refused.value)
            assert failure.code is grpc.StatusCode.UNIMPLEMENTED
            assert (failure.reason, failure.domain) == ("ERROR_REASON_NOT_IMPLEMENTED", "taste-grpc")
            assert failure.request_id


@pytest.mark.parametrize(
    ("error", "code", "reason", "retry_s"),
    [
        (
            OverloadedError("full", retry_after_ms=1500),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "ERROR_REASON_OVERLOADED",
            1.5,
        ),
        (
            UnsupportedByModelError("cannot"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "ERROR_REASON_MODEL_LACKS_CAPABILITY",
            None,
        ),
        (RuntimeError("secret path /etc"), grpc.StatusCode.INTERNAL, "ERROR_REASON_INTERNAL", None),
        (ValueError("secret path /etc"), grpc.StatusCode.INTERNAL, "ERROR_REASON_INTERNAL", None),
    ],
)
async def test_errors_of_the_engine(error, code, reason, retry_s, caplog):
    engine = RecordingEngine()
    engine.failure = error
    async with live_server(engine) as live:
        for call in (
            live.stub.Tokenize(messages.tokenize_request()),
            live.stub.Generate(messages.generate_request()).read(),
            live.stub.Detokenize(iter(messages.detokenize_requests())).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            failure = read_failure(failed.value)
            assert (failure.code, failure.reason, failure.retry_s) == (code, reason, retry_s)
            assert "secret" not in failure.message
            assert len(failure.request_id) == 32
        assert engine.running == 0
        engine.failure = None
        await live.stub.Tokenize(messages.tokenize_request())
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == (3 if code is grpc.StatusCode.INTERNAL else 0)


async def test_one_log_line_per_call_without_its_content(caplog):
    caplog.set_level(logging.INFO, "taste_grpc")
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Tokenize(messages.tokenize_request("very private"), metadata=(("x-request-id", "mine-1"),))
        await call
        trailers = dict(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError):
            await live.stub.Tokenize(messages.tokenize_request("very private\x00"))
    assert trailers["x-request-id"] == "mine-1"
    lines = [JsonFormatter().format(record) for record in caplog.records if record.getMessage() == "call"]
    good, bad = map(json.loads, lines)
    assert (good["request_id"], good["method"], good["code"]) == ("mine-1", "/taste.v1.TasteService/Tokenize", "OK")
    assert good["peer"].startswith("ipv4:127.0.0.1:")
    assert good["duration_ms"] > 0
    assert (bad["code"], bad["field"]) == ("INVALID_ARGUMENT", "text")
    assert not any("private" in JsonFormatter().format(record) for record in caplog.records)


async def test_request_ids_that_cannot_be_logged_are_replaced():
    async with live_server(RecordingEngine()) as live:
        call = live.stub.Tokenize(messages.tokenize_request(), metadata=(("x-request-id", "a b" * 90),))
        await call
        assert len(dict(await call.trailing_metadata())["x-request-id"]) == 32


async def test_bytes_that_are_no_message():
    async with live_server(RecordingEngine()) as live:
        tokenize = live.channel.unary_unary("/taste.v1.TasteService/Tokenize")
        detokenize = live.channel.stream_stream("/taste.v1.TasteService/Detokenize")
        for call in (tokenize(b"\xff\xff"), detokenize(iter([b"\xff\xff"])).read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert read_failure(refused.value).code is grpc.StatusCode.INVALID_ARGUMENT
