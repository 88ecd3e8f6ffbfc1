"""The WebSocket over a real socket: a conversation from start to end, and clients that do as they please."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from taste_grpc.dialogue import Phase
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ErrorCode,
    Failure,
    GoingAway,
    LlmToken,
    Notice,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    Start,
    Stop,
    TextTurn,
)
from taste_grpc.errors import InvalidInputError, OverloadedError, UnavailableError, UnsupportedByModelError
from tests.support.live_gateway import Client, LiveGateway, live_gateway
from tests.support.live_server import until
from tests.support.log_lines import events
from tests.support.scripted_conversations import refusal, tone

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = {"type": "start", "sample_rate": 16_000}
PCM = np.arange(480, dtype="<i2").tobytes()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as gateway:
        yield gateway


async def test_a_conversation_from_start_to_end(live: LiveGateway) -> None:
    async with live.client() as client:
        await client.send({**START, "language": "en"})
        assert await client.next() == {
            "type": "started",
            "session_id": live.session.session_id,
            "resumed": False,
            "sample_rate": 16_000,
        }
        session = live.session
        await client.send(PCM)
        for message in (
            {"type": "stop"},
            {"type": "text", "text": "Hello?"},
            {"type": "playback_ack", "turn": 0, "played_ms": 80},
            {"type": "playback_credit", "max_unplayed_ms": 4_000},
            {"type": "cancel"},
        ):
            await client.send(message)
        assert await client.mark() == []
        expected = [AudioIn(PCM), Stop(), TextTurn("Hello?"), PlaybackAck(0, 80), PlaybackCredit(4_000), Cancel()]
        assert session.received[:-1] == expected
        assert session.start == Start(language="en")
        session.emit(LlmToken(0, "Hi", done=False), tone(0, 0, 20, 16_000), Notice(None, "so"))
        assert [(await client.next())["type"] for _ in range(3)] == ["llm_token", "tts_chunk", "info"]
    await session.closed.wait()


async def test_the_end_of_a_conversation_closes_the_connection(live: LiveGateway) -> None:
    async with live.talking() as client:
        live.session.emit(LlmToken(0, "Bye.", done=True))
        live.session.end()
        messages, code = await client.rest()
        assert ([message["type"] for message in messages], code) == (["llm_token"], 1000)
    await live.session.closed.wait()


async def test_a_server_that_is_about_to_stop_says_so_and_closes_as_one(live: LiveGateway) -> None:
    async with live.talking() as client:
        live.session.emit(GoingAway("token", 100, 1_000))
        live.session.end()
        messages, code = await client.rest()
        assert ([message["type"] for message in messages], code) == (["going_away"], 1012)


@pytest.mark.parametrize(("code", "close"), [(ErrorCode.INTERNAL, 1011), (ErrorCode.PROTOCOL_VIOLATION, 1002)])
async def test_a_failure_that_ends_the_conversation_ends_the_connection(
    live: LiveGateway, code: ErrorCode, close: int
) -> None:
    async with live.talking() as client:
        live.session.emit(Failure(0, ErrorCode.LLM_FAIL, "once more"), Failure(0, code, "over"))
        live.session.end()
        messages, closed = await client.rest()
        assert [(message["code"], message["recoverable"]) for message in messages] == [
            ("LLM_FAIL", True),
            (code.value, False),
        ]
        assert closed == close


HOSTILE: list[tuple[str, str | bytes, str, int]] = [
    ("empty", "", "no JSON", 1003),
    ("empty audio", b"", "is empty", 1003),
    ("not JSON", "start!", "no JSON", 1003),
    ("JSON but no object", "[1, 2]", "no JSON object", 1003),
    ("deep", "[" * 50_000, "no JSON", 1003),
    ("unknown type", '{"type": "sing"}', "no message of type sing", 1003),
    ("unknown field", '{"type": "stop", "why": 1}', "stop.why: there is no such field", 1003),
    ("odd bytes", b"\x00" * 321, "has 321 bytes", 1003),
    ("64 KiB and a byte of text", '{"type":"text","text":"' + "x" * 65_512 + '"}', "more than 65536 bytes", 1009),
    ("64 KiB and two bytes of audio", b"\x00" * 65_538, "more than 65536 bytes", 1009),
    ("1 MB of JSON", '{"type":"text","text":"' + "x" * 1_000_000 + '"}', "more than 65536 bytes", 1009),
]


def names(case: Any) -> str:
    return case if isinstance(case, str) and len(case) < 40 else ""


@pytest.mark.parametrize(("name", "message", "complaint", "code"), HOSTILE, ids=names)
@pytest.mark.parametrize("started", [False, True], ids=["before start", "after start"])
async def test_what_is_against_the_protocol_gets_one_error_and_is_closed(
    live: LiveGateway, name: str, message: str | bytes, complaint: str, code: int, started: bool
) -> None:
    async with live.talking() if started else live.client() as client:
        await client.send(message)
        await expect_violation(client, complaint, code)
    if started:
        await live.session.closed.wait()


async def expect_violation(client: Client, complaint: str, code: int) -> None:
    messages, closed = await client.rest()
    assert [(error["type"], error["code"], error["recoverable"]) for error in messages] == [
        ("error", "PROTOCOL_VIOLATION", False)
    ], messages
    assert complaint in messages[0]["message"]
    assert closed == code


@pytest.mark.parametrize(
    ("message", "complaint", "code"),
    [
        (PCM, "audio before start", 1002),
        ({"type": "stop"}, "a stop message before start", 1002),
        ({"type": "text", "text": "Hi"}, "a textturn message before start", 1002),
        ({"type": "start"}, "start.sample_rate: is missing", 1003),
    ],
)
async def test_start_comes_first(live: LiveGateway, message: Any, complaint: str, code: int) -> None:
    async with live.client() as client:
        await client.send(message)
        await expect_violation(client, complaint, code)


async def test_text_that_is_no_utf_8_is_refused(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    async with live.client() as client:
        await client.connection.send(b'{"type": "\xff"}', text=True)
        await expect_violation(client, "no UTF-8", 1007)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_messages_in_fragments_are_put_together_and_counted_together(live: LiveGateway) -> None:
    async with live.talking() as client:
        await client.connection.send(iter(['{"type": ', '"stop"}']))
        assert await client.mark() == []
        assert Stop() in live.session.received
        await client.connection.send(iter([b"\x00" * 40_000, b"\x00" * 40_000]))
        await expect_violation(client, "more than 65536 bytes", 1009)


async def test_a_message_of_gigabytes_is_refused_at_its_beginning(live: LiveGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.gateway.port)
    try:
        await shake_hands(reader, writer)
        writer.write(b"\x82\xff" + (8 << 30).to_bytes(8) + bytes(4) + bytes(300_000))
        async with asyncio.timeout(20):
            answer = await reader.read()
        assert answer.count(b'"code":"PROTOCOL_VIOLATION"') == 1
        assert b"more than 65536 bytes" in answer
        assert (1009).to_bytes(2) in answer[-80:], "the close frame, then the end"
    finally:
        writer.transport.abort()


async def test_frames_that_no_websocket_has(live: LiveGateway) -> None:
    async with live.talking() as client:
        client.connection.transport.write(b"\xf1\x80\x00\x00\x00\x00")  # reserved bits
        await expect_violation(client, "breaks the WebSocket protocol", 1002)
    await live.session.closed.wait()


async def test_one_session_answers_start_after_start(live: LiveGateway) -> None:
    async with live.talking() as client:
        session = live.session
        for number in range(3):
            await client.send(PCM)
            session.turn(number)
            await until_phase(client, Phase.IDLE)
            await client.send(START)
            assert await client.mark() == []
        assert live.session is session
        assert session.audio == 3 * PCM
        await client.send(START)
        await expect_violation(client, "a second start before the turn is complete", 1002)


async def until_phase(client: Client, phase: Phase) -> None:
    while (await client.until("phase"))["phase"] != phase.value:
        pass


async def test_a_second_start_before_a_turn_is_complete(live: LiveGateway) -> None:
    async with live.talking() as client:
        await client.send(START)
        await expect_violation(client, "a second start", 1002)


@pytest.mark.parametrize("phase", [Phase.THINKING, Phase.RESPONDING])
async def test_a_start_while_a_turn_is_answered(live: LiveGateway, phase: Phase) -> None:
    async with live.talking() as client:
        live.session.turn(0)
        live.session.emit(PhaseChanged(1, phase))
        await until_phase(client, Phase.COMPLETE)
        await until_phase(client, phase)
        await client.send(START)
        await expect_violation(client, f"start while a turn is {phase.value}", 1002)


async def test_the_next_turn_may_come_at_another_rate(live: LiveGateway) -> None:
    async with live.talking() as client:
        live.session.turn(0)
        await until_phase(client, Phase.IDLE)
        await client.send({**START, "sample_rate": 48_000})
        for _ in range(10):
            await client.send(np.zeros(4_800, "<i2").tobytes())
        assert await client.mark() == []
        assert 15_000 < len(live.session.audio) // 2 <= 16_000, "a second, at the rate of the conversation"


async def test_what_later_starts_cannot_change_is_said(live: LiveGateway) -> None:
    async with live.talking(language="en") as client:
        live.session.turn(0)
        await until_phase(client, Phase.IDLE)
        await client.send({**START, "language": "de", "options": {"vad_silence_ms": 300}})
        info = await client.next()
        assert info["type"] == "info"
        assert info["message"].startswith("language, options: as in the first start")


async def test_an_unsupported_rate_can_be_mended(live: LiveGateway) -> None:
    opened = len(live.conversations.opened)
    async with live.client() as client:
        for start in ({"sample_rate": 4_000}, {"sample_rate": 192_000}, {"voice": {"sample_rate": 1}}):
            await client.send({**START, **start})
            await client.send(PCM)  # sent on the strength of it
            await client.send({"type": "stop"})
            error = await client.next()
            assert (error["code"], error["recoverable"]) == ("UNSUPPORTED_SAMPLE_RATE", True)
        assert len(live.conversations.opened) == opened
        await client.send(START)
        assert (await client.next())["type"] == "started"
        live.session.turn(0)
        await until_phase(client, Phase.IDLE)
        await client.send({**START, "sample_rate": 4_000})
        await client.send(PCM)
        assert (await client.next())["code"] == "UNSUPPORTED_SAMPLE_RATE"
        await client.send(START)
        await client.send(PCM)
        assert await client.mark() == []
        assert live.session.audio == PCM, "what came at a refused rate is left out"


async def test_a_conversation_that_is_refused(live: LiveGateway) -> None:
    live.conversations.refusals += [
        refusal(ErrorCode.BACKPRESSURE, "busy"),
        refusal(ErrorCode.MODEL_LOAD_FAIL, "no model"),
    ]
    async with live.client() as client:
        await client.send(START)
        error = await client.next()
        assert (error["code"], error["message"], error["recoverable"]) == ("BACKPRESSURE", "busy", True)
        await client.send(START)
        messages, code = await client.rest()
        assert [(error["code"], error["message"]) for error in messages] == [("MODEL_LOAD_FAIL", "no model")]
        assert code == 1011


@pytest.mark.parametrize(
    ("error", "code", "close"),
    [
        (InvalidInputError("resume_token", "is empty"), "PROTOCOL_VIOLATION", 1003),
        (OverloadedError("16 conversations are under way"), "OVERLOADED", 1013),
        (UnavailableError("the server is about to stop"), "UNAVAILABLE", 1013),
        (UnsupportedByModelError("only English is understood"), "UNSUPPORTED", 1008),
    ],
)
async def test_what_stands_in_the_way_of_a_conversation_is_told(
    live: LiveGateway, error: Exception, code: str, close: int
) -> None:
    live.conversations.refusals.append(error)
    async with live.client() as client:
        await client.send(START)
        messages, closed = await client.rest()
        assert [(told["code"], told["message"], told["recoverable"]) for told in messages] == [
            (code, str(error), False)
        ]
        assert closed == close


async def test_a_conversation_that_the_server_cuts(live: LiveGateway) -> None:
    async with live.talking() as client:
        live.session.cut()
        assert await client.rest() == ([], 1012)


async def test_a_fault_of_ours_is_no_secret_and_tells_none(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    live.conversations.refusals.append(ZeroDivisionError("internals"))
    async with live.client() as client:
        await client.send(START)
        messages, code = await client.rest()
        assert [(error["code"], error["recoverable"]) for error in messages] == [("INTERNAL", False)]
        assert "internals" not in json.dumps(messages)
        assert code == 1011
    assert [event["level"] for event in events(caplog, "web conversation failed")] == ["ERROR"]


async def test_a_client_that_leaves_takes_its_conversation_along(live: LiveGateway) -> None:
    for leave in ("close", "abort"):
        async with live.talking() as client:
            session = live.session
            if leave == "close":
                await client.connection.close()
            else:
                client.connection.transport.abort()
            await session.closed.wait()


async def test_a_fast_sender_is_held_back(live: LiveGateway) -> None:
    async with live.talking() as client:
        session = live.session
        session.is_taking.clear()
        frame = b"\x00" * 60_000
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < 1_000:
                await client.send(frame)
                sent += 1

        sending = asyncio.create_task(send())
        await stands_still(lambda: sent)
        assert 0 < sent < 300, "the sockets take some, the server next to nothing"
        assert len(session.audio) == 0
        session.is_taking.set()
        await sending
        await client.mark()
        assert len(session.audio) == 1_000 * len(frame)


async def stands_still(value: Any, for_s: float = 0.5) -> None:
    """Wait until `value()` has not changed for so long."""
    loop = asyncio.get_running_loop()
    last, since = value(), loop.time()
    while loop.time() - since < for_s:
        await asyncio.sleep(0.02)
        if value() != last:
            last, since = value(), loop.time()


async def test_a_slow_reader_holds_back_what_is_sent_to_it(live: LiveGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.gateway.port, limit=1_024)
    try:
        await shake_hands(reader, writer)
        writer.write(frame_of(json.dumps(START)))
        opened = len(live.conversations.opened)
        await until(lambda: len(live.conversations.opened) > opened)
        session = live.session
        writer.transport.pause_reading()
        session.emit(*(tone(0, seq, 1_000, 16_000) for seq in range(600)))
        await stands_still(lambda: session.sent)
        assert session.sent < 100, "of ten minutes of audio little is on its way to who does not read"
    finally:
        writer.transport.abort()
    await session.closed.wait()


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


def frame_of(text: str) -> bytes:
    """A short masked text frame; the mask is zero."""
    data = text.encode()
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


async def test_a_violation_is_told_after_what_went_before(live: LiveGateway) -> None:
    async with live.talking() as client:
        live.session.emit(*(LlmToken(0, f"{number} ", done=False) for number in range(20)))
        await client.send("nonsense")
        await client.send(PCM)
        messages, code = await client.rest()
        assert [message["type"] for message in messages] == ["llm_token"] * 20 + ["error"]
        assert code == 1003
        assert live.session.received == []


async def test_many_at_once(live: LiveGateway) -> None:
    async def talk(number: int) -> list[dict[str, Any]]:
        async with live.talking(language=f"x-{number}") as client:
            session = next(one for one in live.conversations.opened if one.start.language == f"x-{number}")
            session.emit(LlmToken(0, str(number), done=True))
            await client.send(PCM)
            return await client.mark()

    results = await asyncio.gather(*(talk(number) for number in range(20)))
    assert [[message["text"] for message in result] for result in results] == [[str(n)] for n in range(20)]


async def test_the_log_says_that_there_was_a_conversation_and_nothing_of_it(
    live: LiveGateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with live.talking(system_prompt="a-secret-prompt") as client:
            session = live.session
            await client.send({"type": "text", "text": "a-secret-question"})
            session.emit(LlmToken(0, "a-secret-answer", done=True))
            await client.mark()
        await session.closed.wait()
        await until(lambda: bool(events(caplog, "web conversation ended")))
    (ended,) = events(caplog, "web conversation ended")
    assert (ended["session"], ended["peer"], ended["close_code"]) == (session.session_id, "127.0.0.1", 1000)
    ours = [record for record in caplog.records if record.name.startswith(("taste_grpc", "uvicorn"))]
    assert ours
    assert not [record for record in ours if "secret" in str(vars(record))]


async def test_no_order_of_messages_confuses_it(live: LiveGateway, caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(8)
    good = [
        START,
        PCM,
        {"type": "stop"},
        {"type": "cancel"},
        {"type": "text", "text": "Hi"},
        {"type": "mark", "id": "x"},
    ]
    bad = ["{", b"odd", {"type": "sing"}, {**START, "sample_rate": 1}, b"", b"\x00" * 65_538, {"type": "start"}]
    for _ in range(60):
        async with live.client() as client:
            with contextlib.suppress(ConnectionClosed):
                for message in dice.choices(good + bad, [6, 6, 2, 2, 2, 2] + [1] * len(bad), k=dice.randrange(1, 8)):
                    await client.send(message)
                await client.send("the end")
            messages, code = await client.rest()
            fatal = [message for message in messages if message.get("recoverable") is False]
            assert [error["code"] for error in fatal] == ["PROTOCOL_VIOLATION"], messages
            assert messages[-1] is fatal[0]
            assert code in (1002, 1003, 1009)
    await until(lambda: live.gateway.connections == 0)
    assert all(session.closed.is_set() for session in live.conversations.opened)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
