# ruff: noqa: T201
"""Uses the whole public API; `mypy --strict` must accept it, and each type must be what it says."""

from __future__ import annotations

import array
import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

import grpc
import grpc.aio

from taste.v1.common_pb2 import AudioClip, Segment
from taste.v1.dialogue_pb2 import ReplyResponse
from taste.v1.taste_pb2 import DetokenizeResponse, GetModelInfoResponse, StreamingResult, TokenizeResponse
from taste_grpc_client import (
    AnswerVoice,
    AsyncConversation,
    AsyncResultStream,
    AsyncSpeechStream,
    AsyncTasteClient,
    AudioSource,
    AuthenticationError,
    BinaryFile,
    CallCancelledError,
    Conversation,
    ConversationEndedError,
    ConversationError,
    ConversationEvent,
    ConversationOptions,
    DeadlineExceededError,
    Emit,
    ErrorCode,
    Failure,
    FieldViolation,
    FinalTranscript,
    GenerateOptions,
    GoingAway,
    IdleError,
    Interrupted,
    InvalidArgumentError,
    LlmToken,
    MarkReached,
    MessageTooLargeError,
    MicrophoneAudio,
    ModelError,
    Notice,
    OnResult,
    OverloadedError,
    PartialTranscript,
    PcmEncoding,
    PemSource,
    Phase,
    PhaseChanged,
    ReplyOptions,
    ResultStream,
    Retry,
    RoleName,
    SampleArray,
    ServerError,
    Speaker,
    SpeechChunk,
    SpeechComplete,
    SpeechStream,
    SpokenText,
    Started,
    TasteClient,
    TasteClientError,
    TasteFileError,
    Tls,
    TlsError,
    TurnMetrics,
    UnavailableError,
    UnimplementedError,
    WavWriter,
    Word,
    audio_clip,
    audio_segment,
    text_segment,
    token_segment,
    write_wav,
)


def connections() -> list[TasteClient]:
    return [
        TasteClient(),
        TasteClient("example.org:443", tls=True, token="secret", timeout_s=30),
        TasteClient(tls=Tls(ca_file=b"pem", cert_file="c.pem", key_file=Path("k.pem"), server_name="x")),
        TasteClient(retry=Retry(max_attempts=3, initial_backoff_s=0.1, codes=(grpc.StatusCode.UNAVAILABLE,))),
        TasteClient("10.0.0.1:50051", token="secret", allow_plaintext_token=True, retry=None),
        TasteClient(channel=grpc.insecure_channel("localhost:50051")),
    ]


def sources() -> list[AudioSource]:
    return ["x.wav", Path("x.wav"), io.BytesIO(), b"RIFF", array.array("h"), array.array("f"), [0.5], [1], AudioClip()]


def protocols(file: BinaryFile, samples: SampleArray, pem: PemSource) -> list[AudioClip]:
    Tls(ca_file=pem)
    return [audio_clip(file), audio_clip(samples, 16000)]


def converse(client: TasteClient, emit: Emit, encoding: PcmEncoding, role: RoleName, speaker: Speaker) -> float:
    assert_type(client.model_info(timeout_s=1.0), GetModelInfoResponse)
    heard = client.tokenize("x.wav", text="hello")
    assert_type(heard, TokenizeResponse)
    client.tokenize([0, 1], text_ids=range(3), sample_rate_hz=16000)
    history = [text_segment("Be brief.", "system"), token_segment(heard, role), audio_segment("x.wav", transcript="hi")]
    options: GenerateOptions = {"seed": 1, "text_top_p": 0.0}
    with client.generate(history, emit=emit, **options) as results:
        assert_type(results, ResultStream[StreamingResult])
        segments = [result.segment for result in results if result.HasField("segment")]
    assert_type(segments, list[Segment])
    for chunk in client.detokenize(segments, speaker=speaker, sample_rate_hz=24000, encoding=encoding, seed=1):
        assert_type(chunk, DetokenizeResponse)
        assert_type(chunk.audio, bytes)
    client.detokenize(more(), resume_state=b"state").cancel()
    client.generate(text_segment("hi"), emit=4)
    tell: OnResult = print
    with client.speak(history, speaker=heard.speaker_embedding, on_result=tell, max_length=9) as speech:
        assert_type(speech, SpeechStream)
        length_ms = write_wav("answer.wav", speech)
        assert_type(speech.results, list[StreamingResult])
    keep(client, heard, speech.results)
    ask(client)
    return length_ms


def ask(client: TasteClient) -> str:
    options: ReplyOptions = {"chunk_id": "q-1", "mode": "conversation", "temperature": 0.0, "chunk_size_words": 2}
    client.reply([0, 1], sample_rate_hz=16000, mode="transcription").cancel()
    with client.reply("x.wav", timeout_s=9, **options) as answer:
        assert_type(answer, ResultStream[ReplyResponse])
        return "".join(chunk.text for chunk in answer if chunk.success)


def more() -> Iterator[Segment | SpokenText]:
    yield text_segment("a")
    yield SpokenText([Word("a", (1, 2))])


