"""Live conversations of both clients."""

from __future__ import annotations

import array
import io
import math
import signal
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_dialogue import SESSION
from fake_server import FakeServicer

from taste.v1 import common_pb2
from taste_grpc_client import (
    CallCancelledError,
    ConversationEndedError,
    ConversationError,
    ConversationEvent,
    DeadlineExceededError,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    MarkReached,
    Notice,
    OverloadedError,
    PartialTranscript,
    Phase,
    PhaseChanged,
    Retry,
    ServerError,
    SpeechChunk,
    SpeechComplete,
    Started,
    TurnMetrics,
    UnavailableError,
    WavWriter,
    write_wav,
)

SECOND = b"\x01\x00" * 16_000


def until_mark(talk: Any, name: str = "here") -> list[ConversationEvent]:
    """The events until the mark that is sent here comes back."""
    talk.mark(name)
    return list(takewhile(lambda event: event != MarkReached(name), talk))


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def kinds(servicer: FakeServicer) -> list[str | None]:
    return [request.WhichOneof("event") for request in servicer.dialogue.received]


# --- what goes in and out -----------------------------------------------------------------------------


def test_a_turn(client: Any) -> None:
    with client.converse() as talk:
        assert talk.started == Started(SESSION, 16_000, "linear16", resumed=False)
        talk.say("hello")
        talk.half_close()
        assert list(talk) == [
            talk.started,
            PhaseChanged(0, Phase.THINKING),
            LlmToken(0, "hello", done=False),
            LlmToken(0, "", done=True),
            PhaseChanged(0, Phase.RESPONDING),
            SpeechChunk(0, 0, b"\x01\x00" * 8, 16_000, "linear16", 0, 0.5, 0, "hello"),
            SpeechChunk(0, 1, b"\x02\x00" * 8, 16_000, "linear16", 8, 0.5, 0, None),
            SpeechComplete(0, 2, 1.0),
            TurnMetrics(0, None, None, 3.5, None, None),
            PhaseChanged(0, Phase.COMPLETE),
            PhaseChanged(1, Phase.IDLE),
        ]
        assert list(talk) == []


def test_the_other_events(client: Any) -> None:
    with client.converse() as talk:
        talk.say("others")
        talk.stop()
        talk.cancel()
        assert until_mark(talk)[1:] == [
            PartialTranscript(0, "h", 10),
            Interrupted(0, 7, "seven", estimated=True),
            Notice(None, "slow"),
            FinalTranscript(1, "hi", 20),
            Failure(1, ErrorCode.CANCELLED, "cancelled"),
        ]
        assert talk.resume_token is None
        talk.say("away")
        assert until_mark(talk) == [GoingAway("token", 10, 20)]
        assert talk.resume_token == "token"


def test_what_is_sent_arrives_in_order(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        talk.send_audio(SECOND[:640])
        talk.stop()
        talk.ack(3, 41.9)
        talk.credit(5000)
        talk.cancel()
        talk.say("hello")
        assert until_mark(talk)[-1] == PhaseChanged(1, Phase.IDLE)
    assert kinds(servicer) == [
        "start", "audio", "stop", "playback_ack", "playback_credit", "cancel", "text_turn", "mark",
    ]  # fmt: skip
    received = servicer.dialogue.received
    assert received[1].audio == SECOND[:640]
    assert (received[3].playback_ack.turn_index, received[3].playback_ack.played_ms) == (3, 41)
    assert received[4].playback_credit.max_unplayed_ms == 5000


def test_only_what_is_given_is_sent(client: Any, servicer: FakeServicer) -> None:
    with client.converse():
        pass
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=16_000, channels=1)
    start = servicer.dialogue.received[0].start
    assert [(field.name, value) for field, value in start.ListFields()] == [("input_format", form)]


