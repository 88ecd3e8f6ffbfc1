"""All conversations of a server: opened, counted, told to leave, and going on elsewhere."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from taste_grpc.audio import Encoding
from taste_grpc.dialogue import ConversationRefusedError, Conversations, DialogueSettings, Phase, ResumeStore
from taste_grpc.dialogue.events import (
    ErrorCode,
    GoingAway,
    LlmToken,
    Options,
    PlaybackAck,
    SpeechComplete,
    Start,
    Started,
    TextTurn,
    VoiceChoice,
)
from taste_grpc.dialogue.memory import Exchange
from taste_grpc.errors import InvalidInputError, OverloadedError, UnavailableError, UnsupportedByModelError
from taste_grpc.speech import SpeechDetector
from tests.support.scripted import Client, LoudnessDetector, ScriptedVoice, Scripts, passes, until

ANSWER = "Well. That is a question."


class House:
    """Servers with one directory for conversations that go on."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.store = ResumeStore(directory, 60.0)
        self.scripts = Scripts(voice=ScriptedVoice(ms=10))
        self.make_detector: Callable[[], SpeechDetector] = LoudnessDetector
        self._stack = stack

    def server(self, **arguments: Any) -> Conversations:
        conversations = Conversations(
            self.scripts.parts, DialogueSettings(), lambda: self.make_detector(), self.store, **arguments
        )
        self._stack.push_async_callback(conversations.aclose)
        return conversations

    async def client(self, server: Conversations, start: Start | None = None) -> Client:
        client = Client(await server.open(start or Start()))
        self._stack.push_async_callback(client.close)
        return client


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        yield House(tmp_path / "resume", stack)
    assert asyncio.all_tasks() - before == {asyncio.current_task()}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ear")]


async def ask(client: Client, text: str) -> None:
    turns = client.session.turns
    await client.send(TextTurn(text))
    await client.idle(turns + 1)


async def leave(server: Conversations, client: Client) -> str:
    await server.leave(3.0)
    await client.finished()
    (going_away,) = client.of(GoingAway)
    assert (going_away.grace_ms, going_away.token_lifetime_ms) == (3_000, 60_000)
    return going_away.resume_token


async def test_settings_are_the_servers_unless_a_client_asks_for_others(house: House) -> None:
    server = house.server()
    client = await house.client(server)
    manner = client.session.manner
    assert manner.settings == DialogueSettings()
    assert manner.system_prompt == DialogueSettings().system_prompt
    assert client.session.voice == VoiceChoice()
    asked = Start(system_prompt="", language="de", options=Options(max_new_tokens=5, barge_in=False))
    other = (await house.client(server, asked)).session.manner
    assert (other.system_prompt, other.language) == ("", "de")
    assert (other.settings.max_new_tokens, other.settings.barge_in) == (5, False)
    assert other.settings.vad_silence_ms == DialogueSettings().vad_silence_ms


async def test_a_conversation_goes_on_on_another_server(house: House) -> None:
    first, second = house.server(), house.server()
    voice = VoiceChoice("scripted voice", sample_rate_hz=24_000, encoding=Encoding.FLOAT32LE)
    options = Options(max_new_tokens=9, barge_in_ms=300)
    start = Start(system_prompt="Be brief.", language="de", voice=voice, options=options)
    client = await house.client(first, start)
    await ask(client, "Who are you?")
    token = await leave(first, client)
    resumed = await house.client(second, Start(resume_token=token, options=Options(max_new_tokens=11)))
    await ask(resumed, "And now?")
    assert resumed.of(Started)[0].resumed
    assert resumed.of(Started)[0].voice == voice
    manner = resumed.session.manner
    assert (manner.system_prompt, manner.language) == ("Be brief.", "de")
    assert (manner.settings.max_new_tokens, manner.settings.barge_in_ms) == (11, 300)
    texts = [message.text for message in house.scripts.model.asked[-1]]
    assert texts == ["Be brief.", "Who are you?", ANSWER, "And now?"]
    assert resumed.session.memory.exchanges == (Exchange("Who are you?", ANSWER), Exchange("And now?", ANSWER))
    with pytest.raises(ConversationRefusedError, match="used before") as raised:
        await second.open(Start(resume_token=token))
    assert raised.value.code is ErrorCode.PROTOCOL_VIOLATION
    assert second.open_sessions == 1


