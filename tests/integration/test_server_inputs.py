"""Bad and unusual inputs over the wire, against the real engine on the tiny checkpoint."""

from __future__ import annotations

import grpc
import pytest
import pytest_asyncio

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.bad_inputs import CASES, BadInput, recording, speak
from tests.support.contract import check_answer, check_speech, check_tokenized, model_work
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server, until

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}: {case.name}")
async def test_refused_naming_the_field(case: BadInput, live: Live):
    request = case.build(live.engine.info)
    before = model_work(live.engine)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(live, case.method, request)
    await until(lambda: live.engine.stats().active_calls == 0)
    assert model_work(live.engine) == before, "the model worked before the refusal"
    failure = read_failure(refused.value)
    if case.field:
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [case.field]), failure
        assert (failure.reason, failure.domain) == ("ERROR_REASON_INVALID_FIELD", "taste-grpc")
        assert failure.descriptions[0]
        assert failure.request_id
        assert failure.trailer_bytes < 8192
    else:
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await a_good_call(live)
    assert model_work(live.engine) != before


async def a_good_call(live: Live) -> None:
    segment = messages.token_segment((300,), live.engine.info.vq_dim)
    request = taste_pb2.GenerateRequest(segments=[segment], max_length=1, seed=1, text_top_p=0)
    check_answer(await send(live, "Generate", request), live.engine.info)


async def test_good_calls_still_work_after_all_of_them(live: Live):
    info = live.engine.info
    check_tokenized(await live.stub.Tokenize(messages.tokenize_request()), info)
    await a_good_call(live)
    for segment in (messages.token_segment(vq_dim=info.vq_dim), messages.word_segment(vq_dim=info.vq_dim)):
        check_speech(await send(live, "Detokenize", speak(info, segment, segment)), segments=2)


async def test_nothing_is_in_the_table_twice():
    names = [(case.method, case.name) for case in CASES]
    assert len(names) == len(set(names))


TEXTS = ["👩‍👩‍👧 hello 🎉", "שלום עולם", "مرحبا بالعالم", "你好，世界", "tab\tnew\nline", "ab " * 140, "!?", "\u200f"]


@pytest.mark.parametrize("text", TEXTS)
async def test_text_of_any_language(text: str, live: Live):
    info = live.engine.info
    answer = await live.stub.Tokenize(messages.tokenize_request(text))
    check_tokenized(answer, info)
    assert list(answer.words) == text.split()
    for segment in (messages.text_segment(text), recording(messages.clip(), text)):
        request = taste_pb2.GenerateRequest(segments=[segment], max_length=2)
        check_answer(await send(live, "Generate", request), info)


@pytest.mark.parametrize("text", TEXTS)
async def test_words_of_any_language(text: str, live: Live):
    words = messages.word_segment(text.split()[:9], live.engine.info.vq_dim)
    check_speech(await send(live, "Detokenize", speak(live.engine.info, words)), segments=1)
    request = taste_pb2.GenerateRequest(segments=[words], max_length=2)
    check_answer(await send(live, "Generate", request), live.engine.info)


async def test_a_text_of_full_length(live: Live):
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment("abc " * 2048)], max_length=2)
    check_answer(await send(live, "Generate", request), live.engine.info)


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


async def test_a_history_without_codes_is_answered(live: Live):
    segment = messages.token_segment(vq_dim=live.engine.info.vq_dim)
    segment.tokens.taste_tokens.codes.ids[:] = [-1] * 12
    request = taste_pb2.GenerateRequest(segments=[segment], max_length=2)
    check_answer(await send(live, "Generate", request), live.engine.info)


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
