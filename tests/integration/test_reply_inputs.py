"""Replies that are refused over the wire, and the limits that are allowed."""

from __future__ import annotations

import grpc
import pytest
import pytest_asyncio

from tests.support.bad_replies import BAD_REPLIES
from tests.support.details import read_failure
from tests.support.reply_server import Serving, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live():
    async with serving() as live:
        yield live


@pytest.mark.parametrize("name", BAD_REPLIES)
async def test_refused_naming_the_field(name: str, live: Serving):
    field, make = BAD_REPLIES[name]
    before = len(live.hears.heard)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await live.dialogue.Reply(make()).read()
    assert len(live.hears.heard) == before, "the model worked before the refusal"
    failure = read_failure(refused.value)
    if field:
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field]), failure
        assert (failure.reason, failure.domain) == ("ERROR_REASON_INVALID_FIELD", "taste-grpc")
        assert failure.descriptions[0]
        assert failure.trailer_bytes < 8192
    else:
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": 4096, "temperature": 2.0, "top_p": 1.0, "chunk_size_words": 64, "timeout_ms": 600_000},
        {"max_new_tokens": 1, "temperature": 0.0, "top_p": 0.0, "chunk_size_words": 1, "chunk_timeout_ms": 1},
        {"chunk_id": "é" * 128, "system_prompt": "x" * 8192, "chunk_timeout_ms": 60_000},
        {"chunk_id": "a b\tc", "system_prompt": "👩‍👩‍👧 שלום\n你好", "mode": "conversation"},
        {"mode": "transcription"},
    ],
)
async def test_the_limits_themselves_are_allowed(fields: dict[str, object], live: Serving):
    responses = await live.all(**fields)
    assert responses[-1].success
    assert responses[-1].is_final
    assert responses[0].chunk_id == fields.get("chunk_id", responses[0].chunk_id)


async def test_the_shortest_time_is_over_at_once(live: Serving):
    responses = await live.all(timeout_ms=1)
    assert responses[-1].is_final
    assert responses[-1].error == "the answer took longer than 1 ms"
