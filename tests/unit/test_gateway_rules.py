"""When `start` may come again, which pages may connect, and a microphone that changes its rate."""

from __future__ import annotations

import numpy as np
import pytest
from websockets.frames import CloseCode

from taste_grpc.audio import resample
from taste_grpc.dialogue import Phase
from taste_grpc.dialogue.events import Notice, PhaseChanged
from taste_grpc.errors import SettingsError
from taste_grpc.gateway.microphone import Microphone
from taste_grpc.gateway.origins import Origins
from taste_grpc.gateway.protocol import ViolationError
from taste_grpc.gateway.turns import Starts
from taste_grpc.settings import load_settings

TURN = (Phase.IDLE, Phase.CAPTURING, Phase.THINKING, Phase.RESPONDING, Phase.COMPLETE)


def after(*phases: Phase) -> Starts:
    starts = Starts()
    for phase in phases:
        starts.saw(PhaseChanged(0, phase))
    starts.saw(Notice(None, "counts for nothing"))
    return starts


@pytest.mark.parametrize("count", range(len(TURN)))
def test_a_start_before_the_first_turn_is_over_is_a_second_one(count: int) -> None:
    with pytest.raises(ViolationError, match="second start") as violation:
        after(*TURN[:count]).check()
    assert violation.value.close_code is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("end", [(), (Phase.IDLE,), (Phase.IDLE, Phase.CAPTURING)])
def test_after_a_turn_one_start_is_in_time_until_the_next_is_answered(end: tuple[Phase, ...]) -> None:
    starts = after(*TURN, *end)
    starts.check()
    starts.take()
    with pytest.raises(ViolationError, match="second start"):
        starts.check()


@pytest.mark.parametrize("phase", [Phase.THINKING, Phase.RESPONDING])
def test_a_start_for_a_turn_that_is_being_answered_is_late(phase: Phase) -> None:
    with pytest.raises(ViolationError, match=f"start while a turn is {phase.value}"):
        after(*TURN, Phase.IDLE, Phase.CAPTURING, phase).check()


def test_a_failed_turn_is_over_too() -> None:
    after(Phase.IDLE, Phase.CAPTURING, Phase.ERROR).check()


OWN = Origins(["https://talk.example.com", "http://lab:8080"])


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "a.localhost", "127.0.0.1:8080", "[::1]:8080", "192.168.1.7"]
)
def test_nobody_else_owns_addresses_and_localhost(host: str) -> None:
    assert Origins().owns(host)
    assert Origins().admits(f"http://{host}", host)
    assert Origins().admits(f"http://{host}".upper().replace("HTTP", "http"), host)
    assert not Origins().admits("http://evil.example", host)


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "localhost.evil.example", "1.2.3.4.evil.example", "[", "a:b"]
)
def test_a_name_that_others_may_own_is_no_name_of_ours(host: str | None) -> None:
    assert not Origins().owns(host)
    assert not Origins().admits(f"http://{host}", host), "a name made to point here is not the page's own server"


def test_names_that_were_configured() -> None:
    assert OWN.owns("talk.example.com")
    assert OWN.owns("lab:8080")
    assert OWN.admits("https://talk.example.com", "talk.example.com")
    assert OWN.admits("https://talk.example.com", "127.0.0.1:8080"), "a proxy may ask for another name"
    assert OWN.admits("https://talk.example.com:443", "127.0.0.1:8080")
    assert not OWN.admits("http://talk.example.com", "127.0.0.1:8080")
    assert not OWN.admits("https://talk.example.com:444", "127.0.0.1:8080")


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        (None, True),
        ("http://localhost:8080", True),
        ("https://localhost:8080", True),
        ("http://localhost", False),
        ("http://localhost:80801", False),
        ("http://127.0.0.1:8080", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("chrome-extension://localhost:8080", False),
        ("http://localhost:8080@evil.example", False),
    ],
)
def test_who_may_talk_to_localhost(origin: str | None, admitted: bool) -> None:
    assert Origins().admits(origin, "localhost:8080") is admitted


def test_origins_in_the_settings() -> None:
    web = load_settings({"web": {"origins": ["HTTPS://Talk.Example.com/", "http://[::1]:99"]}}).web
    assert web.origins == ("https://talk.example.com", "http://[::1]:99")
    for bad in ("talk.example.com", "*", "https://a/b", "ftp://a", "https://", "https://u@a", "null"):
        with pytest.raises(SettingsError, match=r"web\.origins"):
            load_settings({"web": {"origins": [bad]}})


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32_767).astype("<i2").tobytes()


def sine(rate_hz: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 300 * np.arange(int(rate_hz * seconds)) / rate_hz)


def test_audio_at_the_rate_of_the_conversation_is_left_alone() -> None:
    microphone = Microphone(16_000)
    microphone.switch(16_000)
    assert microphone.convert(b"\x01\x02") == b"\x01\x02"


def test_audio_at_another_rate_is_resampled_across_frames() -> None:
    microphone = Microphone(16_000)
    microphone.switch(44_100)
    sent = sine(44_100, 0.5)
    frames = [microphone.convert(pcm(frame)) for frame in np.array_split(sent, 17)]
    microphone.switch(44_100)
    received = np.frombuffer(b"".join(frames), "<i2") / 32_768
    expected = resample(sent.astype(np.float32), 44_100, 16_000)
    assert len(expected) - 200 < len(received) <= len(expected)
    np.testing.assert_allclose(received, expected[: len(received)], atol=1e-3)
    microphone.switch(16_000)
    assert microphone.convert(b"\x01\x02") == b"\x01\x02"