async def test_what_is_given_anew_takes_the_place_of_the_old(house: House) -> None:
    first, second = house.server(), house.server()
    client = await house.client(
        first, Start(system_prompt="Old.", voice=VoiceChoice(sample_rate_hz=8_000), language="de")
    )
    token = await leave(first, client)
    anew = Start(resume_token=token, system_prompt="New.", voice=VoiceChoice(sample_rate_hz=24_000), language="fr")
    manner = (await house.client(second, anew)).session.manner
    assert (manner.system_prompt, manner.voice.sample_rate_hz, manner.language) == ("New.", 24_000, "fr")


@pytest.mark.parametrize(
    ("voice", "error"),
    [(VoiceChoice("nobody"), InvalidInputError), (VoiceChoice(speaker_embedding=(1.0,)), UnsupportedByModelError)],
)
async def test_a_voice_that_is_not_there_is_refused(house: House, voice: VoiceChoice, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"voice\."):
        await house.server().open(Start(voice=voice))


async def test_the_turn_that_ran_goes_along(house: House) -> None:
    house.scripts.voice.ms = 1_000
    first, second = house.server(), house.server()
    client = await house.client(first)
    await client.send(TextTurn("Talk"))
    await client.until(lambda: client.of(SpeechComplete))
    await first.leave(3.0)
    await client.until(lambda: client.of(GoingAway))
    assert not client.session.is_over
    await client.send(PlaybackAck(0, 2_000))
    await client.finished()  # from here on the client may come back
    resumed = await house.client(second, Start(resume_token=client.of(GoingAway)[0].resume_token))
    assert resumed.session.memory.exchanges == (Exchange("Talk", ANSWER),)


async def test_a_client_that_comes_back_before_its_turn_ended_does_so_once(house: House) -> None:
    house.scripts.voice.ms = 1_000
    first, second = house.server(), house.server()
    client = await house.client(first)
    await client.send(TextTurn("Talk"))
    await client.until(lambda: client.of(SpeechComplete))
    await first.leave(3.0)
    await client.until(lambda: client.of(GoingAway))
    token = client.of(GoingAway)[0].resume_token
    resumed = await house.client(second, Start(resume_token=token))
    assert resumed.session.memory.exchanges == ()
    await client.close()
    with pytest.raises(ConversationRefusedError):
        await second.open(Start(resume_token=token))


@pytest.mark.parametrize("token", ["", "unknown"])
async def test_a_token_that_nobody_gave_is_refused(house: House, token: str) -> None:
    server = house.server()
    with pytest.raises(ConversationRefusedError, match="resume_token: is unknown"):
        await server.open(Start(resume_token=token))
    assert server.open_sessions == 0


async def test_a_token_that_is_too_old_is_refused(house: House) -> None:
    house.store.lifetime_s = -1.0
    first, second = house.server(), house.server()
    client = await house.client(first)
    await first.leave(3.0)
    await client.finished()
    with pytest.raises(ConversationRefusedError, match="too old"):
        await second.open(Start(resume_token=client.of(GoingAway)[0].resume_token))


async def test_a_start_that_cannot_be_had_costs_no_token(house: House) -> None:
    first, second = house.server(), house.server()
    token = await leave(first, await house.client(first))
    with pytest.raises(ValueError, match="WAV"):
        await second.open(Start(encoding=Encoding.WAV, resume_token=token))
    assert (await house.client(second, Start(resume_token=token))).session.phase is Phase.IDLE


async def test_only_so_many_are_open_at_a_time(house: House) -> None:
    server = house.server(most=2)
    first = await house.client(server)
    await house.client(server)
    with pytest.raises(OverloadedError, match="2 conversations") as raised:
        await server.open(Start())
    assert raised.value.retry_after_ms > 0
    await first.close()
    assert server.open_sessions == 1
    await house.client(server)


async def test_nor_are_more_opened_at_once(house: House) -> None:
    server = house.server(most=3)
    opened = await asyncio.gather(*(server.open(Start()) for _ in range(10)), return_exceptions=True)
    sessions = [each for each in opened if not isinstance(each, BaseException)]
    assert len(sessions) == server.open_sessions == 3
    assert {type(each) for each in opened if isinstance(each, BaseException)} == {OverloadedError}


