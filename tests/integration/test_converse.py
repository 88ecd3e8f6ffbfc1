"""Live conversations over gRPC, with the recogniser, the language model and the voice that packages ship."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import grpc
import jiwer
import numpy as np
import pytest

from taste.v1 import common_pb2, dialogue_pb2
from taste_grpc.audio import resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.local import LocalDialogue
from taste_grpc.speech import MoonshineRecogniser, PiperVoice
from tests.support.conversing import RATE_HZ, TURN, TYPED, Talk, calling, start, talking
from tests.support.recording_engine import RecordingEngine
from tests.support.recordings import best_of_times
from tests.support.served import Served, served

HARVARD = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "The boy was there when the sun rose.",
    "A rod is used to catch pink salmon.",
    "The source of the huge river is the clear spring.",
    "Kick the ball straight and follow through.",
    "Help the woman get back to her feet.",
    "A pot of tea helps to pass the evening.",
    "Smoky fires lack flame and heat.",
    "The soft cushion broke the man's fall.",
    "The salt breeze came across from the sea.",
    "The girl at the booth sold fifty bonds.",
)
"""Harvard sentences, lists 1 and 2."""
STORY = "Tell me a story about a fox and a crow, in at least five sentences."
_PLAIN = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(RecordingEngine, make_dialogue=LocalDialogue, stream={"log_latency": False}) as running:
        yield running


@pytest.fixture(scope="module")
def recogniser() -> MoonshineRecogniser:
    return MoonshineRecogniser()


@pytest.fixture(scope="module")
def speech() -> Float32Array:
    return best_of_times(RATE_HZ)


def dialogue(server: Served) -> LocalDialogue:
    return server.live.server._dialogue  # type: ignore[return-value]


async def nothing_left(server: Served) -> None:
    async with asyncio.timeout(10):
        while dialogue(server).conversations.open_sessions:
            await asyncio.sleep(0.01)


async def spoken(sentences: Sequence[str]) -> list[Float32Array]:
    """Each of `sentences` in the voice of the server, at 16 kHz and the same each time."""
    voice = PiperVoice(deterministic=True)
    await voice.start()
    clips = [np.concatenate([piece async for piece in voice.speak(sentence)]) for sentence in sentences]
    await voice.aclose()
    return [resample(clip, voice.sample_rate_hz, RATE_HZ) for clip in clips]


def words_wrong(said: list[str], heard: list[str]) -> float:
    return jiwer.wer([_PLAIN(text) for text in said], [_PLAIN(text) for text in heard])


async def test_a_spoken_turn_from_its_first_word_to_its_end(server: Served, speech: Float32Array) -> None:
    async with talking(server.address, start(options={"max_new_tokens": 40})) as talk:
        await talk.say(speech, paced=True)
        await talk.until_idle(0)
        assert talk.phases(0) == TURN[:-1]
        assert talk.phases(1) == ["IDLE"]
        partials = [partial.text for partial in talk.all("partial_transcript", 0)]
        assert partials
        assert all(one != next_one for one, next_one in itertools.pairwise(partials))
        (final,) = talk.all("final_transcript", 0)
        assert words_wrong(["It was the best of times, it was the worst of times."], [final.text]) <= 0.1
        assert talk.answer(0).strip()
        assert talk.is_done(0)
        assert np.sqrt(np.mean(talk.audio(0) ** 2)) > 0.01
        (metrics,) = talk.all("turn_metrics", 0)
        times = [
            metrics.first_partial_ms,
            metrics.final_transcript_ms,
            metrics.first_token_ms,
            metrics.first_audio_ms,
        ]
        assert times == sorted(times)
        assert times[0] > 0
        assert not talk.all("error")
    await nothing_left(server)


async def test_a_long_answer_streams_in_order_and_nothing_of_it_is_lost(server: Served) -> None:
    async with talking(server.address, start(options={"max_new_tokens": 150})) as talk:
        await talk.type(STORY)
        await talk.until_idle(0)
        assert talk.phases(0) == TYPED[:-1]
        kinds = [response.WhichOneof("event") for response in talk.told]
        tokens = [token for token in talk.all("llm_token", 0) if token.text]
        assert len(tokens) >= 5
        last_token = max(
            i for i, r in enumerate(talk.told) if r.WhichOneof("event") == "llm_token" and r.llm_token.text
        )
        assert kinds.index("tts_chunk") < last_token
        chunks = talk.all("tts_chunk", 0)
        assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
        lengths = [len(chunk.audio) // 2 for chunk in chunks]
        assert [chunk.first_sample for chunk in chunks] == [sum(lengths[:i]) for i in range(len(chunks))]
        phrases = [chunk.phrase_text for chunk in chunks if chunk.HasField("phrase_text")]
        assert [chunk.phrase_index for chunk in chunks if chunk.HasField("phrase_text")] == list(range(len(phrases)))
        assert " ".join(phrases).split() == talk.answer(0).split()
        (complete,) = talk.all("tts_complete", 0)
        assert complete.chunks == len(chunks)


async def test_speech_over_an_answer_interrupts_it_and_is_the_next_turn(server: Served, speech: Float32Array) -> None:
    async with talking(server.address, start(options={"max_new_tokens": 150})) as talk:
        talk.acks = False
        await talk.type(STORY)
        await talk.until(lambda: len(talk.all("tts_chunk", 0)) > 4)
        await talk.send(playback_ack=dialogue_pb2.PlaybackAck(turn_index=0, played_ms=700))
        await talk.say(speech)
        (interruption,) = await talk.until(lambda: talk.all("interruption", 0))
        assert interruption.heard_ms == 700
        assert not interruption.estimated
        first_phrase = talk.all("tts_chunk", 0)[0].phrase_text
        assert first_phrase.startswith(interruption.heard_text)
        assert interruption.heard_text != first_phrase
        assert not talk.is_done(0)
        await talk.until(lambda: talk.all("final_transcript", 1))
        talk.acks = True
        await talk.until_phase("RESPONDING", 1)
        assert talk.phases(0) == TYPED[:-1]


async def test_a_cancelled_answer_is_over_at_once(server: Served) -> None:
    async with talking(server.address) as talk:
        await talk.type(STORY)
        await talk.until(lambda: talk.all("tts_chunk", 0))
        await talk.send(cancel=dialogue_pb2.ConverseCancel())
        await talk.until_idle(0)
        assert talk.phases(0)[-1] == "COMPLETE"
        (error,) = talk.all("error", 0)
        assert (error.code, error.recoverable) == (dialogue_pb2.CONVERSE_ERROR_CODE_CANCELLED, True)
        assert not talk.is_done(0)
        await talk.type("Say hello.")
        await talk.until_idle(1)
        assert talk.is_done(1)


async def test_half_close_finishes_the_answer_and_ends_the_call(server: Served) -> None:
    async with talking(server.address, start(options={"max_new_tokens": 30})) as talk:
        talk.acks = False
        await talk.type("Say hello.")
        await talk.call.done_writing()
        assert await talk.ended() is grpc.StatusCode.OK
        assert talk.phases() == TYPED
        assert talk.is_done(0)
        assert talk.all("tts_complete", 0)
    await nothing_left(server)


async def test_marks_come_back_once_what_went_before_was_processed(server: Served, speech: Float32Array) -> None:
    async with talking(server.address) as talk:
        await talk.say(speech, silence_s=0.0)
        await talk.send(mark=dialogue_pb2.Mark(id="spoken"))
        await talk.send(mark=dialogue_pb2.Mark(id=""))
        await talk.until(lambda: len(talk.all("mark")) == 2)
        assert [mark.id for mark in talk.all("mark")] == ["spoken", ""]
        assert talk.phases() == ["CAPTURING"]
        await talk.send(stop=dialogue_pb2.ConverseStop())
        await talk.until(lambda: talk.all("final_transcript", 0))


@pytest.mark.timeout(600)  # a minute on two cores that have nothing else to do
async def test_what_is_said_is_understood_and_what_is_answered_is_heard(
    server: Served, recogniser: MoonshineRecogniser
) -> None:
    """The words are right, both ways, for twenty sentences."""
    understood, answers, heard = [], [], []
    for clip in await spoken(HARVARD):
        async with talking(
            server.address, start(options={"max_new_tokens": 24})
        ) as talk:  # one each: answers do not repeat themselves
            await talk.say(clip, silence_s=0.2)
            await talk.send(stop=dialogue_pb2.ConverseStop())
            await talk.until_idle(0)
            understood.append(talk.all("final_transcript", 0)[0].text)
            answers.append(talk.answer(0))
            heard.append(await asyncio.to_thread(recogniser.transcribe, talk.audio(0)))
    assert words_wrong(list(HARVARD), understood) <= 0.10
    assert words_wrong(answers, heard) <= 0.15


async def test_five_conversations_at_once_do_not_mix(server: Served) -> None:
    sentences = HARVARD[4:9]

    async def converse(clip: Float32Array) -> tuple[str, str]:
        async with talking(server.address, start(options={"max_new_tokens": 24})) as talk:
            await talk.say(clip)
            await talk.until_idle(0)
            assert talk.phases(0) == TURN[:-1]
            return talk.all("final_transcript", 0)[0].text, talk.all("started")[0].session_id

    results = await asyncio.gather(*(converse(clip) for clip in await spoken(sentences)))
    for sentence, (text, _) in zip(sentences, results, strict=True):
        assert min(sentences, key=lambda other: words_wrong([other], [text])) == sentence
    assert len({session for _, session in results}) == 5


async def test_the_output_is_as_the_client_wants_it(server: Served) -> None:
    voice = dialogue_pb2.Voice(out_sample_rate_hz=8_000, encoding=common_pb2.AUDIO_ENCODING_FLOAT32LE)
    async with talking(server.address, start(voice=voice, options={"max_new_tokens": 12})) as talk:
        (started,) = talk.all("started")
        assert started.output_format.sample_rate_hz == 8_000
        assert started.output_format.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
        await talk.type("Say hello.")
        await talk.until_idle(0)
        chunks = talk.all("tts_chunk", 0)
        samples = np.frombuffer(b"".join(chunk.audio for chunk in chunks), "<f4")
        assert 1000 * len(samples) / 8_000 == pytest.approx(talk.all("tts_complete", 0)[0].audio_ms)
        assert 0 < np.abs(samples).max() <= 1


async def test_silence_without_end_costs_nothing_and_says_nothing(server: Served, speech: Float32Array) -> None:
    async with talking(server.address) as talk:
        await talk.say(np.zeros(60 * RATE_HZ, np.float32))
        await talk.send(mark=dialogue_pb2.Mark(id="through"))
        await talk.until(lambda: talk.all("mark"))
        assert talk.phases() == []
        await talk.say(speech)
        await talk.until(lambda: talk.all("final_transcript", 0))


async def test_speech_without_end_is_cut_once_and_answered(server: Served, speech: Float32Array) -> None:
    async with talking(server.address, start(options={"max_utterance_ms": 5_000, "max_new_tokens": 12})) as talk:
        await talk.say(np.tile(speech[RATE_HZ // 2 :], 5), silence_s=0.0)
        await talk.until(lambda: talk.all("error"))
        (error,) = talk.all("error")
        assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_MAX_DURATION_EXCEEDED
        assert error.recoverable
        await talk.until_idle(0)
        assert talk.is_done(0)


VIOLATIONS = {
    "audio before start": (None, {"audio": b"\0\0"}),
    "an empty message first": (None, {}),
    "a second start": (start(), {"start": start().start}),
    "an empty message": (start(), {}),
    "65 KiB of audio": (start(), {"audio": bytes(65 << 10)}),
    "half a sample": (start(), {"audio": b"\0\0\0"}),
    "no audio": (start(), {"audio": b""}),
    "a typed turn of blanks": (start(), {"text_turn": dialogue_pb2.TextTurn(text="  ")}),
    "a typed turn of 9 KiB": (start(), {"text_turn": dialogue_pb2.TextTurn(text="a" * 9_000)}),
    "a control character": (start(), {"text_turn": dialogue_pb2.TextTurn(text="a\x00b")}),
    "a negative ack": (start(), {"playback_ack": dialogue_pb2.PlaybackAck(played_ms=-1)}),
    "a negative credit": (start(), {"playback_credit": dialogue_pb2.PlaybackCredit(max_unplayed_ms=-1)}),
    "a long mark": (start(), {"mark": dialogue_pb2.Mark(id="m" * 257)}),
    "MP3": (
        None,
        {
            "start": dialogue_pb2.ConverseStart(
                input_format=common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_MP3, sample_rate_hz=16_000)
            )
        },
    ),
    "no format": (None, {"start": dialogue_pb2.ConverseStart()}),
    "nine channels": (
        None,
        {
            "start": dialogue_pb2.ConverseStart(
                input_format=common_pb2.AudioFormat(
                    encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=16_000, channels=9
                )
            )
        },
    ),
    "a silence out of range": (None, {"start": start(options={"vad_silence_ms": 100}).start}),
    "an answer of no token": (None, {"start": start(options={"max_new_tokens": 0}).start}),
    "no language": (None, {"start": start(language="??").start}),
    "a voice nobody has": (None, {"start": start(voice=dialogue_pb2.Voice(name="nobody")).start}),
    "an unknown resume token": (None, {"start": start(resume_token="never given").start}),
    "a prompt of 9 KiB": (None, {"start": start(system_prompt="a" * 9_000).start}),
}


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_what_may_not_come_ends_the_call_with_one_error(server: Served, case: str) -> None:
    first, event = VIOLATIONS[case]
    async with calling(server.address) as talk:
        if first is not None:
            await talk.send(first)
        await talk.send(dialogue_pb2.ConverseRequest(**event))
        assert await talk.ended() is grpc.StatusCode.INVALID_ARGUMENT
        (error,) = talk.all("error")
        assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_PROTOCOL_VIOLATION
        assert not error.recoverable
        assert talk.told[-1].WhichOneof("event") in ("error", "turn_metrics")
    await nothing_left(server)
    async with talking(server.address) as talk:
        assert talk.all("started")


@pytest.mark.parametrize("rate_hz", [0, 7_999, 192_000])
async def test_another_start_may_follow_one_with_a_rate_that_cannot_be(server: Served, rate_hz: int) -> None:
    async with calling(server.address) as talk:
        await talk.send(start(rate_hz))
        (error,) = await talk.until(lambda: talk.all("error"))
        assert error.code == dialogue_pb2.CONVERSE_ERROR_CODE_UNSUPPORTED_SAMPLE_RATE
        assert error.recoverable
        await talk.send(start(48_000))
        await talk.until(lambda: talk.all("started"))


async def test_a_language_that_nobody_here_knows_is_refused(server: Served) -> None:
    async with calling(server.address) as talk:
        await talk.send(start(language="fr"))
        assert await talk.ended() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("phase", ["IDLE", "CAPTURING", "THINKING", "RESPONDING"])
async def test_who_hangs_up_leaves_nothing_behind(server: Served, speech: Float32Array, phase: str) -> None:
    async with talking(server.address) as talk:
        if phase == "CAPTURING":
            await talk.say(speech, silence_s=0.0)
        elif phase != "IDLE":
            await talk.type(STORY)
        if phase != "IDLE":
            await talk.until_phase(phase, 0)
        talk.call.cancel()
    await nothing_left(server)
    async with talking(server.address, start(options={"max_new_tokens": 8})) as talk:
        await talk.type("Say hello.")
        await talk.until_idle(0)
        assert talk.is_done(0)


async def test_a_deadline_ends_a_conversation(server: Served) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        from taste.v1 import dialogue_pb2_grpc

        talk = Talk(dialogue_pb2_grpc.DialogueServiceStub(channel).Converse(timeout=0.7))
        await talk.send(start())
        assert await talk.ended() is grpc.StatusCode.DEADLINE_EXCEEDED
    await nothing_left(server)
