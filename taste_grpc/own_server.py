"""A server of one's own, as a process, for commands that were given none."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taste_grpc.errors import TasteError, UnavailableError

_POLL_S = 0.1
_PROBE_S = 5.0
_STOP_S = 60.0

Progress = Callable[[str], None]


class ServerStartError(TasteError):
    """The server process ended before it served, or did not end as it should."""


@contextmanager
def own_server(flags: Sequence[str] = (), *, log: Path | None = None, timeout_s: float = 600.0) -> Iterator[str]:
    """Start `taste-grpc serve` on a free port, wait until it serves, and stop it at the end.

    Args:
        flags: further flags of `taste-grpc serve`.
        log: file that receives its log; its stderr is this process's when None.
        timeout_s: how long it may take to load.

    Yields:
        Its address, `host:port`.

    Raises:
        ServerStartError: it ended before it served, or its exit status was not 0.
        UnavailableError: it did not serve in time.
    """
    with tempfile.TemporaryDirectory(prefix="taste-grpc-") as scratch:
        port_file = Path(scratch) / "port"
        command = [
            sys.executable,
            "-m",
            "taste_grpc.cli",
            "serve",
            "--port",
            "0",
            "--port-file",
            str(port_file),
            "--lifeline",
            *flags,
        ]
        errors = log.open("wb") if log is not None else None
        # Its stdin is the lifeline: it ends when this process does, however that happens.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, stdout=errors)
        try:
            yield _serving(process, port_file, time.monotonic() + timeout_s)
        finally:
            status = _stop(process)
            if errors is not None:
                errors.close()
        if status != 0:
            raise ServerStartError(f"the server ended with status {status}")


def _serving(process: subprocess.Popen[bytes], port_file: Path, deadline: float) -> str:
    while not port_file.exists():
        _check(process, deadline)
        time.sleep(_POLL_S)
    address = f"127.0.0.1:{port_file.read_text().strip()}"
    with grpc.insecure_channel(address) as channel:
        while not _serves(channel):
            _check(process, deadline)
            time.sleep(_POLL_S)
    return address


def _serves(channel: grpc.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods carry no types
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_S)
    except grpc.RpcError:
        return False  # busy, or gone: the caller looks at the process
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _check(process: subprocess.Popen[bytes], deadline: float) -> None:
    status = process.poll()
    if status is not None:
        raise ServerStartError(f"the server ended with status {status} before it served; its log says why")
    if time.monotonic() > deadline:
        raise UnavailableError("the server did not load its model in time")


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()
