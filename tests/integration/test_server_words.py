"""Speech as a list of words: what is returned can be sent back, word by word, and edited on the way."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import pytest_asyncio

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.contract import check_answer, check_tokenized, model_work
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server
from tests.support.messages import spoken_words

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "good morning, everyone: it's 9 o'clock"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(chat_checkpoint):
    async with live_server(LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))) as live:
        yield live


def joined(responses: list[taste_pb2.DetokenizeResponse]) -> taste_pb2.DetokenizeResponse:
    """All audio and units of one segment, in its last message."""
    whole = taste_pb2.DetokenizeResponse()
    whole.CopyFrom(responses[-1])
    whole.audio = b"".join(response.audio for response in responses)
    whole.speech_ids[:] = [unit for response in responses for unit in response.speech_ids]
    return whole


async def speak(live: Live, *segments: common_pb2.Segment) -> list[taste_pb2.DetokenizeResponse]:
    first = taste_pb2.DetokenizeRequest(config=messages.config(live.engine.info.speaker_embedding_dim))
    call = live.stub.Detokenize(iter([first, *(taste_pb2.DetokenizeRequest(segment=one) for one in segments)]))
    return [response async for response in call]


async def tokenized(live: Live, text: str = TEXT) -> common_pb2.SegmentTokens:
    answer = await live.stub.Tokenize(messages.tokenize_request(text))
    return messages.tokens_of(answer)


def in_token_form(tokens: common_pb2.SegmentTokens) -> common_pb2.Segment:
    return common_pb2.Segment(role=common_pb2.ROLE_USER, tokens=tokens)


def in_words(words: list[common_pb2.SpokenWord]) -> common_pb2.Segment:
    return common_pb2.Segment(role=common_pb2.ROLE_USER, words=common_pb2.SegmentWords(words=words))


async def test_the_words_of_a_recording_are_those_of_its_text(live: Live):
    tokens = await tokenized(live)
    assert list(tokens.words) == TEXT.split()
    assert list(dict.fromkeys(tokens.word_ids)) == list(range(len(tokens.words)))


@pytest.mark.parametrize("with_ids", [True, False], ids=["with ids", "without ids"])
async def test_words_sound_as_the_tokens_they_came_from(with_ids: bool, live: Live):
    tokens = await tokenized(live)
    words = spoken_words(tokens, with_ids=with_ids)
    given = joined(await speak(live, in_token_form(tokens)))
    spelled = joined(await speak(live, in_words(words)))
    assert len(given.audio) > 1000
    assert spelled.audio == given.audio
    assert list(spelled.speech_ids) == list(given.speech_ids)
    assert spelled.resume_state == given.resume_state


async def test_a_replaced_word_keeps_its_codes_and_sounds_different(live: Live):
    tokens = await tokenized(live)
    words = spoken_words(tokens)
    before = joined(await speak(live, in_words(words)))
    words[1].text = "evening,"
    after = joined(await speak(live, in_words(words)))
    assert after.audio != before.audio
    # the same as what a client with a tokenizer would send: new ids, the old word's codes
    ids, word_ids = live.engine._started.hearing.words("good evening, everyone: it's 9 o'clock")
    rows = np.full((len(ids), live.engine.info.vq_dim), -1)
    for index, word in enumerate(words):
        rows[word_ids.index(index)] = word.taste_tokens.codes.ids
    edited = messages.tokens(ids, word_ids, rows)
    expected = joined(await speak(live, in_token_form(edited)))
    assert after.audio == expected.audio
    assert after.resume_state == expected.resume_state


async def test_ids_that_do_not_spell_the_word_are_not_used(live: Live):
    words = spoken_words(await tokenized(live))
    plain = joined(await speak(live, in_words(words)))
    other = await tokenized(live, "something else altogether")
    words[2].text_ids[:] = other.text_ids
    misled = joined(await speak(live, in_words(words)))
    assert misled.audio == plain.audio


@pytest.mark.parametrize("policy", ["every_word", "every_words", "sentence_end"])
@pytest.mark.parametrize("conversation_format", ["conversation", "completion"])
async def test_an_answer_is_made_of_words(policy: str, conversation_format: str, live: Live):
    """One text for each word id, one row of codes for each word, at its first id."""
    policies = {
        "every_word": taste_pb2.EmitPolicy(every_word=taste_pb2.EveryWord()),
        "every_words": taste_pb2.EmitPolicy(every_words=3),
        "sentence_end": taste_pb2.EmitPolicy(sentence_end=taste_pb2.SentenceEnd()),
    }
    for seed in range(4):
        request = taste_pb2.GenerateRequest(
            segments=[in_token_form(await tokenized(live, "hello there"))],
            conversation_format=conversation_format,
            emit_policy=policies[policy],
            text_top_p=0.95,
            text_temperature=1.5,
            max_length=24,
            seed=seed,
        )
        results = [result async for result in live.stub.Generate(request)]
        check_answer(results, live.engine.info)
        assert sum(len(result.segment.tokens.words) for result in results) > 3


async def test_an_answer_that_is_gone_on_with_is_made_of_words_too(live: Live):
    request = taste_pb2.GenerateRequest(
        segments=[messages.text_segment()], text_top_p=0.9, text_temperature=1.5, max_length=9, extra_words=500, seed=3
    )
    for seed in range(3):
        results = [result async for result in live.stub.Generate(request)]
        check_answer(results, live.engine.info)
        assert results[0].segment.tokens.word_ids[0] == 0
        # whatever piece of a word the rest begins with
        del request.segments[1:]
        request.segments.extend(result.segment for result in results if result.HasField("segment"))
        request.seed = seed


async def test_an_answer_is_continued_and_spoken_from_its_words(live: Live):
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment()], text_top_p=0.9, max_length=12, seed=1)
    tokens = [r.segment.tokens async for r in live.stub.Generate(request) if r.HasField("segment")]
    words = [word for one in tokens for word in spoken_words(one)]
    spelled = in_words(words)
    spelled.role = common_pb2.ROLE_ASSISTANT
    spelled.modality = common_pb2.MODALITY_AUDIO
    given = [common_pb2.Segment(role=common_pb2.ROLE_ASSISTANT, tokens=one) for one in tokens]

    async def ids(*segments: common_pb2.Segment) -> list[int]:
        again = taste_pb2.GenerateRequest(segments=[messages.text_segment(), *segments], max_length=12, seed=7)
        return [i async for result in live.stub.Generate(again) for i in result.segment.tokens.text_ids]

    assert await ids(spelled) == await ids(*given)
    assert (await speak(live, spelled))[-1].is_final


async def test_text_ids_a_client_made_up_have_words_too(live: Live):
    """Whatever ids are sent with a recording, there is a text for each word, if only an empty one."""
    info = live.engine.info
    request = messages.tokenize_request(None)
    for seed in range(8):
        request.text_ids[:] = np.random.default_rng(seed).integers(0, info.text_vocab_size, 9).tolist()
        check_tokenized(await live.stub.Tokenize(request), info)
    request.text_ids[:] = [300, 32, 220, 7]
    check_tokenized(await live.stub.Tokenize(request), info)


async def test_too_many_ids_once_the_words_are_spelled():
    """Only the tokenizer knows how many ids a word has; it is asked before the model does anything."""
    async with live_server(
        LocalEngine(EngineSettings(model=TINY, device="cpu", threads=1, max_text_tokens=8)),
        limits={"max_text_tokens": 8},
    ) as live:
        codes = common_pb2.TasteTokens(codes=common_pb2.TasteCodes(vq_dim=live.engine.info.vq_dim))
        codes.codes.ids.extend([1] * codes.codes.vq_dim)
        word = common_pb2.SpokenWord(text="xylophonically", taste_tokens=codes)
        for call, field in (
            (live.stub.Generate(taste_pb2.GenerateRequest(segments=[in_words([word, word])])).read(), "segments"),
            (speak(live, in_words([word, word])), "segment"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            failure = read_failure(refused.value)
            assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
            assert failure.fields == [field]
            assert "at most 8" in failure.descriptions[0]
        assert model_work(live.engine) == {}
