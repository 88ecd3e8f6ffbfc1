"""How servers and commands end: by signals, with those who started them, and when nobody reads any more."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from taste.v1 import taste_pb2, taste_pb2_grpc
from taste_grpc.own_server import ServerProcess, own_server
from tests.support import messages
from tests.support.command_line import COMMAND, SERVE_TINY, environment, run, serving, write_recording
from tests.support.details import read_failure

LONG = ("--extra-words", "1024", "--max-length", "4096", "--text-top-p", "1", "--text-temperature", "2")
"""Options of an answer that goes on for longer than a test takes."""


async def event(server: ServerProcess, name: str) -> dict:
    return await asyncio.to_thread(server.wait_for, name, 100)


async def status_of(server: ServerProcess, timeout_s: float = 60) -> int:
    return await asyncio.to_thread(server.process.wait, timeout_s)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


# --- servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_calls_finish(number: signal.Signals, tmp_path: Path):
    with serving(tmp_path / "log", *SERVE_TINY, "--drain-grace-s", "60") as server:
        address = (await event(server, "listening"))["address"]
        await event(server, "serving")
        async with grpc.aio.insecure_channel(address) as channel:
            stub = taste_pb2_grpc.TasteServiceStub(channel)
            config, segment = messages.detokenize_requests()
            call = stub.Detokenize()
            await call.write(config)
            await call.write(segment)
            while not (await call.read()).is_final:
                pass
            server.process.send_signal(number)
            assert (await event(server, "draining"))["active_calls"] == 1
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetModelInfo(taste_pb2.GetModelInfoRequest())
            assert read_failure(refused.value).retry_s
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await call.write(segment)
            await call.done_writing()
            while not (await call.read()).is_final:
                pass
            assert await call.read() is grpc.aio.EOF
            assert await status_of(server) == 0
        await event(server, "stopped")


async def test_a_signal_while_loading_ends_the_server_at_once(tmp_path: Path):
    with serving(tmp_path / "log", *SERVE_TINY) as server:
        address = (await event(server, "listening"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await taste_pb2_grpc.TasteServiceStub(channel).GetModelInfo(taste_pb2.GetModelInfoRequest())
            assert read_failure(refused.value).reason == "ERROR_REASON_NOT_SERVING"
        server.process.terminate()
        await event(server, "stopped while loading")
        assert await status_of(server) == 0


PARENT = """
import sys
from taste_grpc.own_server import ServerProcess
server = ServerProcess(sys.argv[1:])
server.wait_for("serving", 100)
print(server.process.pid, flush=True)
sys.stdin.read()
"""


def test_a_server_ends_with_the_process_that_started_it():
    command = [sys.executable, "-c", PARENT, *SERVE_TINY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as parent:
        assert parent.stdout is not None
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        ended, _, _ = select.select([server], [], [], 60)
        assert ended, "the server outlived its parent"
    finally:
        os.close(server)


# --- commands -----------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str | Path, **changes: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_a_command_and_the_server_it_started(tmp_path: Path):
    port_file = tmp_path / "port"
    server = (*SERVE_TINY[:2], "--json")
    with started("generate", "--user", "hello", *LONG, *server, TASTE_PORT_FILE=str(port_file)) as process:
        assert json.loads(process.stdout.readline())["index"] == 0
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "")
    assert is_refused(int(port_file.read_text()))


def test_ctrl_c_while_the_server_loads(tmp_path: Path):
    """On a terminal, where it can be seen how far it is."""
    ours, theirs = os.openpty()
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [*COMMAND, "info", *SERVE_TINY[:2]],
        env=environment(TASTE_PORT_FILE=str(port_file)),
        stderr=theirs,
        stdout=theirs,
    )
    os.close(theirs)
    seen = b""
    with open(ours, "rb", buffering=0) as terminal:
        while b"loading model" not in seen:
            seen += terminal.read(4096)
        process.send_signal(signal.SIGINT)
        while True:  # to its end, which Linux tells by an error
            try:
                seen += terminal.read(4096)
            except OSError:
                break
    assert process.wait(60) == 130
    assert b"Traceback" not in seen
    assert is_refused(int(port_file.read_text()))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with own_server(SERVE_TINY) as address:
        yield address


@pytest.mark.parametrize("command", ["generate", "talk"])
def test_a_command_whose_output_nobody_reads_ends_quietly(command: str, address: str, tmp_path: Path):
    recording = write_recording(tmp_path / "q.wav")
    arguments = {
        "generate": ("--user", "hello", *LONG, "--json"),
        "talk": (recording, "--text", "hello", "--extra-words", "500", "-o", tmp_path / "a.wav"),  # on another thread
    }
    with started(command, *arguments[command], "--server", address) as process:
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (141, "")
    assert not (tmp_path / "a.wav").exists()


def test_a_deadline_ends_a_command(address: str):
    done = run("generate", "--user", "hello", *LONG, "--timeout", "1", "--server", address, "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["error"]["code"] == "DEADLINE_EXCEEDED"


def test_talk_starts_a_server_of_its_own(tmp_path: Path):
    recording = write_recording(tmp_path / "q.wav")
    done = run("talk", recording, *SERVE_TINY[:2], "--text", "how are you", "-o", tmp_path / "a.wav", TASTE_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "a.wav").stat().st_size > 44