def keep(client: TasteClient, heard: TokenizeResponse, results: list[StreamingResult]) -> None:
    info = client.model_info()
    text = SpokenText.from_tokenized(heard, info)
    assert_type(text, SpokenText)
    said = SpokenText.from_results(results, info, speaker=heard.speaker_embedding)
    said.require_model(info)
    text.replace_word(0, "Bye")
    text.insert_word(1, "now", text.words[0].codes)
    assert_type(text.delete_word(0), Word)
    assert_type(text.words[0].codes, tuple[int, ...])
    assert_type(text.speaker, tuple[float, ...] | None)
    text.save(Path("x.taste.json"))
    try:
        print(SpokenText.load("x.taste.json").text, said.audio_ms)
    except TasteFileError as error:
        print(error.path, error.description)
    client.generate([text.segment("user")])
    with WavWriter(io.BytesIO()) as writer:
        for chunk in client.detokenize(text):
            writer.write(chunk)
        assert_type(writer.duration_ms, float)


def explain(error: TasteClientError) -> str:
    assert_type(error.violations, tuple[FieldViolation, ...])
    assert_type(error.retry_after_s, float | None)
    kinds: tuple[type[TasteClientError], ...] = (
        AuthenticationError,
        CallCancelledError,
        ConversationEndedError,
        ConversationError,
        DeadlineExceededError,
        IdleError,
        InvalidArgumentError,
        MessageTooLargeError,
        ModelError,
        OverloadedError,
        ServerError,
        TlsError,
        UnavailableError,
        UnimplementedError,
    )
    return f"{error.field} {error.reason} {error.request_id} {error.message} {isinstance(error, kinds)}"


async def converse_async(speaker: Speaker) -> None:
    async with AsyncTasteClient("localhost:50051", tls=None, token=None, retry=Retry(), timeout_s=None) as client:
        assert_type(await client.model_info(), GetModelInfoResponse)
        heard = await client.tokenize(audio_clip("x.wav"))
        assert_type(heard, TokenizeResponse)
        answer = client.generate(text_segment("hi"), emit="sentence", seed=1)
        assert_type(answer, AsyncResultStream[StreamingResult])
        async for result in answer:
            assert_type(result, StreamingResult)
        async with client.detokenize(more_async(), speaker=speaker) as chunks:
            async for chunk in chunks:
                assert_type(chunk, DetokenizeResponse)
        speech = client.speak(text_segment("hi"), speaker=speaker, on_result=lambda each: print(each.index))
        assert_type(speech, AsyncSpeechStream)
        async for chunk in speech:
            assert_type(chunk.format.sample_rate_hz, int)
        client.detokenize(SpokenText.from_results(speech.results)).cancel()
        async with client.reply("x.wav", system_prompt="Be brief.", max_new_tokens=9, top_p=0.5) as words:
            assert_type(words, AsyncResultStream[ReplyResponse])
            async for each in words:
                assert_type(each.text, str)
    AsyncTasteClient(channel=grpc.aio.insecure_channel("localhost:50051"))


def talk_live(client: TasteClient, audio: MicrophoneAudio, voice: AnswerVoice, options: ConversationOptions) -> str:
    with client.converse(sample_rate_hz=48_000, channels=2, voice=voice, timeout_s=60, **options) as talk:
        assert_type(talk, Conversation)
        assert_type(talk.started, Started | None)
        talk.send_audio(audio)
        talk.send_audio(b"\0\0")
        talk.stop()
        for event in talk:
            assert_type(event, ConversationEvent)
            print(describe(event))
            if isinstance(event, SpeechChunk):
                talk.ack(event.turn, event.duration_ms)
        return talk.resume_token or ""


def describe(event: ConversationEvent) -> str:
    match event:
        case Started(session_id=name, resumed=resumed):
            return f"{name} {resumed}"
        case PhaseChanged(turn=turn, phase=phase):
            assert_type(phase, Phase)
            return f"{turn} {phase is Phase.COMPLETE}"
        case PartialTranscript(text=text) | FinalTranscript(text=text) | LlmToken(text=text):
            return text
        case SpeechChunk():
            assert_type(event.audio, bytes)
            assert_type(event.phrase_text, str | None)
            return event.encoding
        case SpeechComplete() | TurnMetrics():
            return str(event.turn + 1)
        case Interrupted(heard_text=text):
            return text
        case MarkReached(id=name):
            return name
        case Notice(turn=about, message=text):
            assert_type(about, int | None)
            return text
        case Failure(code=code):
            assert_type(code, ErrorCode)
            return code.value
        case GoingAway(resume_token=token):
            return token


async def talk_live_async(client: AsyncTasteClient) -> ErrorCode | None:
    try:
        async with client.converse(encoding="float32le", language="en", system_prompt="Be brief.") as talk:
            assert_type(talk, AsyncConversation)
            for work in (talk.send_audio([0.5]), talk.say("hi"), talk.credit(1000), talk.ack(0, 1.5), talk.mark("x")):
                await work
            await talk.stop()
            await talk.cancel()
            await talk.half_close()
            async for event in talk:
                assert_type(event, ConversationEvent)
    except ConversationEndedError as ended:
        print(ended.code)
    except ConversationError as error:
        assert_type(error.error_code, ErrorCode)
        return error.error_code
    return None


async def more_async() -> AsyncIterator[Segment | SpokenText]:
    yield text_segment("a")


if __name__ == "__main__":
    try:
        converse(connections()[0], "word", "float32le", "user", [0.5])
    except TasteClientError as caught:
        print(explain(caught))
    talk_live(connections()[0], [0], "joe", {"barge_in": False, "vad_silence_ms": 300})
    asyncio.run(converse_async("voice.wav"))
    asyncio.run(talk_live_async(AsyncTasteClient()))
