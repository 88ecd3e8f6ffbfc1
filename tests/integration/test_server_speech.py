"""Speech over the wire in messages that every client can receive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine import EngineSettings, LocalEngine
from tests.support.live_server import Live, live_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = [f"{letter * 3}{number}" for number in range(10, 15) for letter in "qzjx"]
GREATEST_MESSAGE = (1 << 20) + (256 << 10) + (256 << 10)  # audio; what was held back; the resume state
CLIENT_LIMIT = 4 << 20  # what gRPC clients receive when nothing is set


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(chat_checkpoint: Path) -> AsyncIterator[Live]:
    async with live_server(LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))) as live:
        yield live


def spoken(live: Live, texts: list[str]) -> common_pb2.Segment:
    """A segment of words with codes."""
    rng = np.random.default_rng(3)

    def codes() -> common_pb2.TasteTokens:
        ids = rng.integers(0, live.engine.info.codebook_size, live.engine.info.vq_dim).tolist()
        return common_pb2.TasteTokens(codes=common_pb2.TasteCodes(vq_dim=live.engine.info.vq_dim, ids=ids))

    words = [common_pb2.SpokenWord(text=text, taste_tokens=codes()) for text in texts]
    return common_pb2.Segment(role=common_pb2.ROLE_ASSISTANT, words=common_pb2.SegmentWords(words=words))


async def said(live: Live, rate_hz: int, segments: int) -> list[taste_pb2.DetokenizeResponse]:
    """One phrase of many tokens a segment, so that by the length rule each is seconds of speech, in float32."""
    config = taste_pb2.DetokenizeConfig(
        speaker_embedding=common_pb2.SpeakerEmbedding(values=np.random.default_rng(1).standard_normal(192)),
        out_sample_rate_hz=rate_hz,
        encoding=common_pb2.AUDIO_ENCODING_FLOAT32LE,
        seed=4,
        max_chunk_words=len(WORDS),
    )
    sent = [taste_pb2.DetokenizeRequest(config=config)]
    sent += [taste_pb2.DetokenizeRequest(segment=spoken(live, WORDS)) for _ in range(segments)]
    return [message async for message in live.stub.Detokenize(iter(sent))]


async def test_long_audio_leaves_in_messages_of_a_bounded_size(live: Live):
    messages = await said(live, 96_000, segments=2)
    assert max(message.ByteSize() for message in messages) <= GREATEST_MESSAGE < CLIENT_LIMIT
    samples = [len(message.audio) // 4 for message in messages]
    assert max(samples) >= 1 << 18  # one of them was full
    assert [message.first_sample for message in messages] == np.cumsum([0, *samples])[:-1].tolist()
    assert [message.index for message in messages] == list(range(len(messages)))
    assert [message.HasField("format") for message in messages] == [True] + [False] * (len(messages) - 1)
    assert sum(message.chunk_duration_ms for message in messages) == pytest.approx(sum(samples) / 96)
    finals = [[message.is_final for message in messages if message.segment_index == index] for index in range(2)]
    assert all(told == [False] * (len(told) - 1) + [True] for told in finals)
    assert max(len(told) for told in finals) >= 2
    assert all(message.is_final == message.HasField("resume_state") for message in messages)


async def test_nothing_is_lost_between_them(live: Live):
    """At a low rate the same speech fits into one message a segment."""
    many, few = await said(live, 96_000, segments=2), await said(live, 8_000, segments=2)
    assert len(few) < len(many)
    assert [unit for message in few for unit in message.speech_ids] == [
        unit for message in many for unit in message.speech_ids
    ]
    lengths = [sum(len(message.audio) // 4 for message in messages) for messages in (many, few)]
    assert abs(lengths[0] - 12 * lengths[1]) <= 12
    high = np.frombuffer(b"".join(message.audio for message in many), "<f4")
    low = np.frombuffer(b"".join(message.audio for message in few), "<f4")
    smooth = np.convolve(high, np.hanning(49) / np.hanning(49).sum(), "same")[::12][: len(low)]
    assert np.corrcoef(smooth, np.convolve(low, np.hanning(5) / np.hanning(5).sum(), "same")[: len(smooth)])[0, 1] > 0.9