def test_all_that_can_be_given(client: Any, servicer: FakeServicer) -> None:
    options = {"vad_silence_ms": 500, "barge_in": False, "max_new_tokens": 9, "barge_in_ms": 200}
    with client.converse(
        sample_rate_hz=48_000, channels=2, encoding="float32le", language="pt-BR", system_prompt="", voice="joe",
        voice_sample_rate_hz=22_050, voice_encoding="float32le", resume_token="token", partial_interval_ms=300,
        max_utterance_ms=9000, **options,
    ) as talk:  # fmt: skip
        assert talk.started == Started(SESSION, 22_050, "float32le", resumed=True)
    start = servicer.dialogue.received[0].start
    assert (start.language, start.resume_token, start.HasField("system_prompt")) == ("pt-BR", "token", True)
    assert (start.input_format.sample_rate_hz, start.input_format.channels) == (48_000, 2)
    assert start.input_format.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
    assert (start.voice.name, start.voice.out_sample_rate_hz) == ("joe", 22_050)
    sent = {field.name: value for field, value in start.options.ListFields()}
    assert sent == {**options, "partial_interval_ms": 300, "max_utterance_ms": 9000}


@pytest.mark.parametrize("voice", [[0.5, 1.0], common_pb2.SpeakerEmbedding(values=[0.5, 1.0])])
def test_a_voice_may_be_a_vector(client: Any, servicer: FakeServicer, voice: Any) -> None:
    with client.converse(voice=voice):
        pass
    assert list(servicer.dialogue.received[0].start.voice.speaker_embedding.values) == [0.5, 1.0]


def test_a_conversation_goes_on_elsewhere(client: Any) -> None:
    with client.converse() as talk:
        talk.say("away")
        until_mark(talk)
        token = talk.resume_token
    with client.converse(resume_token=token) as talk:
        assert talk.started.resumed


def test_what_is_not_known_yet_does_no_harm(client: Any) -> None:
    with client.converse() as talk:
        talk.say("strange")
        assert until_mark(talk)[1:] == [PhaseChanged(0, Phase.UNKNOWN), Failure(0, ErrorCode.UNKNOWN, "?")]


# --- audio --------------------------------------------------------------------------------------------


def audio_of(servicer: FakeServicer) -> bytes:
    return b"".join(request.audio for request in servicer.dialogue.received)


@pytest.mark.parametrize(
    ("audio", "sent"),
    [
        (b"\x01\x00\x02\x00", [1, 2]),
        (bytearray(b"\x01\x00"), [1]),
        (memoryview(b"\x01\x00"), [1]),
        (array.array("h", [1, -2]), [1, -2]),
        ([3, 4], [3, 4]),
        ([0.5, -2.0, 1.0], [16384, -32767, 32767]),
        (array.array("d", [-0.5]), [-16384]),
        (b"", []),
    ],
)
def test_audio_becomes_linear16(client: Any, servicer: FakeServicer, audio: Any, sent: list[int]) -> None:
    with client.converse() as talk:
        talk.send_audio(audio)
        until_mark(talk)
    assert array.array("h", audio_of(servicer)).tolist() == sent


@pytest.mark.parametrize(
    ("audio", "sent"),
    [(array.array("h", [16384, -32768]), [0.5, -1.0]), ([0.25], [0.25]), (array.array("f", [2.0]), [2.0])],
)
def test_audio_becomes_float32(client: Any, servicer: FakeServicer, audio: Any, sent: list[float]) -> None:
    with client.converse(encoding="float32le") as talk:
        talk.send_audio(audio)
        until_mark(talk)
    assert array.array("f", audio_of(servicer)).tolist() == sent


