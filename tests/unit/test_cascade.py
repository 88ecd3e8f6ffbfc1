"""A language model and a voice, at the same time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue import AnswerError, Cascade, CascadeSettings, Message, Question, Sampling
from taste_grpc.dialogue.cascade import HELD_BACK
from taste_grpc.dialogue.events import ErrorCode, VoiceChoice
from taste_grpc.errors import LanguageModelError, SpeechError
from tests.support.scripted import ScriptedModel, ScriptedVoice, passes, time_passes, until

QUESTION = Question([Message("user", "Why?")], VoiceChoice(), 77)


@dataclass
class Sink:
    """Keeps what it gets; with `held` cleared it takes no audio."""

    log: list[tuple[str, str]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.held.set()
        self.room.set()

    async def token(self, text: str) -> None:
        self.log.append(("token", text))
        await self.room.wait()

    async def audio(self, phrase_index: int, phrase: str, samples: Float32Array, sample_rate_hz: int) -> None:
        assert sample_rate_hz == 16_000
        self.log.append(("audio", phrase))
        self.indices.append(phrase_index)
        await self.held.wait()

    def phrase_failed(self, phrase: str, why: str) -> None:
        self.failed.append((phrase, why))

    def notice(self, message: str) -> None:
        self.notices.append(message)

    @property
    def text(self) -> str:
        return "".join(text for kind, text in self.log if kind == "token")

    @property
    def phrases(self) -> list[str]:
        return list(dict.fromkeys(text for kind, text in self.log if kind == "audio"))


@dataclass
class Parts:
    model: ScriptedModel = field(default_factory=ScriptedModel)
    voice: ScriptedVoice = field(default_factory=lambda: ScriptedVoice(ms=2))
    sink: Sink = field(default_factory=Sink)
    settings: CascadeSettings = field(default_factory=CascadeSettings)

    async def answer(self) -> None:
        async with asyncio.timeout(60):
            await Cascade(self.model, self.voice, self.settings).answer(QUESTION, self.sink)

    @property
    def is_closed(self) -> bool:
        return self.model.open == self.voice.open == 0


def sentences(count: int) -> list[str]:
    return [f"This is sentence {number}. " for number in range(count)]


async def test_phrases_are_spoken_in_order_and_none_is_lost_in_a_long_reply() -> None:
    parts = Parts(ScriptedModel(sentences(120)))
    await parts.answer()
    assert parts.sink.text == "".join(sentences(120))
    assert parts.sink.phrases == [sentence.strip() for sentence in sentences(120)]
    assert sorted(parts.sink.indices) == parts.sink.indices
    assert set(parts.sink.indices) == set(range(120))
    assert parts.is_closed


async def test_the_question_goes_to_the_model_as_it_is() -> None:
    parts = Parts(settings=CascadeSettings(temperature=0.1, top_p=0.2))
    await parts.answer()
    assert parts.model.asked == [[Message("user", "Why?")]]
    assert parts.model.samplings == [Sampling(77, 0.1, 0.2)]


async def test_the_first_audio_comes_before_the_last_token() -> None:
    goes_on = asyncio.Event()
    parts = Parts(ScriptedModel(["First. ", "Second. ", goes_on, "Last."]))
    answering = asyncio.create_task(parts.answer())
    await until(lambda: ("audio", "First.") in parts.sink.log)
    assert "Last" not in parts.sink.text
    goes_on.set()
    await answering
    assert parts.sink.phrases == ["First.", "Second.", "Last."]


async def test_words_that_wait_for_the_end_of_their_phrase_are_spoken_after_a_gap() -> None:
    goes_on = asyncio.Event()
    parts = Parts(ScriptedModel(["well then ", goes_on, "that is it"]))
    answering = asyncio.create_task(parts.answer())
    await until(lambda: parts.sink.phrases)
    assert parts.sink.phrases == ["well then"]
    goes_on.set()
    await answering
    assert parts.sink.phrases == ["well then", "that is it"]


async def test_a_model_that_is_faster_than_the_voice_is_not_read_further_which_is_told_once() -> None:
    parts = Parts(ScriptedModel(sentences(40)), settings=CascadeSettings(max_pending_phrases=2))
    parts.sink.held.clear()
    answering = asyncio.create_task(parts.answer())
    await until(lambda: parts.sink.notices)
    await passes(200)
    assert len(parts.model.given) <= 2 + 4
    assert parts.sink.notices == [HELD_BACK]
    parts.sink.held.set()
    await answering
    assert parts.sink.phrases == [sentence.strip() for sentence in sentences(40)]
    assert parts.sink.notices == [HELD_BACK]


async def test_a_client_without_room_for_text_holds_the_model_back() -> None:
    parts = Parts(ScriptedModel(sentences(10)))
    parts.sink.room.clear()
    answering = asyncio.create_task(parts.answer())
    await passes(100)
    assert len(parts.model.given) == 1
    parts.sink.room.set()
    await answering
    assert len(parts.model.given) == 10


@pytest.mark.parametrize(
    ("steps", "limits", "message"),
    [
        ([None], {"llm_first_token_timeout_s": 0.02}, "0.02 s for its first token"),
        (["One. ", None], {"llm_timeout_s": 0.02}, "0.02 s for its answer"),
        ([None], {"llm_timeout_s": 0.02}, "0.02 s for its answer"),
    ],
)
async def test_a_model_that_stalls_is_given_up(steps: list[str | None], limits: dict[str, float], message: str) -> None:
    parts = Parts(settings=CascadeSettings(**limits))  # type: ignore[arg-type]
    parts.model.steps = [asyncio.Event() if step is None else step for step in steps]
    with pytest.raises(AnswerError, match=message) as raised:
        await parts.answer()
    assert raised.value.code is ErrorCode.LLM_TIMEOUT
    assert parts.is_closed


async def test_time_in_which_the_model_waits_for_the_voice_is_not_the_models() -> None:
    parts = Parts(
        ScriptedModel(sentences(20)),
        settings=CascadeSettings(max_pending_phrases=1, llm_timeout_s=10, tts_timeout_s=600),
    )
    parts.sink.held.clear()
    answering = asyncio.create_task(parts.answer())
    await until(lambda: parts.sink.notices)
    time_passes(20)
    parts.sink.held.set()
    await answering
    assert len(parts.sink.phrases) == 20


@pytest.mark.parametrize("steps", [[], ["Half. "], ["Half an ans"]])
async def test_a_model_that_fails(steps: list[str]) -> None:
    parts = Parts(ScriptedModel([*steps, LanguageModelError("out of tokens")]))
    with pytest.raises(AnswerError, match="out of tokens") as raised:
        await parts.answer()
    assert raised.value.code is ErrorCode.LLM_FAIL
    assert parts.is_closed


async def test_a_fault_of_a_part_is_not_dressed_up() -> None:
    parts = Parts(ScriptedModel(["Half. ", ZeroDivisionError("oops")]))
    with pytest.raises(ZeroDivisionError):
        await parts.answer()
    parts = Parts(voice=ScriptedVoice(before={"Well.": KeyError("oops")}))
    with pytest.raises(KeyError):
        await parts.answer()
    assert parts.is_closed


async def test_a_phrase_that_takes_too_long_is_skipped_and_the_rest_goes_on() -> None:
    parts = Parts(ScriptedModel(sentences(4)), settings=CascadeSettings(tts_timeout_s=0.02))
    parts.voice.before = {"This is sentence 1.": asyncio.Event()}
    await parts.answer()
    assert parts.sink.failed == [("This is sentence 1.", "the voice took longer than 0.02 s")]
    assert parts.sink.phrases == [f"This is sentence {number}." for number in (0, 2, 3)]
    assert sorted(set(parts.sink.indices)) == [0, 1, 2]
    assert parts.is_closed


async def test_the_time_of_a_phrase_is_that_of_all_its_pieces() -> None:
    parts = Parts(ScriptedModel(["Slow. ", "Next."]), settings=CascadeSettings(tts_timeout_s=0.02))
    parts.voice.halfway = {"Slow.": asyncio.Event()}
    await parts.answer()
    assert [phrase for phrase, _ in parts.sink.failed] == ["Slow."]
    assert parts.sink.phrases == ["Slow.", "Next."]
    assert parts.sink.indices == [0, 1, 1]  # the audio of what was said of the first is not the second's


async def test_the_time_a_client_takes_is_not_the_voices() -> None:
    parts = Parts(ScriptedModel(["One."]), settings=CascadeSettings(tts_timeout_s=10))
    more = parts.voice.halfway["One."] = asyncio.Event()
    parts.sink.held.clear()
    answering = asyncio.create_task(parts.answer())
    await until(lambda: parts.sink.phrases)
    time_passes(20)
    parts.sink.held.set()
    await passes(100)
    more.set()
    await answering
    assert parts.sink.failed == []
    assert parts.sink.indices == [0, 0]


@pytest.mark.parametrize("where", ["before", "halfway"])
async def test_a_phrase_that_fails_is_skipped_and_the_rest_goes_on(where: str) -> None:
    voice = ScriptedVoice(ms=2, **{where: {"This is sentence 0.": SpeechError("no breath")}})  # type: ignore[arg-type]
    parts = Parts(ScriptedModel(sentences(3)), voice)
    await parts.answer()
    assert parts.sink.failed == [("This is sentence 0.", "no breath")]
    assert voice.spoken == [f"This is sentence {number}." for number in range(3)]
    by_index = dict(zip(parts.sink.indices, [text for kind, text in parts.sink.log if kind == "audio"], strict=True))
    assert list(by_index) == list(range(len(by_index)))
    assert set(by_index.values()) == set(parts.sink.phrases)


async def test_a_phrase_of_which_nothing_is_heard_has_no_number() -> None:
    @dataclass
    class Mute(ScriptedVoice):
        async def speak(self, text: str) -> AsyncGenerator[Float32Array]:
            async for samples in ScriptedVoice.speak(self, text):
                yield samples[:0] if text == "Hm." else samples

    parts = Parts(ScriptedModel(["Hm. ", "Yes."]), Mute(ms=2))
    await parts.answer()
    assert parts.sink.phrases == ["Yes."]
    assert set(parts.sink.indices) == {0}


async def test_an_answer_of_nothing_is_nothing() -> None:
    parts = Parts(ScriptedModel([]))
    await parts.answer()
    assert (parts.sink.log, parts.voice.spoken) == ([], [])


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_cancel_while_the_model_stalls_ends_it_even_if_it_complains() -> None:
    parts = Parts(ScriptedModel(["One. ", asyncio.Event()], on_close=LanguageModelError("connection lost")))
    answering = asyncio.create_task(parts.answer())
    await until(lambda: parts.sink.phrases)
    await cancel(answering)
    assert parts.is_closed


class RacingModel(ScriptedModel):
    """Fails at the very moment at which its answer is given up."""

    async def answer(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str]:
        await asyncio.sleep(0)
        self.answering.cancel()
        raise LanguageModelError("the endpoint is gone")
        yield ""

    answering: asyncio.Task[None]


async def test_a_model_that_fails_as_it_is_cancelled_leaves_no_exception_that_nobody_looked_at() -> None:
    unseen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    model = RacingModel()
    model.answering = asyncio.create_task(Parts(model=model).answer())
    with pytest.raises((asyncio.CancelledError, AnswerError)):
        await model.answering
    gc.collect()
    assert not unseen


@settings(max_examples=120, deadline=None)
@given(
    after=st.integers(0, 150),
    steps=st.lists(st.sampled_from(["One. ", "two ", "Three and four. ", "stall"]), max_size=8),
    stall=st.sampled_from(["sink", "voice", "halfway", None]),
    pending=st.integers(1, 3),
)
def test_a_cancel_at_any_point_leaves_nothing(
    after: int, steps: Sequence[str], stall: str | None, pending: int
) -> None:
    async def play() -> None:
        parts = Parts(settings=CascadeSettings(max_pending_phrases=pending))
        parts.model.steps = [asyncio.Event() if step == "stall" else step for step in steps]
        if stall == "sink":
            parts.sink.held.clear()
        elif stall == "voice":
            parts.voice.held.clear()
        elif stall == "halfway":
            parts.voice.halfway = {"One.": asyncio.Event()}
        answering = asyncio.create_task(parts.answer())
        await passes(after)
        await cancel(answering)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert parts.is_closed
        before = list(parts.sink.log)
        await passes()
        assert parts.sink.log == before

    asyncio.run(play())
