"""What the gRPC layer costs: messages per second of our server against those of a bare grpc.aio server.

    python benchmarks/wire.py [--quick]

Ours serves an engine that computes nothing: every message of its Generate streams comes off the model thread through
the queue of its job, is made from the engine's result, and passes the interceptor. The bare server sends messages of
the same content from a list. Servers and clients are processes, the clients of both the same; they leave the messages
unparsed, but for a first run in which each is looked at.

JSON keys: `fraction_1`, `fraction_16` and `fraction_64`, our rate over the bare one with so many streams at once (at
least 0.7 wanted), each the median over rounds in which the two sides alternate. `streams` holds, by the number of
streams and the side, the median rate and the CPU time that a message took the server and the client, all threads
together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from _report import report

SIDES = ("taste", "bare")
TIMES = {1: 8, 16: 2, 64: 1}
"""How often so many streams at once are read for one figure, by the number of streams."""
MESSAGES = 512
"""Of each stream: the default `max_length` of Generate, of one word each."""
ROUNDS = 9

Figures = dict[str, float]


@dataclass
class Side:
    """A server and its client."""

    server: psutil.Process
    client: subprocess.Popen[str]

    def measure(self, streams: int, messages: int, times: int = 1, *, closely: bool = False) -> Figures:
        """Read streams at once, so many `times`.

        `rate` is in messages per second, `server_us` and `client_us` are of a message.
        """
        order = {"streams": streams, "messages": messages, "closely": closely}
        before = _cpu_s(self.server)
        found = [json.loads(_ask(self.client, order)) for _ in range(times)]
        server_s = _cpu_s(self.server) - before
        count, seconds, client_s = (sum(each[key] for each in found) for key in ("messages", "seconds", "cpu_s"))
        return {"rate": count / seconds, "server_us": 1e6 * server_s / count, "client_us": 1e6 * client_s / count}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ask(process: subprocess.Popen[str], order: dict[str, object] | None = None) -> str:
    """The next line of `process`, after telling it to do something. Raises SystemExit when there is none."""
    assert process.stdin is not None
    assert process.stdout is not None
    if order is not None:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process has ended with status {process.wait()}")
    return line


@contextmanager
def _process(script: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    """A script of this folder under way. Log lines go nowhere; what a client cannot do, it says at stderr."""
    command = [sys.executable, str(Path(__file__).with_name(script)), argument]
    log = subprocess.DEVNULL if script == "_wire_server.py" else None
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", **os.environ}


@contextmanager
def sides() -> Iterator[dict[str, Side]]:
    """Both sides under way, until they are left."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_process("_wire_server.py", name)) for name in SIDES}
        found = {}
        for name, server in servers.items():
            port = int(_ask(server))
            client = stack.enter_context(_process("_wire_client.py", f"127.0.0.1:{port}"))
            found[name] = Side(psutil.Process(server.pid), client)
        yield found


def compare(found: dict[str, Side], streams: int, messages: int, times: int, rounds: int) -> dict[str, list[Figures]]:
    """What each side did in each round, after one in which every message is looked at."""
    for side in found.values():
        side.measure(streams, messages, closely=True)
    figures: dict[str, list[Figures]] = {name: [] for name in found}
    for number in range(rounds):
        names = list(found) if number % 2 else list(reversed(found))
        for name in names:
            figures[name].append(found[name].measure(streams, messages, times))
    return figures


def summary(figures: dict[str, list[Figures]]) -> tuple[float, dict[str, Figures]]:
    """The fraction, and the medians of each side."""
    fractions = [ours["rate"] / bare["rate"] for ours, bare in zip(figures["taste"], figures["bare"], strict=True)]
    medians = {
        name: {key: round(statistics.median(each[key] for each in rounds), 1) for key in rounds[0]}
        for name, rounds in figures.items()
    }
    return round(statistics.median(fractions), 3), medians


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, a quarter of the messages")
    arguments = parser.parse_args()
    rounds, part = (1, 4) if arguments.quick else (ROUNDS, 1)
    fractions, medians = {}, {}
    with sides() as found:
        for streams, times in TIMES.items():
            figures = compare(found, streams, MESSAGES // part, times, rounds)
            fractions[f"fraction_{streams}"], medians[str(streams)] = summary(figures)
    title = "messages of Generate streams, engine that computes nothing"
    report(title, table(fractions, medians), {**fractions, "streams": medians, "rounds": rounds}, arguments.quick)


def table(fractions: dict[str, float], medians: dict[str, dict[str, Figures]]) -> list[tuple[str, str]]:
    """The rows for people."""
    rows = []
    for streams, of in medians.items():
        for name, label in (("taste", "taste-grpc"), ("bare", "bare grpc.aio")):
            each = of[name]
            rows.append((f"{streams} streams: {label}", f"{each['rate']:,.0f} messages/s"))
            spent = f"{each['server_us']:.0f} us of the server, {each['client_us']:.0f} us of the client"
            rows.append(("  CPU time of a message", spent))
        rows.append((f"{streams} streams: fraction", str(fractions[f"fraction_{streams}"])))
    return rows


if __name__ == "__main__":
    main()
