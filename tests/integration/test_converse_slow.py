"""Clients of Converse that read more slowly than they are told things."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc

from taste.v1 import dialogue_pb2
from taste_grpc.dialogue.outbox import CLEAR, MOST_EVENTS, SLOW
from tests.support.conversing import TYPED, start, talking
from tests.support.live_server import until
from tests.support.scripted import ScriptedModel, ScriptedTranscriber, ScriptedVoice, Scripts, audio
from tests.support.scripted_talks import talks

SENTENCES = 40


class Unread:
    """A call whose answers are read when a test says so."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.told: list[dialogue_pb2.ConverseResponse] = []

    async def send(self, **event: Any) -> None:
        await self.call.write(dialogue_pb2.ConverseRequest(**event))

    async def read_until(self, kind: str, count: int = 1) -> None:
        """Read until so many events of a kind have come."""
        async with asyncio.timeout(30):
            while len(self.all(kind)) < count:
                response = await self.call.read()
                assert response is not grpc.aio.EOF
                self.told.append(response)

    def all(self, kind: str) -> list[Any]:
        return [getattr(told, kind) for told in self.told if told.WhichOneof("event") == kind]

    @property
    def notices(self) -> list[str]:
        return [notice.message for notice in self.all("notice")]


def scripts() -> Scripts:
    """Answers of half a megabyte of audio a sentence; transcripts that are never the same."""
    return Scripts(
        transcriber=ScriptedTranscriber(text=lambda ms: f"for {ms:.0f} ms"),
        model=ScriptedModel(steps=tuple(f"This is sentence {number}. " for number in range(SENTENCES))),
        voice=ScriptedVoice(ms=4_000),
    )


VOICE = dialogue_pb2.Voice(out_sample_rate_hz=16_000)


async def test_an_answer_that_nobody_reads_waits_and_is_all_there_later(tmp_path: Path) -> None:
    parts = scripts()
    async with talks(parts, stream={"resume_dir": tmp_path}) as (live, dialogue):
        slow = Unread(live.dialogue.Converse())
        await slow.call.write(start(voice=VOICE))
        await slow.send(text_turn=dialogue_pb2.TextTurn(text="Talk"))
        (session,) = await _sessions(dialogue)
        await until(lambda: session._outbox.is_slow)
        at_rest = len(parts.model.given), len(parts.voice.spoken)
        async with talking(live.server.address) as other:  # whoever is not held back comes to its end meanwhile
            await other.type("Talk")
            await other.until_idle(0)
            assert other.phases(0) == TYPED[:-1]
            assert SLOW not in [notice.message for notice in other.all("notice")]
        assert (len(parts.model.given) - SENTENCES, len(parts.voice.spoken) - SENTENCES) == at_rest
        assert at_rest[0] < SENTENCES / 2
        assert session._outbox.unread < 20
        await slow.read_until("tts_complete")
        chunks = slow.all("tts_chunk")
        assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
        assert sum(chunk.chunk_duration_ms for chunk in chunks) == SENTENCES * 4_000
        assert "".join(token.text for token in slow.all("llm_token")).count("sentence") == SENTENCES
        assert slow.notices.count(SLOW) == slow.notices.count(CLEAR) == 1
        slow.call.cancel()
        await until(lambda: dialogue.at_rest)


async def test_partial_transcripts_are_thinned_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    """It asks, does not listen, and interrupts with a long speech: nothing of it tells it twice that it is slow."""
    parts = scripts()
    async with talks(parts, stream={"resume_dir": tmp_path}) as (live, dialogue):
        slow = Unread(live.dialogue.Converse())
        await slow.call.write(start(voice=VOICE, options={"partial_interval_ms": 250}))
        await slow.send(text_turn=dialogue_pb2.TextTurn(text="Talk"))
        (session,) = await _sessions(dialogue)
        await until(lambda: session._outbox.is_slow)
        for _ in range(58):  # 28 s
            await slow.send(audio=audio("#" * 15))
        await until(lambda: len(parts.transcriber.calls) >= 20)
        assert session._outbox.unread < 30
        await slow.send(audio=audio("." * 25))
        await until(lambda: session.turns == 1 and session.phase.name == "RESPONDING")
        await slow.read_until("interruption")
        await slow.read_until("final_transcript")
        partials = slow.all("partial_transcript")
        assert 1 <= len(partials) < 10
        assert partials[-1].text == parts.transcriber.text(partials[-1].audio_ms)
        await slow.read_until("tts_complete")
        assert slow.notices.count(SLOW) == slow.notices.count(CLEAR) == 1
        slow.call.cancel()
        await until(lambda: dialogue.at_rest)


async def test_marks_that_nobody_reads_hold_back_who_sends_them(tmp_path: Path) -> None:
    async with talks(scripts(), stream={"resume_dir": tmp_path}) as (live, dialogue):
        slow = Unread(live.dialogue.Converse())
        await slow.call.write(start())
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await slow.send(mark=dialogue_pb2.Mark(id=f"{sent:0256}"))
                sent += 1

        (session,) = await _sessions(dialogue)
        sending = asyncio.create_task(send())
        await until(lambda: session._outbox.unread >= MOST_EVENTS)
        async with talking(live.server.address) as other:
            await other.type("Talk")
            await other.until_idle(0)
        assert session._outbox.unread <= MOST_EVENTS + 2
        sending.cancel()
        await asyncio.wait([sending])
        slow.call.cancel()
        await until(lambda: dialogue.at_rest)


async def _sessions(dialogue: Any) -> list[Any]:
    """Those that are open; waits for one."""
    await until(lambda: dialogue.conversations.open_sessions)
    return list(dialogue.conversations._sessions)