@pytest.mark.parametrize(
    ("options", "frame_bytes", "longest"),
    [({}, 2, 6400), ({"sample_rate_hz": 96_000, "channels": 2, "encoding": "float32le"}, 8, 61_440)],
)
def test_long_audio_is_cut_into_messages_the_server_takes(
    client: Any, servicer: FakeServicer, options: dict[str, Any], frame_bytes: int, longest: int
) -> None:
    data = bytes(range(256)) * 1000
    with client.converse(**options) as talk:
        talk.send_audio(data)
        until_mark(talk)
    assert audio_of(servicer) == data
    sizes = [len(request.audio) for request in servicer.dialogue.received if request.audio]
    assert max(sizes) == longest
    assert all(size % frame_bytes == 0 for size in sizes)
    assert max(request.ByteSize() for request in servicer.dialogue.received) < 64 * 1024


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (b"\x01", "1 bytes are no whole number of frames of 2 bytes"),
        ([math.nan], "NaN or infinite"),
        ("x.wav", "bytes or an array of samples was expected, not str"),
        (["a"], "a list of samples has numbers"),
        ([40_000], "16 bit"),
        (array.array("q", [1]), "not of buffer format 'q'"),
    ],
)
def test_what_is_no_audio_is_refused_and_the_conversation_goes_on(client: Any, audio: Any, message: str) -> None:
    with client.converse() as talk:
        with pytest.raises((ValueError, TypeError), match=message):
            talk.send_audio(audio)
        talk.say("hello")
        assert until_mark(talk)[-1] == PhaseChanged(1, Phase.IDLE)


