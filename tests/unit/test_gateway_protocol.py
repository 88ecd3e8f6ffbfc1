"""The messages of the WebSocket, without a socket."""

from __future__ import annotations

import base64
import json
import math
import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode

from taste_grpc.audio import Encoding, decode_clip
from taste_grpc.dialogue import Phase
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ClientEvent,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    Mark,
    MarkReached,
    Notice,
    Options,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    ServerEvent,
    SpeechChunk,
    SpeechComplete,
    Start,
    Started,
    Stop,
    TextTurn,
    TurnMetrics,
    VoiceChoice,
)
from taste_grpc.gateway.protocol import (
    StartMessage,
    UnsupportedRateError,
    ViolationError,
    check_rates,
    error_text,
    event_text,
    info_text,
    protocol_text,
    read_message,
)
from taste_grpc.settings import LimitSettings
from tests.support.scripted_conversations import tone

LIMITS = LimitSettings()


def read(message: Any) -> StartMessage | ClientEvent:
    return read_message(message if isinstance(message, bytes | str) else json.dumps(message), LIMITS)


def refused(message: Any) -> str:
    with pytest.raises(ViolationError) as violation:
        read(message)
    return str(violation.value)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"type": "stop"}, Stop()),
        ({"type": "cancel"}, Cancel()),
        ({"type": "text", "text": "Tab\tand\nnewline, 你好 🙂"}, TextTurn("Tab\tand\nnewline, 你好 🙂")),
        ({"type": "playback_ack", "turn": 3, "played_ms": 1200}, PlaybackAck(3, 1200)),
        ({"type": "playback_credit", "max_unplayed_ms": 0}, PlaybackCredit(0)),
        ({"type": "mark", "id": ""}, Mark("")),
        (b"\x01\x00\xff\x7f", AudioIn(b"\x01\x00\xff\x7f")),
    ],
)
def test_messages_become_events(message: Any, event: ClientEvent) -> None:
    assert read(message) == event


def test_start_says_all_that_a_conversation_can_be_told() -> None:
    start = read(
        {
            "type": "start",
            "sample_rate": 48_000,
            "language": "pt-BR",
            "system_prompt": "Be brief.",
            "voice": {"name": "joe", "sample_rate": 24_000},
            "options": {
                "vad_silence_ms": 300,
                "partial_interval_ms": 3_000,
                "max_utterance_ms": 120_000,
                "barge_in_ms": 240,
                "barge_in": False,
                "max_new_tokens": 4_096,
            },
            "resume_token": "r",
            "access_token": "secret-0123456789",
        }
    )
    assert isinstance(start, StartMessage)
    assert start.to_start() == Start(
        sample_rate_hz=48_000,
        language="pt-BR",
        system_prompt="Be brief.",
        voice=VoiceChoice("joe", sample_rate_hz=24_000),
        options=Options(300, 3_000, 120_000, 240, False, 4_096),
        resume_token="r",
    )
    assert "secret-0123456789" not in repr(start)


