"""Replies of the cascade, with scripted parts around the real voice-activity detector."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import soundfile

from taste_grpc.dialogue import CascadeModel, ReplyChunk, ReplyModel, Sampling
from taste_grpc.dialogue.read_ahead import ReadAhead
from taste_grpc.dialogue.reply_progress import ReplyProgress
from taste_grpc.errors import (
    InvalidInputError,
    LanguageModelError,
    NotInitialisedError,
    SpeechError,
    UnsupportedByModelError,
)
from taste_grpc.settings import ChunkedResponseSettings
from taste_grpc.speech import sample_recordings
from tests.support.live_server import until
from tests.support.log_lines import events, lines
from tests.support.scripted_models import ANSWER, ScriptedLanguageModel, ScriptedRecogniser

SAMPLES, _ = soundfile.read(sample_recordings()["beckett"], dtype="float32", frames=32_000)
SILENCE = np.zeros(16_000, np.float32)
FALLBACK = "Sorry, I didn't understand that."


class Cascade:
    def __init__(self) -> None:
        self.hears, self.says = ScriptedRecogniser(), ScriptedLanguageModel()
        self.model: ReplyModel = CascadeModel(self.hears, self.says)

    def ask(self, audio: Any = SAMPLES, chunk_id: str = "q-1", **arguments: Any) -> Any:
        return self.model.process_realtime_chunk_streaming(audio, chunk_id, **arguments)

    async def all(self, audio: Any = SAMPLES, **arguments: Any) -> list[ReplyChunk]:
        return [chunk async for chunk in self.ask(audio, **arguments)]


@pytest_asyncio.fixture
async def cascade() -> AsyncIterator[Cascade]:
    cascade = Cascade()
    await cascade.model.initialize()
    yield cascade
    await cascade.model.aclose()
    assert cascade.says.running == 0


def check(chunks: list[ReplyChunk]) -> None:
    """What holds for every reply."""
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    times = [chunk.processing_time_ms for chunk in chunks]
    assert times == sorted(times)
    assert times[0] > 0
    assert all(chunk.success == (chunk.error is None) for chunk in chunks)
    assert all(chunk.success for chunk in chunks[:-1])


def tasks() -> set[str]:
    gc.collect()
    return {task.get_name() for task in asyncio.all_tasks() if not task.done()}


async def test_an_answer_comes_in_chunks_of_whole_words(cascade: Cascade) -> None:
    chunks = await cascade.all()
    check(chunks)
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert [chunk.text for chunk in chunks] == [
        "Yes, of course.",
        " It takes about three",
        " days until it gets",
        " there, give or take.",
    ]
    assert {chunk.chunk_id for chunk in chunks} == {"q-1"}
    assert cascade.hears.heard == [32_000]


async def test_the_language_model_gets_what_was_heard_and_the_settings(cascade: Cascade) -> None:
    await cascade.all()
    ((messages, sampling),) = cascade.says.asked
    assert [message.role for message in messages] == ["system", "user"]
    assert messages[0].text
    assert messages[1].text == "how long does it take"
    assert sampling == Sampling(max_new_tokens=50, temperature=0.7, top_p=0.9)


async def test_each_setting_can_be_another_for_one_request(cascade: Cascade) -> None:
    given = {"max_new_tokens": 7, "temperature": 0.0, "top_p": 1.0, "system_prompt": "Shout.", "chunk_size_words": 2}
    chunks = await cascade.all(**given)
    assert max(len(chunk.text.split()) for chunk in chunks) == 2
    messages, sampling = cascade.says.asked[0]
    assert (messages[0].text, sampling) == ("Shout.", Sampling(7, 0.0, 1.0))
    await cascade.all()
    assert cascade.says.asked[1][1] == Sampling(50, 0.7, 0.9)


async def test_settings_of_the_model_are_those_of_requests_that_say_nothing() -> None:
    says = ScriptedLanguageModel()
    settings = ChunkedResponseSettings(max_new_tokens=9, chunk_size_words=64)
    model = CascadeModel(ScriptedRecogniser(), says, settings=settings)
    await model.initialize()
    async for chunk in model.process_realtime_chunk_streaming(SAMPLES, "q", mode="conversation"):
        assert len(chunk.text.split()) > 4 or "." in chunk.text
    assert says.asked[0][1].max_new_tokens == 9


async def test_transcription_writes_down_and_asks_no_model(cascade: Cascade) -> None:
    chunks = await cascade.all(mode="transcription")
    check(chunks)
    assert [chunk.text for chunk in chunks] == ["how long does it", " take"]
    assert cascade.says.begun == 0


@pytest.mark.parametrize("mode", ["", "talk", "Conversation", "conversation "])
async def test_another_mode_is_named(cascade: Cascade, mode: str) -> None:
    with pytest.raises(InvalidInputError, match=f"mode: is {mode!r}; conversation and transcription are allowed"):
        await cascade.all(mode=mode)
    assert cascade.hears.heard == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: is 0; 1 to 4096 is allowed"),
        ({"temperature": 2.1}, "temperature: is 2.1; 0 to 2 is allowed"),
        ({"top_p": float("nan")}, "top_p: is nan; 0 to 1 is allowed"),
        ({"chunk_size_words": 65}, "chunk_size_words: is 65; 1 to 64 is allowed"),
        ({"timeout_ms": "soon"}, "timeout_ms: is 'soon'; 1 to 600000 is allowed"),
        ({"system_prompt": ""}, "system_prompt: is ''; .*at least 1 character"),
        ({"words": 3}, "words: there is no such setting of replies"),
    ],
)
async def test_a_setting_that_cannot_be_is_named(cascade: Cascade, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        await cascade.all(**overrides)
    assert cascade.hears.heard == []


@pytest.mark.parametrize("audio", [SILENCE, 0.0005 * SAMPLES, b"RIFF" + bytes(99)], ids=["silence", "faint", "none"])
async def test_silence_is_one_chunk_at_once_and_no_work(cascade: Cascade, audio: Any) -> None:
    if isinstance(audio, bytes):
        with pytest.raises(InvalidInputError, match="audio_data"):
            await cascade.all(audio)
    else:
        (chunk,) = await cascade.all(audio)
        assert (chunk.success, chunk.text, chunk.is_final, chunk.chunk_index) == (False, "", True, 0)
        assert chunk.error == "no speech was heard"
    assert cascade.hears.heard == []
    assert cascade.says.begun == 0


async def test_speech_without_words_is_no_question(cascade: Cascade) -> None:
    cascade.hears.text = " "
    (chunk,) = await cascade.all()
    assert (chunk.success, chunk.is_final, chunk.error) == (False, True, "no speech was heard")
    assert cascade.says.begun == 0


# --- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 3, 10])
async def test_a_failure_ends_with_what_to_say_instead(
    cascade: Cascade, given: int, caplog: pytest.LogCaptureFixture
) -> None:
    cascade.says.failure, cascade.says.fails_after = LanguageModelError("the endpoint is gone"), given
    chunks = await cascade.all()
    check(chunks)
    *before, last = chunks
    assert ANSWER.startswith("".join(chunk.text for chunk in before))
    assert bool(before) == (given == 10)
    assert (last.success, last.text, last.error) == (False, FALLBACK, "the endpoint is gone")
    (logged,) = events(caplog, "reply failed")
    assert (logged["chunk_id"], logged["level"]) == ("q-1", "WARNING")
    assert any("LanguageModelError: the endpoint is gone" in line for line in lines(caplog))


async def test_a_recogniser_that_fails(cascade: Cascade) -> None:
    cascade.hears.failure = SpeechError("the recogniser broke")
    (chunk,) = await cascade.all()
    assert (chunk.success, chunk.text, chunk.error) == (False, FALLBACK, "the recogniser broke")


async def test_a_detector_that_fails() -> None:
    made = []

    def detector() -> Any:
        if made:
            raise OSError("no weights")
        made.append(1)

    model = CascadeModel(ScriptedRecogniser(), ScriptedLanguageModel(), make_detector=detector)
    await model.initialize()
    (chunk,) = [chunk async for chunk in model.process_realtime_chunk_streaming(SAMPLES, "q")]
    assert (chunk.success, chunk.text, chunk.error) == (False, FALLBACK, "OSError: no weights")


async def test_the_cause_is_one_line_of_some_length(cascade: Cascade) -> None:
    cascade.says.failure = ValueError("first\nsecond " + "x" * 9999)
    (chunk,) = await cascade.all()
    assert chunk.error is not None
    assert chunk.error.startswith("ValueError: first second xxx")
    assert len(chunk.error) == 400


async def test_an_answer_that_does_not_come_in_time(cascade: Cascade, caplog: pytest.LogCaptureFixture) -> None:
    cascade.says.held.clear()
    (chunk,) = await cascade.all(timeout_ms=100)
    assert (chunk.success, chunk.text, chunk.is_final) == (False, FALLBACK, True)
    assert chunk.error == "the answer took longer than 100 ms"
    assert chunk.processing_time_ms >= 100
    assert cascade.says.running == 0
    assert [line["chunk_id"] for line in events(caplog, "reply failed")] == ["q-1"]


async def test_an_answer_without_end_ends_in_time(cascade: Cascade) -> None:
    cascade.says.endless = True
    chunks = await cascade.all(timeout_ms=300)
    check(chunks)
    assert chunks[-1].error == "the answer took longer than 300 ms"
    assert cascade.says.running == 0


async def test_the_time_of_the_reader_is_not_the_models() -> None:
    now = 100.0
    progress = ReplyProgress("a model", "q-1", clock=lambda: now)
    progress.begin("conversation", 400)
    now += 0.3
    with progress.paused():
        now += 60
    assert progress.patience_s(None) == pytest.approx(0.1)
    assert progress.patience_s(0.05) == 0.05
    progress.check_time()
    now += 0.11
    assert progress.patience_s(0.05) == 0
    with pytest.raises(TimeoutError, match="longer than 400 ms"):
        progress.check_time()


async def test_whole_words_do_not_wait_for_a_chunk_to_fill(cascade: Cascade) -> None:
    cascade.says.pieces = ["one two thr", "ee four five"]
    cascade.says.holds_after = 1
    chunks = []
    async for chunk in cascade.ask(chunk_timeout_ms=50):
        chunks.append(chunk.text)
        if len(chunks) == 1:
            assert not cascade.says.held.is_set(), "the words came while the model was silent"
            cascade.says.held.set()
    assert chunks == ["one two", " three four five"]


async def test_an_empty_answer_is_an_answer(cascade: Cascade) -> None:
    cascade.says.pieces = ["", ""]
    (chunk,) = await cascade.all()
    assert (chunk.success, chunk.text, chunk.is_final, chunk.error) == (True, "", True, None)


# --- before and after -----------------------------------------------------------------------------------


async def test_who_is_not_initialised_says_so() -> None:
    cascade = Cascade()
    with pytest.raises(RuntimeError, match=r"recogniser and scripted 1 is not initialised: await its initialize\(\)"):
        await cascade.all()
    await cascade.model.initialize()
    await cascade.model.initialize()
    assert cascade.says.is_started
    assert cascade.hears.is_started
    assert (await cascade.all())[-1].success
    await cascade.model.aclose()
    await cascade.model.aclose()
    assert not cascade.says.is_started
    assert not cascade.hears.is_started
    with pytest.raises(NotInitialisedError):
        await cascade.all()


async def test_a_part_that_does_not_start_leaves_nothing_started() -> None:
    cascade = Cascade()

    async def fail() -> None:
        raise UnsupportedByModelError("the package is not installed")

    cascade.says.start = fail  # type: ignore[method-assign]
    with pytest.raises(UnsupportedByModelError):
        await cascade.model.initialize()
    assert not cascade.model.is_initialised
    await cascade.model.aclose()
    assert not cascade.hears.is_started


async def test_models_of_somebody_else_are_left_alone() -> None:
    hears, says = ScriptedRecogniser(), ScriptedLanguageModel()
    model = CascadeModel(hears, says, owns_models=False)
    await model.initialize()
    assert not hears.is_started
    assert not says.is_started
    await hears.start()
    await says.start()
    await model.aclose()
    assert hears.is_started
    assert says.is_started


# --- endings --------------------------------------------------------------------------------------------


def breaking(count: int) -> Callable[[Cascade], Any]:
    async def read(cascade: Cascade) -> None:
        async with aclosing(cascade.ask()) as chunks:
            for _ in range(count):
                await anext(chunks)

    return read


async def dropped(cascade: Cascade) -> None:
    async for _ in cascade.ask():
        break


async def never_begun(cascade: Cascade) -> None:
    await cascade.ask().aclose()


@pytest.mark.parametrize("read", [breaking(0), breaking(1), breaking(3), dropped, never_begun])
async def test_closing_at_any_point_ends_the_work(cascade: Cascade, read: Callable[[Cascade], Any]) -> None:
    cascade.says.endless = True
    before, threads = tasks(), threading.active_count()
    await read(cascade)
    await until(lambda: cascade.says.running == 0 and tasks() <= before)
    # those that files and detectors are read on belong to the loop, and are no more than it may have
    assert {thread.name.split("_")[0] for thread in threading.enumerate()[threads:]} <= {"asyncio"}


@pytest.mark.parametrize("where", ["recogniser", "first piece", "midway"])
async def test_cancelling_the_reader_ends_the_work(
    cascade: Cascade, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taste_grpc")
    cascade.says.endless = True
    waiting = asyncio.Event()
    if where == "recogniser":

        async def wait(*_: Any, **__: Any) -> str:
            waiting.set()
            await asyncio.Event().wait()
            return ""

        cascade.hears.transcribe = wait  # type: ignore[method-assign]
    elif where == "first piece":
        cascade.says.held.clear()
    before, read = tasks(), []

    async def reader() -> None:
        async for chunk in cascade.ask():
            read.append(chunk)

    reading = asyncio.create_task(reader())
    conditions = {"recogniser": waiting.is_set, "first piece": lambda: cascade.says.begun == 1}
    await until(conditions.get(where, lambda: len(read) > 2))
    reading.cancel()
    await asyncio.wait({reading})
    assert reading.cancelled()
    assert cascade.says.running == 0
    assert tasks() <= before
    assert [line["outcome"] for line in events(caplog, "reply")] == ["cancelled"]


async def test_many_at_once_do_not_mix(cascade: Cascade) -> None:
    async def one(number: int) -> list[ReplyChunk]:
        return [chunk async for chunk in cascade.ask(chunk_id=f"q-{number}", chunk_size_words=number)]

    for number, chunks in enumerate(await asyncio.gather(*(one(number) for number in range(1, 9))), 1):
        check(chunks)
        assert {chunk.chunk_id for chunk in chunks} == {f"q-{number}"}
        assert "".join(chunk.text for chunk in chunks) == ANSWER
        assert max(len(chunk.text.split()) for chunk in chunks) <= number


async def test_a_reader_who_does_not_read_holds_the_model_back(cascade: Cascade) -> None:
    cascade.says.endless = True
    async with aclosing(cascade.ask()) as chunks:
        await anext(chunks)
        last = -1
        while last != cascade.says.given:
            last = cascade.says.given
            for _ in range(50):
                await asyncio.sleep(0)
        assert last < 30


async def test_every_line_names_the_request_and_none_its_content(
    cascade: Cascade, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "taste_grpc")
    await cascade.all(chunk_id="q-7")
    await cascade.all(SILENCE, chunk_id="q-8")
    cascade.says.failure = LanguageModelError("gone")
    await cascade.all(chunk_id="q-9", mode="conversation")
    with pytest.raises(InvalidInputError):
        await cascade.all(chunk_id="q-10", mode="secret")
    logged = events(caplog)
    assert [(line["chunk_id"], line["event"]) for line in logged] == [
        *[("q-7", "reply"), ("q-8", "reply"), ("q-9", "reply failed"), ("q-9", "reply"), ("q-10", "reply")]
    ]
    ended = [line["outcome"] for line in logged if line["event"] == "reply"]
    assert ended == ["answered", "no_speech", "failed", "refused"]
    assert all(line["duration_ms"] > 0 for line in logged if line.get("outcome") == "answered")
    text = "\n".join(lines(caplog))
    assert not any(word in text for word in ("how long", "course", "secret", "Sorry"))


# --- reading ahead --------------------------------------------------------------------------------------


async def test_a_wait_that_was_given_up_loses_nothing() -> None:
    says = ScriptedLanguageModel(["a", "b"])
    says.held.clear()
    async with ReadAhead(says.answer([], Sampling())) as pieces:
        assert await pieces.next(0.01) == ""
        assert await pieces.next(0) == ""
        says.held.set()
        assert [await pieces.next(5) for _ in range(3)] == ["a", "b", None]
    assert says.running == 0


async def test_a_piece_that_is_there_is_given_whatever_the_time() -> None:
    says = ScriptedLanguageModel(["a", "b"])
    async with ReadAhead(says.answer([], Sampling())) as pieces:
        await until(lambda: says.ended == 1)
        assert [await pieces.next(-1) for _ in range(3)] == ["a", "b", None]


async def test_what_the_source_raises_comes_after_what_it_gave() -> None:
    says = ScriptedLanguageModel(["a", "b"])
    says.failure, says.fails_after = TimeoutError("of its own"), 1
    async with ReadAhead(says.answer([], Sampling())) as pieces:
        assert await pieces.next(5) == "a"
        with pytest.raises(TimeoutError, match="of its own"):
            await pieces.next(5)