def test_what_cannot_be_is_refused_before_the_call(client: Any, servicer: FakeServicer) -> None:
    for wrong, message in (
        ({"encoding": "mp3"}, "encoding: 'mp3' is none of"),
        ({"voice_encoding": "mp3"}, "voice_encoding: 'mp3' is none of"),
        ({"channels": 0}, "channels: 1 or more"),
        ({"sample_rate_hz": -1}, "sample_rate_hz: 1 or more"),
        ({"timeout_s": 0}, "timeout_s: a number of seconds"),
        ({"barge_in_ms": "long"}, "barge_in_ms|str"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            client.converse(**wrong)
    assert servicer.dialogue.conversations == 0


@pytest.mark.parametrize("encoding", ["linear16", "float32le"])
def test_answers_go_into_a_wav_file(client: Any, encoding: str) -> None:
    file = io.BytesIO()
    with client.converse(voice_sample_rate_hz=24_000, voice_encoding=encoding) as talk, WavWriter(file) as wav:
        talk.say("hello")
        chunks = [event for event in until_mark(talk) if isinstance(event, SpeechChunk)]
        for chunk in chunks:
            wav.write(chunk)
    with wave.open(io.BytesIO(file.getvalue())) as written:
        assert (written.getframerate(), written.getnframes()) == (24_000, 16 if encoding == "linear16" else 8)
    assert write_wav(io.BytesIO(), chunks) == wav.duration_ms


# --- endings ------------------------------------------------------------------------------------------


def test_half_close_ends_it_well(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        talk.half_close()
        talk.half_close()
        assert list(talk) == [talk.started]
        assert servicer.dialogue.half_closed.is_set()
        with pytest.raises(ValueError, match="was half-closed"):
            talk.say("more")


def test_a_fatal_error_is_raised_once(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        talk.say("fail PROTOCOL_VIOLATION")
        assert next(talk) == talk.started
        with pytest.raises(ConversationError, match=r"PROTOCOL_VIOLATION: gave up \(conversation c-1\)") as caught:
            next(talk)
        assert list(talk) == []
        with pytest.raises(ConversationEndedError, match="has ended: PROTOCOL_VIOLATION") as ended:
            talk.say("more")
    error = caught.value
    assert (error.error_code, error.reason) == (ErrorCode.PROTOCOL_VIOLATION, "CONVERSE_ERROR_CODE_PROTOCOL_VIOLATION")
    assert (error.code, error.message, error.request_id) == (grpc.StatusCode.FAILED_PRECONDITION, "gave up", SESSION)
    assert ended.value.__cause__ is error


@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.UNKNOWN])
def test_errors_that_are_not_fatal_are_events(client: Any, code: ErrorCode) -> None:
    with client.converse() as talk:
        talk.say(f"slip {code}")
        assert until_mark(talk)[1:] == [Failure(0, code, "once")]
        talk.say(f"fail {code}")
        with pytest.raises(ConversationError) as caught:
            next(talk)
        assert caught.value.error_code is code


def test_a_fatal_error_is_known_also_when_it_cuts_off_what_is_sent(client: Any) -> None:
    for _ in range(20):
        with client.converse() as talk:
            talk.say("fail INTERNAL")
            with endless_sender(talk) as ended, pytest.raises(ConversationError, match="INTERNAL: gave up"):
                list(talk)
            assert [type(error) for error in ended] == [ConversationEndedError]


@contextmanager
def endless_sender(talk: Any) -> Iterator[list[BaseException]]:
    """A thread that sends until it fails, with what it fails with."""
    ended: list[BaseException] = []

    def send() -> None:
        try:
            while True:
                talk.send_audio(SECOND)
        except Exception as error:
            ended.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    yield ended
    sender.join(10)
    assert not sender.is_alive(), "it is not told"


def test_a_status_is_raised_to_the_reader_and_told_to_the_sender(client: Any) -> None:
    with client.converse() as talk:
        talk.say("abort INTERNAL")
        with endless_sender(talk) as ended:
            pass
        assert "has ended: INTERNAL: as asked" in str(ended[0])
        assert isinstance(ended[0].__cause__, ServerError)
        with pytest.raises(ServerError, match="as asked"):
            list(talk)
        assert list(talk) == []


def test_leaving_the_block_ends_the_call_on_the_server(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        assert next(talk) == talk.started
        assert not servicer.dialogue.ended.is_set()
    assert servicer.dialogue.ended.wait(10)
    with pytest.raises(ConversationEndedError):
        talk.say("more")
    with pytest.raises(CallCancelledError):
        next(talk)
    assert list(talk) == []
    talk.close()


def test_it_can_be_closed_while_it_is_read(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        assert next(talk) == talk.started
        closing = threading.Timer(0.05, talk.close)
        closing.start()
        with pytest.raises(CallCancelledError):
            next(talk)
        closing.join()
    assert servicer.dialogue.ended.wait(10)


def test_closing_the_client_ends_it(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        assert next(talk) == talk.started
        client.close()
        with pytest.raises(CallCancelledError):
            next(talk)
    assert servicer.dialogue.ended.wait(10)
    with pytest.raises(ValueError, match="the client is closed"), client.converse():
        pass


def test_a_deadline(client: Any) -> None:
    with client.converse(timeout_s=0.3) as talk:
        assert next(talk) == talk.started
        with pytest.raises(DeadlineExceededError, match="longer than its timeout_s"):
            next(talk)


def test_the_timeout_of_the_client_is_that_of_the_opening(
    make_client: Any, target: str, servicer: FakeServicer
) -> None:
    client = make_client(target, timeout_s=0.3)
    with client.converse() as talk:
        assert next(talk) == talk.started
        later = threading.Timer(0.5, talk.half_close)
        later.start()
        assert list(talk) == []
        later.join()
    servicer.dialogue.ended.clear()
    with pytest.raises(DeadlineExceededError, match="did not begin"), client.converse(system_prompt="mute"):
        pass
    assert servicer.dialogue.ended.wait(10)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"system_prompt": "slow start"}, ServerError, "did not begin"),
        ({"sample_rate_hz": 1}, ConversationError, "UNSUPPORTED_SAMPLE_RATE: 1 Hz"),
    ],
)
def test_what_does_not_begin_is_not_open(client: Any, options: dict[str, Any], kind: Any, message: str) -> None:
    talk = client.converse(**options)
    with pytest.raises(kind, match=message):
        talk.__enter__()
    with pytest.raises(ValueError, match="not open"):
        talk.say("hello")


def test_it_is_opened_once(client: Any) -> None:
    talk = client.converse()
    with pytest.raises(ValueError, match="not open"):
        next(talk)
    with talk, pytest.raises(ValueError, match="opened once"):
        talk.open()


def test_a_refused_one_is_tried_again(make_client: Any, target: str, servicer: FakeServicer) -> None:
    servicer.refusals.times = 2
    with make_client(target).converse() as talk:
        talk.say("hello")
        assert until_mark(talk)[0] == talk.started
    assert servicer.attempts == ["Converse"] * 3
    assert kinds(servicer) == ["start", "text_turn", "mark"]
    servicer.refusals.times = 99
    with pytest.raises(OverloadedError, match="not now"), make_client(target, retry=None).converse():
        pass
    servicer.refusals.wish_ms = 30_000
    late = make_client(target, timeout_s=5).converse()
    with pytest.raises(OverloadedError, match="not now"):
        late.open()


def test_closing_ends_the_wait_for_another_attempt(client: Any, servicer: FakeServicer) -> None:
    servicer.refusals.times, servicer.refusals.wish_ms = 9, 60_000
    talk = client.converse()
    closing = threading.Thread(target=lambda: (until(lambda: servicer.attempts == ["Converse"]), talk.close()))
    closing.start()
    with pytest.raises((CallCancelledError, OverloadedError)):
        talk.open()
    closing.join()


def test_nothing_listens(make_client: Any) -> None:
    retry = Retry(max_attempts=2, initial_backoff_s=0.01)
    with (
        pytest.raises(UnavailableError, match="nothing listens"),
        make_client("127.0.0.1:1", retry=retry).converse(),
    ):
        pass


SERVER = """
import sys
from contextlib import ExitStack
from fake_server import FakeServicer, start_server
with ExitStack() as stack:
    print(start_server(FakeServicer(), stack), flush=True)
    sys.stdin.read()
"""


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SERVER]
    # `python -c` looks for modules in the folder it runs in.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_a_killed_server(make_client: Any) -> None:
    with server_process() as (process, port), make_client(f"127.0.0.1:{port}").converse() as talk:
        talk.say("hello")
        assert until_mark(talk)[-1] == PhaseChanged(1, Phase.IDLE)
        process.send_signal(signal.SIGKILL)
        with pytest.raises(UnavailableError):
            next(talk)
        with pytest.raises(ConversationEndedError) as ended:
            talk.say("more")
        assert isinstance(ended.value.__cause__, UnavailableError)


