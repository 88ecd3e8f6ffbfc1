"""Live conversations that a TASTE model answers; its weights are random, so only the form of answers counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taste.v1 import dialogue_pb2, taste_pb2_grpc
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.local import LocalDialogue
from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.engine.protocol import EngineStats
from taste_grpc.observability import TextFormatter
from taste_grpc.server.app import DIALOGUE_SERVICE, TASTE_SERVICE
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.conversing import RATE_HZ, TURN, TYPED, Talk, calling, start, talking
from tests.support.details import read_failure
from tests.support.live_server import live_server
from tests.support.log_lines import events
from tests.support.recordings import best_of_times
from tests.support.served import Served, served

TASTE = {"log_latency": False, "language_model": "taste"}
SHORT, LONG = {"max_new_tokens": 14}, {"max_new_tokens": 1_000}


class Kept(logging.Handler):
    """Keeps what is logged, as lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(TextFormatter().format(record))


@dataclass(frozen=True)
class TasteServer:
    """A server, and what it logged while it started."""

    served: Served
    log: list[str]

    @property
    def address(self) -> str:
        return self.served.address

    @property
    def stats(self) -> EngineStats:
        stats: EngineStats = self.served.live.engine.stats()
        return stats


@pytest.fixture(scope="module")
def server(chat_checkpoint: Path) -> Iterator[TasteServer]:
    logger, kept = logging.getLogger("taste_grpc"), Kept()
    logger.addHandler(kept)
    try:
        engine = EngineSettings(model=chat_checkpoint, threads=1)
        with served(lambda: LocalEngine(engine), make_dialogue=LocalDialogue, stream=TASTE) as running:
            logger.removeHandler(kept)
            yield TasteServer(running, kept.lines)
    finally:
        logger.removeHandler(kept)


@pytest.fixture(scope="module")
def speech() -> Float32Array:
    return best_of_times(RATE_HZ)


def without_blanks(text: str) -> str:
    return "".join(text.split())


