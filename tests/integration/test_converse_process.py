"""Live conversations with `taste-grpc serve` as a process: its commands, its lines on stdout, its figures."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile

from taste_grpc.audio import Waveform, write_wav
from taste_grpc.dialogue.local import LocalDialogue
from taste_grpc.own_server import LogEvent, ServerProcess
from taste_grpc.settings import load_settings
from tests.support.command_line import SERVE_DIALOGUE, here, run
from tests.support.conversing import Talk, talking
from tests.support.live_server import until
from tests.support.recording_engine import RecordingEngine
from tests.support.recordings import best_of_times

SAID = "best of times"
SHORT_ANSWERS = ("--set", "stream.max_new_tokens=12")


@dataclass
class Process:
    """`taste-grpc serve`, and all JSON lines it has written."""

    address: str
    metrics_port: int
    lines: list[LogEvent] = field(default_factory=list)

    def about(self, event: str, session: str) -> list[LogEvent]:
        return [line for line in self.lines if line.get("event") == event and line.get("sid") == session]

    async def written(self, event: str, session: str) -> LogEvent:
        """The one line of this event; waits for it."""
        await until(lambda: self.about(event, session))
        (line,) = self.about(event, session)
        return line

    def figure(self, name: str) -> float:
        """The sum of a figure over its labels, as Prometheus reads it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            text = page.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    lines: list[LogEvent] = []
    running = ServerProcess([*SERVE_DIALOGUE, "--metrics-port", "0", *SHORT_ANSWERS], on_event=lines.append)
    try:
        address = running.wait_for("listening", 100)["address"]
        port = running.wait_for("metrics", 100)["port"]
        running.wait_for("serving", 100)
        yield Process(address, port, lines)
    finally:
        assert running.stop() == 0


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "question.wav"
    write_wav(path, Waveform(best_of_times(48_000), 48_000))
    return path


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_talk_live_speaks_a_recording_and_hears_the_answer(
    process: Process, question: Path, tmp_path: Path
) -> None:
    done = run("talk", "--live", question, "--json", "--out-dir", tmp_path, "--server", process.address)
    assert done.returncode == 0, done.stderr
    *told, summary = json_lines(done.stdout)
    kinds = [event["event"] for event in told]
    assert kinds[0] == "started"
    for kind in ("partial_transcript", "final_transcript", "llm_token", "tts_chunk", "tts_complete", "turn_metrics"):
        assert kind in kinds
    assert "error" not in kinds
    (final,) = [event for event in told if event["event"] == "final_transcript"]
    assert SAID in final["text"]
    assert "".join(event["text"] for event in told if event["event"] == "llm_token").strip()
    assert summary["totals"]["answered"] == 1
    assert SAID in summary["turns"][0]["transcript"]
    answer = soundfile.info(summary["audio_files"][0])
    assert answer.duration > 0.2
    line = await process.written("latency", told[0]["session_id"])
    assert line["level"] == "info"
    assert (line["turn"], line["end"]) == (0, "complete")
    times = [line[f"{name}_ms"] for name in ("first_partial", "final_transcript", "first_token", "first_audio")]
    assert times == sorted(times)
    assert 0 < line["response_ms"] < line["first_audio_ms"]
    for name in ("first_partial", "final_transcript", "first_token", "first_audio", "response"):
        assert process.figure(f"taste_turn_{name}_seconds_count") >= 1
        assert process.figure(f"taste_turn_{name}_seconds_bucket") >= 1
    assert process.figure("taste_turns_total") >= 1


def test_reply_answers_a_recording_in_words(process: Process, question: Path) -> None:
    done = run("reply", question, "--json", "--max-new-tokens", "12", "--server", process.address)
    assert done.returncode == 0, done.stderr
    chunks = json_lines(done.stdout)
    assert all(chunk["success"] for chunk in chunks)
    assert "".join(chunk["text"] for chunk in chunks).strip()
    assert [chunk["is_final"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    done = here("reply", question, "--mode", "transcription", "--server", process.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert SAID in done.stdout


async def cancelled(talk: Talk) -> str:
    """A turn that was cancelled, and a cancel of none; returns the session's id."""
    await talk.type("Tell me a very long story.")
    await talk.until_phase("THINKING", 0)
    for _ in range(2):
        await talk.send(cancel={})
    await talk.until(lambda: talk.all("notice"))
    session_id: str = talk.all("started")[0].session_id
    return session_id


async def test_errors_and_notices_are_lines_of_their_own(process: Process) -> None:
    before = process.figure("taste_converse_errors_total")
    async with talking(process.address) as talk:
        session = await cancelled(talk)
        error = await process.written("error", session)
        assert error == {"event": "error", "code": "CANCELLED", "sid": session}
        assert (await process.written("info", session))["message"] == "there is no turn to cancel"
        line = await process.written("latency", session)
        assert line["end"] == "cancelled"
        assert "first_audio_ms" not in line
    assert process.figure("taste_converse_errors_total") == before + 1


@pytest.mark.parametrize(("value", "count"), [("0", 0), ("1", 1)])
def test_lines_can_be_left_out(
    value: str, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAM_LOG_LATENCY", value)
    LocalDialogue(load_settings(), RecordingEngine()).metrics.notice("a session", "something")
    assert len(json_lines(capsys.readouterr().out)) == count


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("STREAM_VAD_SILENCE_MS", "299", "Input should be greater than or equal to 300"),
        ("STREAM_LLM_TIMEOUT_S", "soon", "Input should be a valid number"),
        ("STREAM_LOG_LATENCY", "maybe", "Input should be a valid boolean"),
    ],
)
def test_a_setting_that_is_not_allowed_is_one_line(name: str, value: str, why: str) -> None:
    done = here("serve", *SERVE_DIALOGUE, **{name: value})
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"taste-grpc: stream.{name.removeprefix('STREAM_').lower()}: '{value}': {why}")
    assert line.endswith(f"(environment variable {name})")