# --- who is slow --------------------------------------------------------------------------------------


def settled(count: Callable[[], int]) -> int:
    """What `count` comes to once it stands still."""
    before, quiet = -1, 0
    deadline = time.monotonic() + 30
    while quiet < 20:
        assert time.monotonic() < deadline, f"it goes on and on: {before}"
        now = count()
        quiet = quiet + 1 if now == before else 0
        before = now
        time.sleep(0.02)
    return before


def test_a_slow_reader_holds_the_server_back(client: Any, servicer: FakeServicer) -> None:
    with client.converse() as talk:
        talk.say("flood")
        assert next(talk) == talk.started
        assert next(talk).seq == 0
        sent = settled(lambda: servicer.dialogue.sent)
        # Both ends' windows, with what each end's gRPC keeps beside them: no more than a few chunks of 10 kB.
        assert sent < 200
        talk.ack(0, 1.0)
        assert [next(talk).seq for _ in range(300)] == list(range(1, 301))


def test_a_slow_server_holds_the_sender_back(client: Any, servicer: FakeServicer) -> None:
    sent = 0
    over = threading.Event()

    def send(talk: Any) -> None:
        nonlocal sent
        while not over.is_set():
            talk.send_audio(SECOND)
            sent += 1

    with client.converse() as talk:
        talk.say("deaf")
        sender = threading.Thread(target=send, args=(talk,))
        sender.start()
        held = settled(lambda: sent)
        servicer.dialogue.hold.set()
        until(lambda: sent > held)
        over.set()
        sender.join()
        until_mark(talk)
    assert len(audio_of(servicer)) == sent * len(SECOND)


def test_closing_frees_senders_that_are_held_back(client: Any, servicer: FakeServicer) -> None:
    with ExitStack() as senders, client.converse() as talk:
        talk.say("deaf")
        ended = [senders.enter_context(endless_sender(talk)) for _ in range(3)]
        settled(lambda: len(servicer.dialogue.received))
    assert [type(error) for each in ended for error in each] == [ConversationEndedError] * 3
