"""Live conversations over the WebSocket, with the recogniser, the language model and the voice that packages ship."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from taste_grpc.audio import Encoding, encode_pcm
from tests.support.live_gateway import Client, RealGateway, real_gateway
from tests.support.live_server import until
from tests.support.recordings import best_of_times

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE_HZ = 16_000
FRAME_BYTES = 2 * RATE_HZ // 10
START = {"type": "start", "sample_rate": RATE_HZ}
TOKEN = "alice-0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
STORY = "Tell me a story about a fox and a crow, in at least five sentences."
SAID = "it was the best of times it was the worst of times"
SECOND = bytes(2 * RATE_HZ)
"""A second of silence."""


@pytest.fixture(scope="module")
def resume_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(resume_dir: Path) -> AsyncIterator[RealGateway]:
    async with real_gateway(tokens={"alice": TOKEN}, stream={"resume_dir": resume_dir, "max_new_tokens": 60}) as found:
        yield found


@pytest.fixture(scope="module")
def speech() -> bytes:
    return encode_pcm(best_of_times(RATE_HZ), Encoding.LINEAR16)


@asynccontextmanager
async def talking(live: RealGateway, **start: Any) -> AsyncIterator[Client]:
    async with live.talking(headers=HEADERS, **start) as client:
        yield client


@asynccontextmanager
async def connected(live: RealGateway) -> AsyncIterator[Client]:
    async with live.client(additional_headers=HEADERS) as client:
        yield client


async def hear(client: Client, pcm: bytes) -> None:
    for at in range(0, len(pcm), FRAME_BYTES):
        await client.send(pcm[at : at + FRAME_BYTES])


async def until_phase(client: Client, phase: str, turn: int) -> None:
    """Wait for `phase` of `turn`; what is spoken meanwhile counts as heard as soon as it has been sent."""
    while ((message := await client.next())["type"], message.get("turn"), message.get("phase")) != (
        "phase",
        turn,
        phase,
    ):
        if message["type"] == "tts_complete":
            await client.send({"type": "playback_ack", "turn": message["turn"], "played_ms": 10**9})


def told(client: Client, kind: str, turn: int | None = None) -> list[dict[str, Any]]:
    return [message for message in client.seen if message["type"] == kind and turn in (None, message.get("turn"))]


def answer(client: Client, turn: int) -> str:
    return "".join(token["text"] for token in told(client, "llm_token", turn))


def phases(client: Client, turn: int) -> list[str]:
    return [message["phase"] for message in told(client, "phase", turn)]


def understood(client: Client, turn: int) -> str:
    """What was said in `turn`, without its punctuation."""
    (final,) = told(client, "final_transcript", turn)
    return re.sub(r"[^a-z ]", "", final["text"].lower())


def decoded(chunk: dict[str, Any]) -> np.ndarray:
    assert chunk["mime"] == "audio/wav"
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(chunk["audio_b64"], validate=True)), dtype="float32")
    assert rate_hz == RATE_HZ
    assert 1000 * len(samples) / rate_hz == pytest.approx(chunk["duration_ms"])
    return samples


async def nothing_left(live: RealGateway) -> None:
    """Wait until no conversation is open, and see that the next one can be had."""
    await until(lambda: live.conversations.open_sessions == 0)
    async with talking(live) as client:
        assert await client.mark() == []
    await until(lambda: live.conversations.open_sessions == 0)


async def expect_violation(client: Client, complaint: str, code: int) -> None:
    messages, closed = await client.rest()
    errors = [message for message in messages if message["type"] == "error"]
    assert [(error["code"], error["recoverable"]) for error in errors] == [("PROTOCOL_VIOLATION", False)], messages
    assert complaint in errors[0]["message"]
    assert closed == code


# --- conversations ------------------------------------------------------------------------------------


async def test_the_plain_form_turn_after_turn(live: RealGateway, speech: bytes) -> None:
    async with connected(live) as client:
        await client.send(START)
        await hear(client, speech)
        partial = await client.until("partial_transcript")
        assert partial["text"].lower().startswith("it was")
        await client.send({"type": "stop"})
        await until_phase(client, "idle", 1)
        assert phases(client, 0) == ["capturing", "thinking", "responding", "complete"]
        assert [message["type"] for message in client.seen[:2]] == ["protocol", "started"]
        assert understood(client, 0) == SAID
        tokens = told(client, "llm_token", 0)
        assert [token["done"] for token in tokens] == [False] * (len(tokens) - 1) + [True]
        chunks = told(client, "tts_chunk", 0)
        assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
        audio = [decoded(chunk) for chunk in chunks]
        lengths = [len(samples) for samples in audio]
        assert [chunk["first_sample"] for chunk in chunks] == [sum(lengths[:i]) for i in range(len(chunks))]
        assert np.sqrt(np.mean(np.concatenate(audio) ** 2)) > 0.01, "a voice"
        phrases = [chunk["phrase_text"] for chunk in chunks if "phrase_text" in chunk]
        assert " ".join(phrases).split() == answer(client, 0).split()
        (complete,) = told(client, "tts_complete", 0)
        assert complete["chunks"] == len(chunks)
        (metrics,) = told(client, "metrics", 0)
        assert 0 < metrics["final_transcript_ms"] <= metrics["first_token_ms"] <= metrics["first_audio_ms"]
        await client.send(START)
        await hear(client, speech + SECOND)  # whose silence ends the turn
        await until_phase(client, "idle", 2)
        assert phases(client, 1) == ["idle", "capturing", "thinking", "responding", "complete"]
        assert answer(client, 1).strip()
        assert live.conversations.open_sessions == 1
        assert len(told(client, "started")) == 1
        assert told(client, "error") == []
    await nothing_left(live)


async def test_cancel_stops_an_answer_and_the_next_turn_has_one(live: RealGateway) -> None:
    async with talking(live) as client:
        await client.send({"type": "text", "text": STORY})
        await client.until("tts_chunk")
        await client.send({"type": "cancel"})
        await until_phase(client, "idle", 1)
        (error,) = told(client, "error", 0)
        assert (error["code"], error["recoverable"]) == ("CANCELLED", True)
        assert not any(token["done"] for token in told(client, "llm_token", 0))
        assert told(client, "tts_complete") == []
        await client.send(START)
        await client.send({"type": "text", "text": "Say hello."})
        await until_phase(client, "idle", 2)
        assert answer(client, 1).strip()
        assert told(client, "tts_complete", 1)


async def test_speech_interrupts_an_answer(live: RealGateway, speech: bytes) -> None:
    async with talking(live) as client:
        await client.send({"type": "text", "text": STORY})
        chunk = await client.until("tts_chunk")
        await client.send({"type": "playback_ack", "turn": 0, "played_ms": 300})
        await hear(client, speech + SECOND)
        interrupted = await client.until("interrupted")
        assert (interrupted["turn"], interrupted["heard_ms"], interrupted["estimated"]) == (0, 300, False)
        assert chunk["phrase_text"].startswith(interrupted["heard_text"])
        before = len(client.seen)
        await until_phase(client, "responding", 1)
        assert not [message for message in client.seen[before:] if message["type"] == "tts_chunk"]
        assert understood(client, 1) == SAID


# --- hostile clients ----------------------------------------------------------------------------------

HOSTILE: dict[str, tuple[str | bytes, str, int]] = {
    "not JSON": ("start!", "is no JSON", 1003),
    "1 MB of JSON": ('{"type":"text","text":"' + "x" * 1_000_000 + '"}', "more than 65536 bytes", 1009),
    "65 KiB of audio": (bytes(65 << 10), "more than 65536 bytes", 1009),
    "an odd number of bytes": (bytes(321), "has 321 bytes", 1003),
    "an unknown message": ('{"type":"sing"}', "no message of type sing", 1003),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("started", [False, True], ids=["before start", "after start"])
async def test_what_is_against_the_protocol_ends_the_conversation(live: RealGateway, case: str, started: bool) -> None:
    message, complaint, code = HOSTILE[case]
    async with talking(live) if started else connected(live) as client:
        await client.send(message)
        await expect_violation(client, complaint, code)
    await nothing_left(live)


async def test_audio_before_start(live: RealGateway, speech: bytes) -> None:
    async with connected(live) as client:
        await client.send(speech[:FRAME_BYTES])
        await expect_violation(client, "audio before start", 1002)
    await nothing_left(live)


async def test_a_second_start_while_somebody_speaks_and_is_answered(live: RealGateway, speech: bytes) -> None:
    async with talking(live) as client:
        await hear(client, speech)
        await client.send(START)
        await expect_violation(client, "a second start", 1002)
    async with talking(live) as client:
        await client.send({"type": "text", "text": STORY})
        await client.until("tts_chunk")
        await client.send(START)
        await expect_violation(client, "a second start", 1002)
    await nothing_left(live)


@pytest.mark.parametrize("rate_hz", [0, 192_000])
async def test_a_rate_that_cannot_be_is_mended_by_the_next_start(live: RealGateway, rate_hz: int) -> None:
    async with connected(live) as client:
        await client.send({**START, "sample_rate": rate_hz})
        await client.send(SECOND)
        error = await client.next()
        assert (error["code"], error["recoverable"]) == ("UNSUPPORTED_SAMPLE_RATE", True)
        assert live.conversations.open_sessions == 0
        await client.send(START)
        assert (await client.next())["type"] == "started"
    await nothing_left(live)


async def test_endless_silence_is_nobodys_turn(live: RealGateway, speech: bytes) -> None:
    async with talking(live, options={"max_new_tokens": 4}) as client:
        await hear(client, 60 * SECOND)
        assert await client.mark() == []
        await hear(client, speech + SECOND)
        await until_phase(client, "idle", 1)
        assert understood(client, 0) == SAID


async def test_endless_speech_is_cut_into_turns(live: RealGateway, speech: bytes) -> None:
    async with talking(live, options={"max_utterance_ms": 2_000, "max_new_tokens": 4}) as client:
        await hear(client, 4 * speech)
        final = await client.until("final_transcript")
        (error,) = told(client, "error", 0)
        assert (error["code"], error["recoverable"]) == ("MAX_DURATION_EXCEEDED", True)
        assert understood(client, 0).startswith("it was the best")
        assert (final["turn"], final["audio_ms"]) == (0, pytest.approx(2_000, abs=100))
        await hear(client, SECOND)
        await client.mark()
    await nothing_left(live)


@pytest.mark.parametrize("phase", ["connected", "idle", "capturing", "thinking", "responding"])
async def test_who_is_gone_leaves_nothing_behind(live: RealGateway, speech: bytes, phase: str) -> None:
    async with connected(live) if phase == "connected" else talking(live) as client:
        if phase == "capturing":
            await hear(client, speech)
        elif phase in ("thinking", "responding"):
            await client.send({"type": "text", "text": STORY})
        if phase not in ("connected", "idle"):
            await until_phase(client, phase, 0)
        client.connection.transport.abort()
    await nothing_left(live)


# --- who gets in, and how it ends ---------------------------------------------------------------------


async def test_tokens_are_those_of_the_server(live: RealGateway, caplog: pytest.LogCaptureFixture) -> None:
    async with live.talking(access_token=TOKEN):
        pass
    for start, complaint in ((START, "a token is needed"), ({**START, "access_token": "stranger"}, "not known here")):
        async with live.client() as client:
            await client.send(start)
            (error,), code = await client.rest()
        assert (error["code"], error["recoverable"], code) == ("UNAUTHENTICATED", False, 1008)
        assert complaint in error["message"]
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://{live.address}/ws", additional_headers={"Authorization": "Bearer stranger"}):
            pass
    assert refused.value.response.status_code == 401
    await until(lambda: live.gateway.connections == 0)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    await nothing_left(live)


async def health(live: RealGateway) -> int:
    def ask() -> int:
        connection = HTTPConnection("127.0.0.1", live.gateway.port, timeout=20)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_a_conversation_goes_on_where_the_next_server_is(live: RealGateway, resume_dir: Path) -> None:
    async with real_gateway(drain_grace_s=60, stream={"resume_dir": resume_dir}) as first:
        assert await health(first) == 200
        async with first.talking(options={"max_new_tokens": 24}) as client, first.talking() as idle:
            await client.send({"type": "text", "text": "Say hello to the crow."})
            await until_phase(client, "responding", 0)
            stopping = asyncio.create_task(first.live.server.stop())
            going = await client.until("going_away")
            assert (going["grace_ms"], going["token_lifetime_ms"]) == (60_000, 600_000)
            assert await health(first) == 503
            async with first.client() as late:
                await late.send(START)
                (error,), code = await late.rest()
                assert (error["code"], code) == ("UNAVAILABLE", 1013)
            await until_phase(client, "complete", 0)
            said = answer(client, 0)
            assert (await client.rest())[1] == 1012
            messages, code = await idle.rest()
            assert ([message["type"] for message in messages], code) == (["going_away"], 1012)
            await stopping
        assert first.conversations.open_sessions == 0

    assert said
    async with connected(live) as client:
        await client.send({**START, "resume_token": going["resume_token"]})
        assert (await client.next())["resumed"]
        (session,) = live.conversations._sessions
        (exchange,) = session.memory.exchanges
        assert (exchange.user, exchange.assistant) == ("Say hello to the crow.", said)
        await client.send({"type": "text", "text": "And to the fox."})
        await until_phase(client, "responding", 0)
    async with connected(live) as client:
        await client.send({**START, "resume_token": going["resume_token"]})
        await expect_violation(client, "was used before", 1002)
    await nothing_left(live)
