"""Bad and unusual inputs over the wire, against the real engine on the tiny checkpoint."""

from __future__ import annotations

import grpc
import pytest
import pytest_asyncio

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.bad_inputs import CASES, BadInput
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server

OK, FAILED_PRECONDITION = grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live():
    async with live_server(LocalEngine(EngineSettings(model=TINY, device="cpu", threads=1))) as live:
        yield live


def send(live: Live, method: str, request):
    if method == "Tokenize":
        return live.stub.Tokenize(request)
    call = live.stub.Generate(request) if method == "Generate" else live.stub.Detokenize(iter(request))
    return drained(call)


async def drained(call):
    return [message async for message in call]


async def ending(live: Live, method: str, request) -> grpc.StatusCode:
    try:
        await send(live, method, request)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}: {case.name}")
async def test_refused_naming_the_field(case: BadInput, live: Live):
    steps = live.engine.stats()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(live, case.method, case.build(live.engine.info))
    failure = read_failure(refused.value)
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [case.field]), failure
    assert (failure.reason, failure.domain) == ("ERROR_REASON_INVALID_FIELD", "taste-grpc")
    assert failure.descriptions[0]
    assert failure.request_id
    assert failure.trailer_bytes < 8192
    assert live.engine.stats().prefill_tokens == steps.prefill_tokens, "the model worked before the refusal"


async def test_a_good_call_still_works_after_all_of_them(live: Live):
    info = live.engine.info
    assert (await live.stub.Tokenize(messages.tokenize_request())).text_ids
    request = taste_pb2.GenerateRequest(
        segments=[messages.token_segment(vq_dim=info.vq_dim)], max_length=4, seed=1, text_top_p=0
    )
    results = await send(live, "Generate", request)
    assert [result.is_complete for result in results] == [False] * (len(results) - 1) + [True]
    requests = [
        taste_pb2.DetokenizeRequest(config=messages.config(info.speaker_embedding_dim)),
        taste_pb2.DetokenizeRequest(segment=messages.token_segment(vq_dim=info.vq_dim)),
    ]
    assert (await send(live, "Detokenize", requests))[-1].is_final


async def test_a_message_above_the_limit(live: Live):
    request = messages.tokenize_request()
    request.audio.data = bytes(17_000_000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await live.stub.Tokenize(request)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "text",
    ["👩‍👩‍👧 hello 🎉", "שלום עולם", "مرحبا بالعالم", "你好，世界", "tab\tnew\nline", "ab " * 140, "!?", "\u200f"],
)
async def test_text_of_any_language(text: str, live: Live):
    answer = await live.stub.Tokenize(messages.tokenize_request(text))
    assert len(answer.text_ids) == len(answer.word_ids)
    results = await send(
        live, "Generate", taste_pb2.GenerateRequest(segments=[messages.text_segment(text)], max_length=2)
    )
    assert results[-1].is_complete


async def test_a_text_of_full_length(live: Live):
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment("abc " * 2048)], max_length=2)
    assert await ending(live, "Generate", request) is OK


async def test_resume_states_that_are_none(live: Live):
    for state in (b"x", bytes(1000), b"x\x9c" * 99):
        request = taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(resume_state=state))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send(live, "Detokenize", [request])
        assert read_failure(refused.value).fields == ["config.resume_state"]


async def test_speech_goes_on_with_a_resume_state(live: Live):
    info = live.engine.info
    segment = taste_pb2.DetokenizeRequest(segment=messages.token_segment(vq_dim=info.vq_dim))
    first = taste_pb2.DetokenizeRequest(config=messages.config(info.speaker_embedding_dim))
    whole = await send(live, "Detokenize", [first, segment, segment])
    resumed = taste_pb2.DetokenizeConfig(resume_state=whole[0].resume_state)
    (again,) = await send(live, "Detokenize", [taste_pb2.DetokenizeRequest(config=resumed), segment])
    assert again.audio == whole[1].audio
    assert again.first_sample == whole[1].first_sample
    assert again.HasField("format")


async def test_a_conversation_the_model_cannot_have(live: Live):
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment()], conversation_format="conversation")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(live, "Generate", request)
    failure = read_failure(refused.value)
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.reason == "ERROR_REASON_MODEL_LACKS_CAPABILITY"


@pytest.mark.parametrize(
    "change",
    [
        lambda segments: segments.extend([messages.text_segment()] * 3),
        lambda segments: segments[0].tokens.taste_tokens.codes.ids.__setitem__(slice(0, 12), [-1] * 12),
    ],
    ids=["several segments", "no row has codes"],
)
async def test_unusual_histories_are_answered_or_refused(change, live: Live):
    request = taste_pb2.GenerateRequest(max_length=2)
    request.segments.append(messages.token_segment(vq_dim=live.engine.info.vq_dim))
    change(request.segments)
    assert await ending(live, "Generate", request) in (OK, grpc.StatusCode.INVALID_ARGUMENT, FAILED_PRECONDITION)


async def test_speech_of_rows_without_codes_is_answered_or_refused(live: Live):
    info = live.engine.info
    segment = messages.token_segment(vq_dim=info.vq_dim)
    segment.tokens.taste_tokens.codes.ids[:] = [-1] * 12
    requests = [
        taste_pb2.DetokenizeRequest(config=messages.config(info.speaker_embedding_dim)),
        taste_pb2.DetokenizeRequest(segment=segment),
    ]
    assert await ending(live, "Detokenize", requests) in (OK, grpc.StatusCode.INVALID_ARGUMENT)


async def test_the_shortest_audio(live: Live):
    answer = await live.stub.Tokenize(
        taste_pb2.TokenizeRequest(audio=messages.clip(0.02), text="hello"),
    )
    assert answer.audio_ms == pytest.approx(20)
    silent = common_pb2.AudioClip(data=bytes(32_000))
    silent.format.encoding = common_pb2.AUDIO_ENCODING_LINEAR16
    silent.format.sample_rate_hz = 16_000
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await live.stub.Tokenize(taste_pb2.TokenizeRequest(audio=silent))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_special_ids_as_history(live: Live):
    """Whatever id a client sends, the call ends properly."""
    info = live.engine.info
    for ids in ((0,), (info.text_vocab_size - 1,), tuple(info.special_tokens.values()) or (1,)):
        request = taste_pb2.GenerateRequest(
            segments=[messages.token_segment(ids, info.vq_dim)], max_length=2, seed=2**64 - 1
        )
        assert (await send(live, "Generate", request))[-1].is_complete