def check_answer(talk: Talk, turn: int) -> None:
    """Everything of an answer is there, in order."""
    assert talk.is_done(turn)
    chunks = talk.all("tts_chunk", turn)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    lengths = [len(chunk.audio) // 2 for chunk in chunks]
    assert [chunk.first_sample for chunk in chunks] == [sum(lengths[:i]) for i in range(len(chunks))]
    named = [(chunk.phrase_index, chunk.phrase_text) for chunk in chunks if chunk.HasField("phrase_text")]
    assert [index for index, _ in named] == list(range(len(named)))
    assert without_blanks("".join(text for _, text in named)) == without_blanks(talk.answer(turn))
    assert talk.audio(turn).any()
    (complete,) = talk.all("tts_complete", turn)
    assert complete.chunks == len(chunks)
    assert complete.audio_ms == pytest.approx(1000 * sum(lengths) / RATE_HZ, abs=1)
    assert not talk.all("error", turn)


async def idle(server: TasteServer) -> None:
    """Until the engine has nothing to do."""
    async with asyncio.timeout(20):
        while server.stats.active_calls or server.stats.waiting_calls:
            await asyncio.sleep(0.01)


async def test_a_spoken_and_a_typed_turn_are_answered(server: TasteServer, speech: Float32Array) -> None:
    async with talking(server.address, start(options=SHORT)) as talk:
        await talk.say(speech)
        await talk.until_idle(0)
        assert talk.phases(0) == TURN[:-1]
        (final,) = talk.all("final_transcript", 0)
        assert "best of times" in final.text
        check_answer(talk, 0)
        await talk.type("Good morning.")
        await talk.until_idle(1)
        assert talk.phases(1)[1:] == TYPED[:-1]
        check_answer(talk, 1)
        metrics = talk.all("turn_metrics", 0)[0]
        assert 0 < metrics.final_transcript_ms <= metrics.first_token_ms <= metrics.first_audio_ms
    await idle(server)


async def test_the_output_is_as_the_client_wants_it(server: TasteServer) -> None:
    embedding = dialogue_pb2.Voice(out_sample_rate_hz=24_000)
    embedding.speaker_embedding.values.extend([1.0] * 192)
    async with talking(server.address, start(options=SHORT, voice=embedding)) as talk:
        await talk.type("Good morning.")
        await talk.until_idle(0)
        samples = sum(len(chunk.audio) // 2 for chunk in talk.all("tts_chunk", 0))
        assert talk.all("tts_complete", 0)[0].audio_ms == pytest.approx(1000 * samples / 24_000, abs=1)


@pytest.mark.parametrize("how", ["cancel", "barge-in", "hang up"])
async def test_an_answer_that_is_not_wanted_any_more_is_work_that_ends(
    server: TasteServer, speech: Float32Array, how: str
) -> None:
    await idle(server)
    before = server.stats
    async with talking(server.address, start(options=LONG)) as talk:
        talk.acks = False
        await talk.send(playback_credit=dialogue_pb2.PlaybackCredit(max_unplayed_ms=60))
        await talk.type("Good morning.")
        await talk.until(lambda: talk.all("tts_chunk", 0))
        await talk.send(playback_ack=dialogue_pb2.PlaybackAck(turn_index=0, played_ms=0))
        assert server.stats.active_calls
        if how == "cancel":
            await talk.send(cancel=dialogue_pb2.ConverseCancel())
            await talk.until_idle(0)
            assert talk.phases(0)[-1] == "COMPLETE"
        elif how == "barge-in":
            await talk.say(speech[: 2 * RATE_HZ], silence_s=0.0)
            (interruption,) = await talk.until(lambda: talk.all("interruption", 0))
            assert (interruption.heard_ms, interruption.heard_text) == (0, "")
            await talk.until_idle(0)
            assert talk.phases(0)[-1] == "COMPLETE"
        else:
            talk.call.cancel()
        await idle(server)
        assert server.stats.cancelled_calls > before.cancelled_calls
        assert server.stats.failed_calls == before.failed_calls
        assert not talk.is_done(0)
        if how == "hang up":
            return
        talk.acks = True
        await talk.send(playback_credit=dialogue_pb2.PlaybackCredit(max_unplayed_ms=1 << 30))
        await talk.send(stop=dialogue_pb2.ConverseStop())
        if how == "cancel":
            await talk.type("And now?")
        await talk.until_phase("RESPONDING", 1 + (how == "cancel"))


def test_a_server_says_that_what_answers_has_learned_nothing(server: TasteServer) -> None:
    (line,) = [line for line in server.log if "they mean nothing" in line]
    assert "WARNING" in line
    assert "spoken_lm" in line


async def test_a_model_that_cannot_converse_serves_its_calls_and_says_why_no_more(caplog) -> None:
    engine = LocalEngine(EngineSettings(model=TINY, threads=1))
    async with live_server(engine, make_dialogue=LocalDialogue, stream=TASTE) as live:
        (refused,) = events(caplog, "conversations cannot be had")
        assert refused["level"] == "ERROR"
        model = engine.info.model_id
        assert refused["reason"] == f"the TASTE model {model} knows no conversations, so it cannot answer"
        health = health_pb2_grpc.HealthStub(live.channel)
        for service, status in ((TASTE_SERVICE, "SERVING"), (DIALOGUE_SERVICE, "NOT_SERVING")):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
        heard = await taste_pb2_grpc.TasteServiceStub(live.channel).Tokenize(messages.tokenize_request())
        assert heard.text_ids
        async with calling(live.server.address) as talk:
            assert await talk.ended() is grpc.StatusCode.FAILED_PRECONDITION
            (error,) = talk.all("error")
            assert (error.code, error.recoverable) == (dialogue_pb2.CONVERSE_ERROR_CODE_MODEL_LOAD_FAIL, False)
            assert refused["reason"] in error.message
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await live.dialogue.Reply(dialogue_pb2.ReplyRequest()).read()
        assert read_failure(raised.value).code is grpc.StatusCode.FAILED_PRECONDITION
