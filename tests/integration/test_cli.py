"""The command line as a user runs it: processes, exit statuses, files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from taste.v1 import taste_pb2, taste_pb2_grpc
from taste_grpc.audio import Waveform, write_wav
from taste_grpc.own_server import own_server
from tests.checkpoints import TINY
from tests.support import messages
from tests.support.details import read_failure

SERVE_TINY = ["--model", str(TINY), "--threads", "1", "--log-format", "json", "--device", "cpu"]


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taste_grpc.cli", *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def address(log: Path) -> Iterator[str]:
    """A server process over the tiny checkpoint."""
    with own_server(SERVE_TINY, log=log) as address:
        yield address


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "question.wav"
    noise = np.random.default_rng(1).standard_normal(32_000).astype(np.float32) * 0.1
    write_wav(path, Waveform(noise, 16_000))
    return path


# --- without a server -------------------------------------------------------------------------------


def test_help_takes_less_than_a_second():
    times = []
    for _ in range(5):
        begun = time.monotonic()
        done = run("--help")
        times.append(time.monotonic() - begun)
        assert done.returncode == 0
    assert all(command in done.stdout for command in ("serve", "talk", "info", "parity"))
    assert min(times) < 1.0


@pytest.mark.parametrize("command", ["serve", "talk", "info", "parity"])
def test_each_command_explains_itself(command: str):
    done = run(command, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        ((), 2, "Usage"),
        (("nonsense",), 2, "nonsense"),
        (("serve", "--port", "many"), 2, "--port"),
        (("serve", "--port", "99999"), 1, "--port"),
        (("serve", "--device", "gpu"), 1, "--device"),
        (("serve", "--config", "nowhere.toml"), 1, "nowhere.toml"),
        (("serve", "--host", "10.255.255.1", *SERVE_TINY), 1, "10.255.255.1"),
        (("serve", "--model", "/nowhere", "--port", "0"), 1, "/nowhere"),
        (("talk", "nowhere.wav"), 2, "nowhere.wav"),
        (("talk", __file__), 2, "not a WAV"),
        (("talk",), 2, "FILE"),
        (("info", "--server", "127.0.0.1:1"), 1, "UNAVAILABLE"),
        (("info", "--server", "127.0.0.1:1", "--model", "x"), 2, "--model"),
        (("parity", "nowhere"), 2, "nowhere"),
    ],
)
def test_failures_have_a_status_and_a_sentence(arguments: tuple[str, ...], status: int, word: str):
    done = run(*arguments, COLUMNS="200")
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert word in done.stderr + done.stdout


def test_a_bad_setting_is_one_line_on_stderr():
    done = run("serve", TASTE_PORT="lots")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "TASTE_PORT" in line


def test_print_config_shows_what_counts(tmp_path: Path):
    config = tmp_path / "taste.toml"
    config.write_text('host = "file"\n[limits]\nmax_segments = 7\n')
    shown = run("serve", "--config", str(config), "--port", "5", "--print-config", TASTE_PORT="6", TASTE_HOST="env")
    assert shown.returncode == 0
    assert 'host = "env"' in shown.stdout
    assert "port = 5\n" in shown.stdout
    assert "max_segments = 7" in shown.stdout
    config.write_text(shown.stdout)
    again = json.loads(run("serve", "--config", str(config), "--print-config", "--json").stdout)
    assert (again["port"], again["host"], again["limits"]["max_segments"]) == (5, "env", 7)


def test_parity_passes_its_status_on():
    done = run("parity", str(TINY), "--stage", "speaker*")
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d+) of \1 ok", done.stdout.splitlines()[-1])


# --- with a server ------------------------------------------------------------------------------------


def test_talk_saves_a_wav_and_prints_what_came_back(address: str, recording: Path, tmp_path: Path):
    out = tmp_path / "deep" / "answer.wav"
    done = run(
        "talk", str(recording), "--server", address, "--text", "how are you", "--out", str(out), "--seed", "1",
        COLUMNS="200",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with wave.open(str(out)) as audio:
        assert audio.getnchannels() == 1
        assert audio.getnframes() > 0
    assert "how are you" in done.stdout
    assert all(word in done.stdout for word in ("first words", "first audio", "answer complete", "random"))
    assert "spoken_lm" in done.stdout


def test_talk_as_json(address: str, recording: Path, tmp_path: Path):
    arguments = ("talk", str(recording), "--server", address, "--text", "how are you", "--seed", "1", "--json")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    answer = told["answer"]
    assert told["transcript"] == "how are you"
    assert len(answer["text_ids"]) == len(answer["word_ids"])
    assert len(answer["codes"]) == answer["vq_dim"] * len(answer["text_ids"])
    assert answer["word_ids"] == sorted(answer["word_ids"])
    assert (tmp_path / told["audio_file"]).stat().st_size > 44
    assert {"audio_tower", "spoken_lm", "voice_generator"} <= set(told["random_parts"])
    again = json.loads(run(*arguments, cwd=tmp_path).stdout)
    assert again["answer"] == answer, "a seed makes the answer repeatable"


def test_info_says_what_is_random(address: str):
    shown = run("info", "--server", address, COLUMNS="200")
    assert shown.returncode == 0
    assert "spoken_lm RANDOM" in shown.stdout
    told = json.loads(run("info", "--server", address, "--json").stdout)
    assert told["model_id"] == "taste-tiny"
    assert told["limits"]["max_audio_ms"] == 30_000
    assert {part["name"] for part in told["parts"] if not part["trained"]} >= {"spoken_lm", "voice_generator"}


def test_the_log_has_a_line_per_call_and_says_what_is_random(address: str, log: Path):
    run("info", "--server", address)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    calls = [line for line in lines if line["event"] == "call"]
    assert {"request_id", "peer", "method", "code", "duration_ms"} <= set(calls[-1])
    assert [line for line in lines if "spoken_lm" in line.get("random_parts", "")]


def test_talk_starts_a_server_of_its_own(recording: Path, tmp_path: Path):
    done = run(
        "talk", str(recording), "--model", str(TINY), "--text", "how are you", "--out", str(tmp_path / "a.wav"),
        TASTE_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.wav").stat().st_size > 44


# --- how a server ends ----------------------------------------------------------------------------------


class Serving:
    """`taste-grpc serve` on the tiny checkpoint."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port_file = folder / "port"
        command = [sys.executable, "-m", "taste_grpc.cli", "serve", "--port", "0", "--port-file", str(self.port_file)]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *SERVE_TINY, *flags], stderr=log)

    async def listening(self) -> str:
        async with asyncio.timeout(60):
            while not self.port_file.exists():
                await asyncio.sleep(0.01)
        return f"127.0.0.1:{int(self.port_file.read_text())}"

    async def ended(self, timeout_s: float = 30) -> int:
        return await asyncio.to_thread(self.process.wait, timeout_s)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