async def test_a_detector_that_cannot_be_made_costs_no_place(house: House) -> None:
    def fail() -> SpeechDetector:
        raise RuntimeError("no detector")

    server = house.server(most=1)
    house.make_detector = fail
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no detector"):
            await server.open(Start())
    house.make_detector = LoudnessDetector
    await house.client(server)


async def test_a_server_that_leaves_opens_none_any_more(house: House) -> None:
    server = house.server()
    await server.leave(3.0)
    with pytest.raises(UnavailableError, match="about to stop"):
        await server.open(Start())


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_one_that_is_being_opened_while_the_server_leaves_may_go_elsewhere(
    house: House, is_resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = house.server(), house.server()
    token = await leave(first, await house.client(first)) if is_resumed else None
    under_way, goes_on = threading.Event(), threading.Event()

    def wait_for(work: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*arguments: Any) -> Any:
            result = work(*arguments)
            under_way.set()
            goes_on.wait(5)
            return result

        return waiting

    with monkeypatch.context() as patch:
        if is_resumed:
            patch.setattr(house.store, "take", wait_for(house.store.take))
        else:
            patch.setattr(house, "make_detector", wait_for(LoudnessDetector))
        opening = asyncio.create_task(second.open(Start(resume_token=token)))
        await until(under_way.is_set)
        await second.leave(3.0)
        goes_on.set()
        with pytest.raises(UnavailableError, match="about to stop"):
            await opening
    assert second.open_sessions == 0
    if is_resumed:
        third = house.server()
        assert (await house.client(third, Start(resume_token=token))).of(GoingAway) == []


async def test_all_are_told_to_leave_once(house: House) -> None:
    server = house.server()
    clients = [await house.client(server) for _ in range(5)]
    await asyncio.gather(server.leave(3.0), *(client.finished() for client in clients))
    await server.leave(3.0)
    tokens = {client.of(GoingAway)[0].resume_token for client in clients}
    assert len(tokens) == 5
    assert [len(client.of(GoingAway)) for client in clients] == [1] * 5
    assert all(client.session.is_over for client in clients)
    assert server.open_sessions == 5
    for client in clients:
        await client.close()
    assert server.open_sessions == 0


async def test_one_that_ends_while_it_is_being_kept_leaves_nothing_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = house.server()
    client = await house.client(server)
    under_way, goes_on, save = threading.Event(), threading.Event(), house.store.save

    def slowly(conversation: Any) -> str:
        under_way.set()
        goes_on.wait(5)
        return save(conversation)

    monkeypatch.setattr(house.store, "save", slowly)
    leaving = asyncio.create_task(server.leave(3.0))
    await until(under_way.is_set)
    await client.close()
    goes_on.set()
    await leaving
    assert client.of(GoingAway) == []
    assert list(house.store._directory.glob("*.json")) == []
    assert server.open_sessions == 0


async def test_where_nothing_can_be_kept_they_are_told_to_leave_all_the_same(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    house.store = ResumeStore(tmp_path / "file", 60.0)
    server = house.server()
    clients = [await house.client(server) for _ in range(2)]
    with caplog.at_level(logging.ERROR):
        await server.leave(3.0)
    for client in clients:
        await client.finished()
        assert [event.resume_token for event in client.of(GoingAway)] == [""]
    assert [record.message for record in caplog.records] == ["a conversation was not kept"] * 2


async def test_a_server_that_closes_ends_what_is_left(house: House) -> None:
    house.scripts.voice.ms = 60_000
    server = house.server()
    clients = [await house.client(server) for _ in range(3)]
    for client in clients:
        await client.send(TextTurn("Talk"))
        await client.until(lambda client=client: client.of(LlmToken))  # type: ignore[misc]
    await server.aclose()
    await passes()
    assert server.open_sessions == 0
    assert all(client.session.is_over for client in clients)
    assert (house.scripts.model.open, house.scripts.voice.open) == (0, 0)
    with pytest.raises(UnavailableError):
        await server.open(Start())