def test_what_start_leaves_out_is_the_servers_choice() -> None:
    start = read({"type": "start", "sample_rate": 16_000})
    assert isinstance(start, StartMessage)
    assert start.to_start() == Start()
    spelt_out = read({"type": "start", "sample_rate": 16_000, "language": None, "voice": None, "options": {}})
    assert spelt_out == start


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("", "no JSON"),
        ("sing", "no JSON"),
        ("\x00", "no JSON"),
        ('{"type": "stop"} {}', "no JSON"),
        ("[" * 60_000, "no JSON"),
        ('{"type":"start","sample_rate":' + "9" * 5_000 + "}", "no JSON"),
        ('{"type":"text","text":"\\ud800"}', "no JSON"),
        ("null", "no JSON object"),
        ('"stop"', "no JSON object"),
        ([{"type": "stop"}], "no JSON object"),
        ({}, "has no type"),
        ({"type": None}, "no message of type None"),
        ({"type": "sing"}, "no message of type sing; start, stop,"),
        ({"type": "Stop"}, "no message of type Stop"),
        ({"type": "s\u202e" + "x" * 999}, "no message of type s?xxx"),
        ({"type": "stop", "now": 1}, "stop.now: there is no such field"),
        ({"type": "start", "sampel_rate": 1}, "start.sampel_rate: there is no such field"),
        ({"type": "start", "voice": {"pitch": 1}}, "start.voice.pitch: there is no such field"),
        ({"type": "start", "sample_rate": "16000"}, "start.sample_rate: should be a valid integer"),
        ({"type": "start", "sample_rate": 16000.0}, "start.sample_rate: should be a valid integer"),
        ({"type": "start", "sample_rate": True}, "start.sample_rate: should be a valid integer"),
        ({"type": "start", "language": "English please"}, "start.language: is no language tag"),
        ({"type": "start", "system_prompt": "é" * 4_097}, "start.system_prompt: has 8194 bytes"),
        ({"type": "start", "system_prompt": "a\x07"}, "control character U+0007"),
        ({"type": "start", "voice": "joe"}, "start.voice: should be an object"),
        ({"type": "start", "voice": {"name": "é" * 129}}, "more than 256 bytes"),
        ({"type": "start", "options": {"vad_silence_ms": 299}}, "start.options.vad_silence_ms: should be greater"),
        ({"type": "start", "options": {"barge_in": 1}}, "start.options.barge_in: should be a valid boolean"),
        ({"type": "text"}, "text.text: is missing"),
        ({"type": "text", "text": " \n"}, "only blanks"),
        ({"type": "text", "text": "x" * 8_193}, "text.text: has 8193 bytes"),
        ({"type": "playback_ack", "turn": -1, "played_ms": 0}, "playback_ack.turn: should be greater"),
        ({"type": "playback_ack", "turn": 0, "played_ms": 2**53}, "playback_ack.played_ms: should be less"),
        ({"type": "mark", "id": 7}, "mark.id: should be a valid string"),
        (b"", "is empty"),
        (b"\x00\x00\x00", "has 3 bytes, no whole number of Int16 samples"),
    ],
)
def test_what_is_wrong_is_named(message: Any, complaint: str) -> None:
    assert complaint in refused(message)


def outcome(message: str | bytes) -> StartMessage | ClientEvent | ViolationError:
    try:
        return read_message(message, LIMITS)
    except ViolationError as error:
        return error


@given(st.text(max_size=200) | st.binary(max_size=50))
def test_no_message_is_too_strange_to_be_refused(message: str | bytes) -> None:
    result = outcome(message)
    if isinstance(result, ViolationError):
        assert str(result).isprintable()
        assert result.close_code is CloseCode.UNSUPPORTED_DATA


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields_of_start = ["sample_rate", "language", "system_prompt", "voice", "options", "resume_token", "access_token"]
names = st.sampled_from([*fields_of_start, "text", "id", "turn", "played_ms", "max_unplayed_ms", "nonsense"])
types = st.sampled_from(["start", "stop", "cancel", "text", "playback_ack", "playback_credit", "mark", "nonsense"])


@given(types, st.dictionaries(names, json_values, max_size=4))
def test_no_field_is_too_strange_to_be_refused(kind: str, fields: dict[str, Any]) -> None:
    result = outcome(json.dumps({**fields, "type": kind}))
    if isinstance(result, ViolationError):
        assert str(result).isprintable()
        assert len(str(result)) < 400
    else:
        assert "nonsense" not in {kind, *fields}
        assert isinstance(result, StartMessage) is (kind == "start")


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**53 - 1))
def test_numbers_arrive_as_they_are(turn: int, played_ms: int) -> None:
    assert read({"type": "playback_ack", "turn": turn, "played_ms": played_ms}) == PlaybackAck(turn, played_ms)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 96_000, None])
def test_rates_within_the_limits(rate_hz: int | None) -> None:
    check_rates(StartMessage(sample_rate=rate_hz), LIMITS)


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ({"sample_rate": 7_999}, "start.sample_rate: is 7999; 8000 to 96000 Hz are allowed"),
        ({"sample_rate": 96_001}, "96001"),
        ({"sample_rate": -1}, "-1"),
        ({"sample_rate": 10**300}, "1000"),
        ({"sample_rate": 16_000, "voice": {"sample_rate": 4_000}}, "start.voice.sample_rate: is 4000"),
    ],
)
def test_other_rates_are_named(start: dict[str, Any], complaint: str) -> None:
    message = read({"type": "start", **start})
    assert isinstance(message, StartMessage)
    with pytest.raises(UnsupportedRateError) as error:
        check_rates(message, LIMITS)
    assert complaint in str(error.value)
    assert len(str(error.value)) < 120


