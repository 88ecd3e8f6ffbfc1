"""The Python client against a real server."""

from __future__ import annotations

import asyncio
import re
import threading
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.dialogue.local import LocalDialogue
from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.errors import OverloadedError as ServerOverloadedError
from taste_grpc.speech import sample_recordings
from taste_grpc_client import (
    AsyncTasteClient,
    AuthenticationError,
    DeadlineExceededError,
    IdleError,
    InvalidArgumentError,
    MessageTooLargeError,
    OverloadedError,
    Retry,
    SpokenText,
    TasteClient,
    Tls,
    TlsError,
    text_segment,
    token_segment,
    write_wav,
)
from tests.support import messages
from tests.support.certificates import Authority, ServerFiles
from tests.support.live_server import live_server, until
from tests.support.recording_engine import RecordingEngine
from tests.support.served import Served, served

TEXT = "good morning, everyone: it's 9 o'clock"
TOKEN = "correct-horse-battery-staple"
SAMPLES = messages.tone(1.5).tolist()


@pytest.fixture(scope="module")
def real(chat_checkpoint: Path) -> Iterator[Served]:
    with served(lambda: LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))) as server:
        yield server


@pytest.fixture(scope="module")
def client(real: Served) -> Iterator[TasteClient]:
    with TasteClient(real.address, timeout_s=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def heard(client: TasteClient) -> taste_pb2.TokenizeResponse:
    return client.tokenize(SAMPLES, text=TEXT, sample_rate_hz=16_000)


def sound(chunks: Any) -> bytes:
    return b"".join(chunk.audio for chunk in chunks)


# --- speaking ---------------------------------------------------------------------------------------------


def test_an_answer_is_spoken_while_it_is_generated_and_kept(
    client: TasteClient, heard: taste_pb2.TokenizeResponse, tmp_path: Path
) -> None:
    history = [text_segment("Be kind.", "system"), token_segment(heard, "user")]
    options: dict[str, Any] = {"seed": 3, "max_length": 20, "text_top_p": 0.9}
    stream = client.speak(history, speaker=heard.speaker_embedding, emit=4, sample_rate_hz=24_000, **options)
    length_ms = write_wav(tmp_path / "answer.wav", stream)
    assert stream.results[-1].is_complete
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert file.getframerate() == 24_000
        assert 1000 * file.getnframes() / 24_000 == pytest.approx(length_ms)
        spoken = file.readframes(file.getnframes())
    # the same as one call after the other
    generated = list(client.generate(history, emit=4, **options))
    assert [result.segment for result in generated] == [result.segment for result in stream.results]
    segments = [result.segment for result in generated if result.HasField("segment")]
    assert len(segments) > 1
    speech = client.detokenize(segments, speaker=heard.speaker_embedding, sample_rate_hz=24_000, seed=3)
    assert sound(speech) == spoken


async def test_both_clients_say_the_same(real: Served, heard: taste_pb2.TokenizeResponse) -> None:
    def ask(opened: Any) -> Any:
        return opened.speak(token_segment(heard), speaker=heard.speaker_embedding, seed=5, max_length=12)

    async with AsyncTasteClient(real.address, timeout_s=60) as opened:
        stream = ask(opened)
        said = b"".join([chunk.audio async for chunk in stream])
    with TasteClient(real.address, timeout_s=60) as blocking:
        other = await asyncio.to_thread(ask, blocking)
        assert await asyncio.to_thread(sound, other) == said
    assert [result.segment for result in other.results] == [result.segment for result in stream.results]
    assert len(said) > 1000


def test_a_model_that_does_not_speak(client: TasteClient, heard: taste_pb2.TokenizeResponse) -> None:
    options: dict[str, Any] = {"text_top_p": 0.0, "max_length": 5}
    first = next(iter(client.generate(token_segment(heard), **options))).segment.tokens.text_ids[0]
    stream = client.speak(token_segment(heard), speaker=heard.speaker_embedding, eos_id=first, **options)
    assert list(stream) == []
    assert [result.completion_reason for result in stream.results] == [taste_pb2.COMPLETION_REASON_NO_SPEECH]


def test_leaving_ends_the_work_of_both_calls(
    real: Served, client: TasteClient, heard: taste_pb2.TokenizeResponse
) -> None:
    options: dict[str, Any] = {"max_length": 4096, "extra_words": 1024, "eos_id": 0, "seed": 5}
    history = token_segment(heard)
    with client.speak(
        history, speaker=heard.speaker_embedding, emit=2, conversation_format="completion", **options
    ) as s:
        next(s)
        assert real.live.engine.stats().active_calls > 0
    real.run(until(lambda: real.live.engine.stats().active_calls == 0))


def test_what_one_of_the_calls_refuses_ends_the_other(
    real: Served, client: TasteClient, heard: taste_pb2.TokenizeResponse
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        list(client.speak(token_segment(heard), speaker=[1.0, 2.0]))
    assert refused.value.field == "config.speaker_embedding.values"
    assert refused.value.reason == "ERROR_REASON_INVALID_FIELD"
    assert refused.value.request_id
    with pytest.raises(InvalidArgumentError) as refused:
        list(client.speak(token_segment(heard), speaker=heard.speaker_embedding, max_length=0))
    assert refused.value.field == "max_length"
    real.run(until(lambda: real.live.engine.stats().active_calls == 0))


# --- text and codes ---------------------------------------------------------------------------------------


def test_saved_words_sound_as_what_was_heard(
    client: TasteClient, heard: taste_pb2.TokenizeResponse, tmp_path: Path
) -> None:
    info = client.model_info()
    SpokenText.from_tokenized(heard, info).save(tmp_path / "x.taste.json")
    text = SpokenText.load(tmp_path / "x.taste.json")
    text.require_model(info)
    assert text.text == TEXT
    as_heard = sound(client.detokenize([token_segment(heard)], speaker=heard.speaker_embedding, seed=1))
    assert sound(client.detokenize(text, seed=1)) == as_heard
    text.replace_word(1, "evening,")
    text.delete_word(0)
    text.insert_word(0, "fine", text.words[0].codes)
    assert text.text == "fine evening, everyone: it's 9 o'clock"
    assert sound(client.detokenize(text, seed=1)) != as_heard
    assert next(iter(client.generate([text.segment("user")], max_length=3))).index == 0


def test_every_answer_can_be_kept_and_sent_back(
    client: TasteClient, heard: taste_pb2.TokenizeResponse, tmp_path: Path
) -> None:
    path = tmp_path / "x.taste.json"
    for seed in range(12):
        options: dict[str, Any] = {"seed": seed, "text_top_p": 0.95, "text_temperature": 1.8, "max_length": 24}
        results = list(client.generate(token_segment(heard), emit="sentence", **options))
        text = SpokenText.from_results(results, speaker=heard.speaker_embedding)
        assert [word.text for word in text.words] == [
            word for result in results for word in result.segment.tokens.words
        ]
        text.save(path)
        assert SpokenText.load(path) == text
        if text.words:
            assert next(iter(client.generate(text.segment(), max_length=1, seed=1))).is_complete
    assert len(sound(client.detokenize(text, seed=1))) > 1000


def test_a_resumed_voice_needs_no_speaker(client: TasteClient, heard: taste_pb2.TokenizeResponse) -> None:
    text = SpokenText.from_tokenized(heard)
    *_, last = client.detokenize(text, seed=1)
    *_, resumed = client.detokenize(text, resume_state=last.resume_state)
    assert resumed.first_sample >= last.first_sample + len(last.audio) // 2


# --- what the server refuses, and when -----------------------------------------------------------------------


def test_a_refusal_names_its_field(client: TasteClient) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        list(client.generate([text_segment("fine"), text_segment(" ")]))
    assert refused.value.field == "segments[1].text"
    with pytest.raises(MessageTooLargeError):
        client.tokenize(bytes(17 << 20), text="hi", sample_rate_hz=16_000)


def test_a_deadline(client: TasteClient, heard: taste_pb2.TokenizeResponse) -> None:
    options: dict[str, Any] = {
        "max_length": 4096,
        "extra_words": 1024,
        "eos_id": 0,
        "conversation_format": "completion",
    }
    with pytest.raises(DeadlineExceededError):
        list(client.generate(token_segment(heard), seed=5, timeout_s=0.3, **options))


@pytest.fixture
def recording() -> Iterator[Callable[..., Served]]:
    """Starts servers over an engine that makes things up."""
    with ExitStack() as stack:
        yield lambda **flags: stack.enter_context(served(RecordingEngine, **flags))


def test_a_segment_that_does_not_come_in_time(recording: Callable[..., Served]) -> None:
    late = threading.Event()

    def segments() -> Iterator[common_pb2.Segment]:
        late.wait(30)
        yield messages.token_segment()

    with TasteClient(recording(limits={"max_idle_ms": 50}).address) as client, pytest.raises(IdleError) as idle:
        list(client.detokenize(segments(), speaker=[1.0] * 192))
    late.set()
    assert isinstance(idle.value, DeadlineExceededError)
    assert idle.value.reason == "ERROR_REASON_IDLE"


def test_a_server_with_a_certificate_and_tokens(recording: Callable[..., Served], tmp_path: Path) -> None:
    authority = Authority()
    files = ServerFiles(tmp_path, authority.issue("localhost"), client_ca=authority.pem)
    server = recording(tls=files.settings, tokens={"tests": TOKEN})
    target = f"localhost:{server.live.server.port}"
    own = authority.issue("tests")
    tls = Tls(authority.pem, own.certificate, own.key)
    with TasteClient(target, tls=tls, token=TOKEN) as client:
        assert client.model_info().model_id == "recording"
        assert len(list(client.speak(text_segment("hi"), speaker=[1.0] * 192))) == 4
    for token in (None, TOKEN[:-1]):
        with TasteClient(target, tls=tls, token=token) as client, pytest.raises(AuthenticationError) as refused:
            client.model_info()
        assert refused.value.reason == "ERROR_REASON_UNAUTHENTICATED"
        assert TOKEN[:-1] not in str(refused.value)
    with TasteClient(target, tls=Tls(Authority().pem)) as client, pytest.raises(TlsError):
        client.model_info()


async def test_calls_wait_until_the_model_is_loaded() -> None:
    engine = RecordingEngine()
    engine.load.clear()
    async with live_server(engine, wait=False) as live, AsyncTasteClient(live.server.address) as client:
        calls = [asyncio.ensure_future(client.model_info()), asyncio.ensure_future(spoken(client))]
        await asyncio.sleep(0.2)
        assert not any(call.done() for call in calls)
        engine.load.set()
        info, chunks = await asyncio.gather(*calls)
        assert info.model_id == "recording"
        assert [chunk.segment_index for chunk in chunks] == [0, 1]


async def spoken(client: AsyncTasteClient) -> list[taste_pb2.DetokenizeResponse]:
    async def segments() -> AsyncIterator[common_pb2.Segment]:
        for _ in range(2):
            yield messages.token_segment()

    return [chunk async for chunk in client.detokenize(segments(), speaker=[1.0] * 192)]


async def test_a_server_that_stays_full_says_so() -> None:
    engine = RecordingEngine()
    engine.failure = ServerOverloadedError("full", retry_after_ms=20)
    retry = Retry(max_attempts=3, initial_backoff_s=60)
    async with live_server(engine) as live, AsyncTasteClient(live.server.address, retry=retry, timeout_s=30) as client:
        with pytest.raises(OverloadedError, match="full") as refused:
            await anext(client.generate(text_segment("hi")))
        assert engine.events["generate"] == 3
        assert (refused.value.reason, refused.value.retry_after_s) == ("ERROR_REASON_OVERLOADED", 0.02)
        with pytest.raises(OverloadedError):
            await spoken(client)
        assert engine.events["detokenize"] == 3
        engine.failure = None
        assert [chunk.segment_index for chunk in await spoken(client)] == [0, 1]


# --- what the manual says -----------------------------------------------------------------------------------

README = Path(__file__).resolve().parents[2] / "clients" / "python" / "README.md"


@pytest.fixture
def talking(chat_checkpoint: Path, tmp_path: Path) -> Iterator[Served]:
    """A server with conversations, held with the embedded parts."""
    stream = {"log_latency": False, "max_new_tokens": 20, "resume_dir": tmp_path / "resume"}
    make_engine = partial(LocalEngine, EngineSettings(model=chat_checkpoint, device="cpu", threads=1))
    with served(make_engine, make_dialogue=LocalDialogue, stream=stream) as server:
        yield server


def test_the_snippets_of_the_readme_run(
    talking: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("moonshine_voice", "silero_vad", "xllamacpp"):
        pytest.importorskip(package)
    text = README.read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) > 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASTE_TOKEN", TOKEN)
    write_beginning(sample_recordings()["beckett"], tmp_path / "question.wav", seconds=4)
    authority = Authority()
    me = authority.issue("me")
    for name, blob in (("ca.pem", authority.pem), ("me.pem", me.certificate), ("me.key", me.key)):
        (tmp_path / name).write_bytes(blob)
    names: dict[str, Any] = {}
    try:
        for snippet in snippets:
            exec(compile(snippet.replace("localhost:50051", talking.address), str(README), "exec"), names)
    finally:
        for value in names.values():
            if isinstance(value, TasteClient):
                value.close()
    printed = capsys.readouterr().out
    assert "tried" in printed.lower()
    assert "heard: Ever tried" in printed
    assert "SpeechChunk(" in printed
    assert "text (FieldViolation" in printed
    for name in ("answer.wav", "edited.wav", "live.wav"):
        with wave.open(str(tmp_path / name)) as file:
            assert file.getnframes() > 1000
    assert len((tmp_path / "answer.pcm").read_bytes()) > 1000
    assert names["text"].words[0].text == "Never"


def write_beginning(recording: Path, target: Path, *, seconds: int) -> None:
    with wave.open(str(recording)) as whole, wave.open(str(target), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(seconds * whole.getframerate()))