async def model_loaded(stub) -> None:
    async with asyncio.timeout(100):
        while True:
            try:
                await stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
            except grpc.aio.AioRpcError as error:
                if read_failure(error).reason != "ERROR_REASON_NOT_SERVING":
                    raise
            else:
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_calls_finish(number: signal.Signals, tmp_path: Path):
    with Serving(tmp_path, "--drain-grace-s", "60") as serving:
        async with grpc.aio.insecure_channel(await serving.listening()) as channel:
            stub = taste_pb2_grpc.TasteServiceStub(channel)
            await model_loaded(stub)
            config, segment = messages.detokenize_requests()
            call = stub.Detokenize()
            await call.write(config)
            await call.write(segment)
            assert (await call.read()).is_final
            serving.process.send_signal(number)
            await asyncio.sleep(0.5)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
            assert read_failure(refused.value).retry_s
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await call.write(segment)
            await call.done_writing()
            assert (await call.read()).is_final
            assert await call.read() is grpc.aio.EOF
            assert await serving.ended() == 0
    events = [json.loads(line)["event"] for line in serving.log.read_text().splitlines()]
    assert events[-1] == "stopped"


async def test_a_signal_while_loading_ends_the_server_at_once(tmp_path: Path):
    with Serving(tmp_path) as serving:
        async with grpc.aio.insecure_channel(await serving.listening()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await taste_pb2_grpc.TasteServiceStub(channel).GetModelInfo(taste_pb2.GetModelInfoRequest())
            assert read_failure(refused.value).reason == "ERROR_REASON_NOT_SERVING"
        serving.process.terminate()
        assert await serving.ended(5) == 0


PARENT = """
import sys, time
from taste_grpc.own_server import own_server
with own_server(sys.argv[1:]) as address:
    print(address, flush=True)
    time.sleep(1000)
"""


def test_a_server_ends_with_the_process_that_started_it():
    with subprocess.Popen([sys.executable, "-c", PARENT, *SERVE_TINY], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        host, port = parent.stdout.readline().strip().split(":")
        socket.create_connection((host, int(port))).close()
        parent.kill()
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.1)
