"""`taste-grpc talk --live` against a scripted server: as a process and, where that makes no difference, in this one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from taste.v1 import common_pb2
from tests.support.command_line import COMMAND, environment, here, run, without
from tests.support.scripted_dialogue import ANSWER, CHUNK_MS, CHUNKS, ScriptedServer, scripted_server

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000
SAID = "".join(ANSWER)
QUICK = ("--silence-ms", "300")


def tone(ms: int, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(0.3 * np.arange(1, rate * ms // 1000 + 1))


def silence(ms: int) -> np.ndarray:
    return np.zeros(RATE * ms // 1000)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audio")


@pytest.fixture(scope="module")
def question(folder: Path) -> Path:
    path = folder / "question.wav"
    soundfile.write(path, tone(200), RATE)
    return path


def live(*arguments: Any, server: ScriptedServer) -> tuple[Any, ...]:
    return ("talk", "--live", *QUICK, "--server", server.address, *arguments)


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as audio:
        assert (audio.getnchannels(), audio.getsampwidth(), audio.getframerate()) == (1, 2, RATE)
        return np.frombuffer(audio.readframes(audio.getnframes()), "<i2")


# --- recordings ---------------------------------------------------------------------------------------


def test_all_turns_of_a_recording_are_answered(server: ScriptedServer, folder: Path, tmp_path: Path):
    path = folder / "two.wav"
    soundfile.write(path, np.concatenate([tone(200), silence(900), tone(200)]), RATE)
    done = run(*live(path, "--out-dir", tmp_path / "deep" / "out", server=server))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"you:    hello there\nanswer: {SAID}\n") == 2
    assert "2 turns, 2 answered" in done.stdout
    assert re.search(r"│ median +│ +40 │ +610 │ +│ +750 │", done.stdout)
    talk = server.dialogue.conversations[-1]
    assert talk.phases == ["CAPTURING", "THINKING", "RESPONDING", "COMPLETE", "IDLE"] * 2
    assert talk.half_closed
    files = [tmp_path / "deep" / "out" / f"answer-{turn}.wav" for turn in range(2)]
    assert f"the answers are in {files[0]}, {files[1]}" in done.stdout
    for turn, file in enumerate(files):
        assert np.array_equal(samples(file), np.full(RATE * CHUNKS * CHUNK_MS // 1000, 1000 * (turn + 1)))
    # The answers are acknowledged as if they were played, bit by bit and to the end.
    for turn in range(2):
        played = [ms for number, ms in talk.acks if number == turn]
        assert played == sorted(played)
        assert (len(played) > 1, played[-1]) == (True, CHUNKS * CHUNK_MS)


def test_events_as_json(server: ScriptedServer, question: Path, tmp_path: Path):
    done = here(*live(question, "--json", "--out-dir", tmp_path, server=server))
    assert (done.returncode, done.stderr) == (0, "")
    *events, summary = map(json.loads, done.stdout.splitlines())
    assert events[0] == {**events[0], "event": "started", "session_id": "s-1", "sample_rate_hz": RATE}
    assert [event["at_ms"] for event in events] == sorted(event["at_ms"] for event in events)
    names = list(dict.fromkeys(event["event"] for event in events))
    assert names == [
        "started", "phase_change", "partial_transcript", "final_transcript", "llm_token", "tts_chunk", "tts_complete",
        "turn_metrics", "mark",
    ]  # fmt: skip
    assert "".join(event["text"] for event in events if event["event"] == "llm_token") == SAID
    assert summary["event"] == "summary"
    assert summary["totals"]["answered"] == 1
    assert summary["turns"][0]["transcript"] == "hello there"
    assert summary["audio_files"] == [str(tmp_path / "answer-0.wav")]


def test_options_reach_the_server(server: ScriptedServer, folder: Path, tmp_path: Path):
    path = folder / "stereo.flac"
    soundfile.write(path, np.stack([tone(200, 48_000)] * 2, axis=1), 48_000)
    options = ("--no-barge-in", "--system-prompt", "Be brief.", "--voice", "joe", "--turns", "1")
    done = here(*live(path, *options, "--out-dir", tmp_path, server=server))
    assert (done.returncode, done.stderr) == (0, "")
    talk = server.dialogue.conversations[-1]
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=48_000, channels=2)
    assert talk.start.input_format == form
    assert (talk.start.system_prompt, talk.start.voice.name) == ("Be brief.", "joe")
    assert {field.name: value for field, value in talk.start.options.ListFields()} == {
        "vad_silence_ms": 300,
        "barge_in": False,
    }
    assert not [request for request in talk.received if request.HasField("mark")], "one turn was enough"
    assert talk.acks[-1] == (0, CHUNKS * CHUNK_MS)


def test_speech_interrupts_an_answer(server: ScriptedServer, folder: Path, tmp_path: Path):
    path = folder / "impatient.wav"
    soundfile.write(path, np.concatenate([tone(200), silence(400), tone(600)]), RATE)
    done = here(*live(path, "--system", "long", "--out-dir", tmp_path, server=server))
    assert (done.returncode, done.stderr) == (0, "")
    assert "interrupted; " in done.stdout
    assert "2 turns, 2 answered, 1 interrupted" in done.stdout
    talk = server.dialogue.conversations[-1]
    assert max(ms for turn, ms in talk.acks if turn == 0) < 10 * CHUNKS * CHUNK_MS


@pytest.mark.parametrize(
    ("prompt", "message", "turns"),
    [
        ("fail LLM_TIMEOUT", "turn 0: LLM_TIMEOUT: as scripted", "1 turn, 0 answered, 1 failed"),
        ("fatal", "INTERNAL: as scripted (conversation s-1)", "1 turn, 0 answered"),
        ("cut", "INTERNAL: cut", "1 turn, 0 answered"),
    ],
)
def test_what_fails_is_told_and_shown(
    server: ScriptedServer, question: Path, tmp_path: Path, prompt: str, message: str, turns: str
):
    done = here(*live(question, "--system", prompt, "--out-dir", tmp_path / "out", server=server))
    assert (done.returncode, done.stderr) == (1, f"taste-grpc: {message}\n")
    assert "you:    hello there" in done.stdout
    assert turns in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_fails_is_told_as_json(server: ScriptedServer, question: Path, tmp_path: Path):
    done = here(*live(question, "--system", "fatal", "--json", "--out-dir", tmp_path, server=server))
    assert done.returncode == 1
    error = json.loads(done.stderr)["error"]
    assert (error["message"], error["reason"]) == (
        "INTERNAL: as scripted (conversation s-1)",
        "CONVERSE_ERROR_CODE_INTERNAL",
    )
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "summary"


def test_silence_is_not_answered(server: ScriptedServer, folder: Path, tmp_path: Path):
    path = folder / "silence.wav"
    soundfile.write(path, silence(100), RATE)
    done = here(*live(path, "--out-dir", tmp_path, "--system", "away", server=server))
    assert (done.returncode, done.stderr) == (1, "taste-grpc: FILE: nothing in it was answered\n")
    assert done.stdout == "the server is about to stop, within 1.5 s\n0 turns, 0 answered\n"


def test_a_server_that_is_not_there(question: Path):
    done = here("talk", "--live", question, "--server", "127.0.0.1:1")
    assert done.returncode == 1
    assert "UNAVAILABLE: nothing listens at 127.0.0.1:1" in done.stderr
    assert done.stdout == ""


USAGE = {
    "an option of questions": (("--live", "{wav}", "--plot", "x.png"), "--plot: is not for --live"),
    "another": (("--live", "{wav}", "--extra-words", "3"), "--extra-words: is not for --live"),
    "an option of conversations": (("{wav}", "--turns", "2"), "--turns: goes with --live"),
    "no barge-in": (("{wav}", "--no-barge-in"), "--barge-in: goes with --live"),
    "no turns": (("--live", "{wav}", "--turns", "0"), "--turns: 1 or more is expected, not 0"),
    "no recording": (("--live", "nowhere.wav"), "FILE: nowhere.wav: No such file"),
    "not a recording": (("--live", __file__), "Format not recognised"),
    "tls without server": (("--live", "{wav}", "--tls"), "--tls: goes with --server"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str, question: Path, tmp_path: Path):
    arguments, message = USAGE[name]
    done = here("talk", *(argument.format(wav=question) for argument in arguments), cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


# --- processes ----------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: Any, cwd: Path, **changes: str) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_it_politely(server: ScriptedServer, folder: Path, tmp_path: Path):
    path = folder / "long.wav"
    soundfile.write(path, tone(60_000), RATE)
    with started(*live(path, "--json", server=server), cwd=tmp_path) as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "partial_transcript":
            pass
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    *_, summary = map(json.loads, output.splitlines())
    assert summary["totals"] == {**summary["totals"], "turns": 1, "answered": 0}
    assert summary["turns"][0]["errors"] == [{"code": "CANCELLED", "message": "as scripted"}]
    assert summary["turns"][0]["transcript"] == "hel"
    server.dialogue.wait_for(lambda talk: talk.half_closed)
    assert server.dialogue.conversations[-1].received[-1].HasField("cancel")


def test_when_nobody_reads_the_output(server: ScriptedServer, question: Path, tmp_path: Path):
    with started(*live(question, "--json", server=server), cwd=tmp_path) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, "")
    server.dialogue.wait_for(lambda talk: talk.over)


def test_on_a_terminal_it_changes_in_place(server: ScriptedServer, question: Path, tmp_path: Path):
    ours, theirs = os.openpty()
    command = [*COMMAND, *map(str, live(question, server=server))]
    there = environment(TERM="xterm")
    with subprocess.Popen(command, cwd=tmp_path, env=there, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with open(ours, "rb", buffering=0) as terminal:
            while True:  # to its end, which Linux tells by an error
                try:
                    seen += terminal.read(4096)
                except OSError:
                    break
    assert process.returncode == 0, seen
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    parts = ("Ctrl-C ends", "you:    hel\r", "you:    hello there", "responding", "1 turn")
    order = [text.index(part) for part in parts]
    assert order == sorted(order)
    assert "answer: Well, I\r" in text, "the words come one by one"
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") > 0, "the cursor is hidden, and shown again"


# --- microphone and loudspeaker -----------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, str]:
    """Environment of a machine with sound: somebody speaks for 0.2 s."""
    (tmp_path / "microphone").write_bytes((32767 * tone(200)).astype("<i2").tobytes())
    path = [str(ROOT / "tests" / "support" / "fake_sound"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "FAKE_MICROPHONE": str(tmp_path / "microphone"),
        "FAKE_LOUDSPEAKER": str(tmp_path / "loudspeaker"),
    }


def test_through_microphone_and_loudspeaker(server: ScriptedServer, sound: dict[str, str], tmp_path: Path):
    done = run(*live("--turns", "1", server=server), cwd=tmp_path, **sound)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"answer: {SAID}" in done.stdout
    talk = server.dialogue.conversations[-1]
    assert (talk.start.input_format.sample_rate_hz, talk.start.input_format.channels) == (RATE, 1)
    assert talk.received[1].HasField("playback_credit")
    assert talk.acks[-1] == (0, CHUNKS * CHUNK_MS)
    assert talk.half_closed
    played = np.frombuffer((tmp_path / "loudspeaker").read_bytes(), "<i2")
    assert np.array_equal(played[played != 0], samples(tmp_path / "out" / "answer-0.wav"))


def test_ctrl_c_is_the_end_of_a_microphone(server: ScriptedServer, sound: dict[str, str], tmp_path: Path):
    del sound["FAKE_LOUDSPEAKER"]
    with started(*live("--json", server=server), cwd=tmp_path, **sound) as process:
        server.dialogue.wait_for(lambda talk: talk.phases[-1:] == ["IDLE"] and not talk.over)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(output.splitlines()[-1])["totals"]["answered"] == 1
    server.dialogue.wait_for(lambda talk: talk.half_closed)


def test_a_machine_without_microphone(sound: dict[str, str], tmp_path: Path):
    del sound["FAKE_MICROPHONE"]
    done = run("talk", "--live", **sound)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "FILE: none was given, and the microphone is not there: Error querying device -1" in done.stderr
    done = run("talk", "--live", **without(tmp_path, "sounddevice"))
    assert (done.returncode, "needs sounddevice: pip install 'taste-grpc[live]'" in done.stderr) == (2, True)


# --- the client's README ------------------------------------------------------------------------------


def test_the_conversations_of_the_readme_run(server: ScriptedServer, question: Path, tmp_path: Path):
    text = (ROOT / "clients" / "python" / "README.md").read_text(encoding="utf-8")
    chapter = text.partition("## A live conversation")[2].partition("\n## ")[0]
    snippets = re.findall(r"^```py(?:thon)?\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    (tmp_path / "question.wav").write_bytes(question.read_bytes())
    before = "import asyncio\nfrom taste_grpc_client import AsyncTasteClient, TasteClient, WavWriter\n"
    before += "client = TasteClient('localhost:50051')\n"
    program = (before + snippets[0] + "print()\n").replace("localhost:50051", server.address)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"heard: hello there\n{SAID}\n"