SENT: list[tuple[ServerEvent, dict[str, Any]]] = [
    (
        Started("s1", VoiceChoice(sample_rate_hz=24_000), resumed=True),
        {"type": "started", "session_id": "s1", "resumed": True, "sample_rate": 24_000},
    ),
    (PhaseChanged(0, Phase.THINKING), {"type": "phase", "turn": 0, "phase": "thinking"}),
    (PartialTranscript(1, "ever", 900), {"type": "partial_transcript", "turn": 1, "text": "ever", "audio_ms": 900}),
    (FinalTranscript(1, "e\u2028v", 900), {"type": "final_transcript", "turn": 1, "text": "e\u2028v", "audio_ms": 900}),
    (LlmToken(1, "", done=True), {"type": "llm_token", "turn": 1, "text": "", "done": True}),
    (SpeechComplete(1, 2, 500.5), {"type": "tts_complete", "turn": 1, "chunks": 2, "audio_ms": 500.5}),
    (
        Interrupted(1, 300, "Try", estimated=False),
        {"type": "interrupted", "turn": 1, "heard_ms": 300, "heard_text": "Try", "estimated": False},
    ),
    (MarkReached("m"), {"type": "mark", "id": "m"}),
    (
        TurnMetrics(2, final_transcript_ms=900.5, first_token_ms=0.0),
        {"type": "metrics", "turn": 2, "final_transcript_ms": 900.5, "first_token_ms": 0.0},
    ),
    (Notice(None, "slow"), {"type": "info", "message": "slow"}),
    (
        Failure(1, ErrorCode.TTS_FAIL, "no voice"),
        {"type": "error", "turn": 1, "code": "TTS_FAIL", "message": "no voice", "recoverable": True},
    ),
    (
        Failure(None, ErrorCode.INTERNAL, "oh"),
        {"type": "error", "code": "INTERNAL", "message": "oh", "recoverable": False},
    ),
    (
        GoingAway("t", 5_000, 60_000),
        {"type": "going_away", "resume_token": "t", "grace_ms": 5_000, "token_lifetime_ms": 60_000},
    ),
]


@pytest.mark.parametrize(("event", "message"), SENT)
def test_events_become_messages(event: ServerEvent, message: dict[str, Any]) -> None:
    text = event_text(event)
    assert json.loads(text) == message
    assert text.isascii()


def test_every_event_has_a_form() -> None:
    assert {type(event) for event, _ in SENT} | {SpeechChunk} == set(typing.get_args(ServerEvent))


def test_each_chunk_of_speech_is_a_wav_file() -> None:
    chunk = tone(4, 2, 250, 22_050, "Try again.")
    message = json.loads(event_text(chunk))
    clip = decode_clip(base64.b64decode(message.pop("audio_b64"), validate=True), Encoding.WAV)
    assert message == {
        "type": "tts_chunk",
        "turn": 4,
        "seq": 2,
        "mime": "audio/wav",
        "first_sample": chunk.first_sample,
        "duration_ms": chunk.duration_ms,
        "phrase_index": 0,
        "phrase_text": "Try again.",
    }
    assert clip.sample_rate_hz == 22_050
    assert len(clip.samples) == len(chunk.samples)
    np.testing.assert_allclose(clip.samples, chunk.samples, atol=1 / 32_768)
    assert math.isclose(message["duration_ms"], 250, abs_tol=0.1)
    assert "phrase_text" not in json.loads(event_text(tone(4, 3, 250, 22_050)))


def test_messages_of_the_gateway_itself() -> None:
    assert json.loads(protocol_text()) == {"type": "protocol", "version": 1}
    assert json.loads(info_text("so")) == {"type": "info", "message": "so"}
    error = json.loads(error_text("OVERLOADED", "full"))
    assert error == {"type": "error", "code": "OVERLOADED", "message": "full", "recoverable": False}
