"""Phrases over processes that speak, with a program that does what the phrases say."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from taste_grpc.errors import SpeechError
from taste_grpc.speech import piper_process
from taste_grpc.speech.voice_process import Phrase
from taste_grpc.speech.voice_processes import VoiceProcesses

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "support" / "speaking_program.py"
COMMAND = [sys.executable, "-P", str(PROGRAM), piper_process.__file__]
PATIENCE_S = 3600.0
"""Never runs out within a test."""

Make = Callable[..., VoiceProcesses]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[VoiceProcesses] = []

    def make(count: int = 1, grace_s: float = PATIENCE_S, command: list[str] = COMMAND) -> VoiceProcesses:
        made.append(VoiceProcesses(command, count, grace_s))
        return made[-1]

    yield make
    for processes in made:
        await processes.aclose()
        assert processes.pids == []


async def said(processes: VoiceProcesses, text: str) -> list[tuple[int, ...]]:
    """Number of the phrase, of the word, and length of the word."""
    return [tuple(map(int, piece)) async for piece in processes.speak(text)]


async def words_made(processes: VoiceProcesses) -> tuple[int, int]:
    """Phrases and words that the one process has made so far."""
    [(phrases, words, _)] = await said(processes, "one")
    return phrases - 1, words - 1


async def until_waiting(processes: VoiceProcesses, count: int) -> None:
    while processes._waiting.qsize() != count:
        await asyncio.sleep(0)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A word that is said when somebody writes to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


async def open_gate(gate: Path) -> None:
    await asyncio.to_thread(gate.write_bytes, b"go")


async def test_phrases_at_once_do_not_mix(make: Make) -> None:
    processes = make(count=2)
    await processes.start()
    texts = [" ".join(["x" * length] * (1 + length % 4)) for length in range(1, 30)]
    for text, pieces in zip(texts, await asyncio.gather(*(said(processes, text) for text in texts)), strict=True):
        assert [length for _, _, length in pieces] == [len(word) for word in text.split()]
        assert len({phrase for phrase, _, _ in pieces}) == 1
    assert len(set(processes.pids)) == 2


async def test_first_come_first_served(make: Make) -> None:
    processes = make()
    phrases = await asyncio.gather(*(said(processes, "word") for _ in range(5)))
    assert [pieces[0][0] for pieces in phrases] == [1, 2, 3, 4, 5]


async def test_what_is_printed_does_not_get_between_the_frames(make: Make) -> None:
    assert [length for _, _, length in await said(make(), "print and on")] == [5, 3, 2]


async def test_a_phrase_that_is_dropped_midway_stops_there(make: Make) -> None:
    processes = make()
    async with aclosing(processes.speak("word " * 1000)) as pieces:
        assert len(await anext(pieces)) == 3
    phrases, words = await words_made(processes)
    assert phrases == 1
    assert words < 100


async def test_pieces_that_nobody_fetches_are_few() -> None:
    phrase, piece = Phrase("text"), np.zeros(1, np.float32)
    for _ in range(32):
        await phrase.put(piece)
    putting = asyncio.create_task(phrase.put(piece))
    await asyncio.sleep(0)
    assert not putting.done()
    await phrase.next_piece()
    await putting
    putting = asyncio.create_task(phrase.put(piece))
    await asyncio.sleep(0)
    assert not putting.done()
    phrase.drop()
    await putting


async def test_a_phrase_cancelled_while_it_waits_is_never_made(make: Make, gate: Path) -> None:
    processes = make()
    first = asyncio.create_task(said(processes, str(gate)))
    await processes.start()
    waiting = asyncio.create_task(said(processes, "never"))
    third = asyncio.create_task(said(processes, "third"))
    await until_waiting(processes, 2)
    waiting.cancel()
    await asyncio.wait([waiting])
    await open_gate(gate)
    assert len(await first) == 1
    assert await third == [(2, 2, 5)]
    assert waiting.cancelled()


async def test_a_process_that_dies_takes_one_phrase_with_it(make: Make) -> None:
    processes = make()
    await processes.start()
    [pid] = processes.pids
    dying, after = await asyncio.gather(said(processes, "word die"), said(processes, "after"), return_exceptions=True)
    assert isinstance(dying, SpeechError)
    assert str(dying) == "the process of the voice was ended with exit status 3"
    assert after == [(1, 1, 5)]
    assert processes.pids != [pid]


async def test_a_process_killed_under_way_is_named(make: Make, gate: Path) -> None:
    processes = make()
    async with aclosing(processes.speak(f"word {gate}")) as pieces:
        await anext(pieces)
        os.kill(processes.pids[0], signal.SIGKILL)
        with pytest.raises(SpeechError, match="SIGKILL"):
            await anext(pieces)


async def test_a_process_killed_while_idle_takes_no_phrase_with_it(make: Make) -> None:
    processes = make()
    await processes.start()
    [process] = processes._processes
    assert process._process is not None
    os.kill(processes.pids[0], signal.SIGKILL)
    await process._process.wait()
    assert await said(processes, "word") == [(1, 1, 4)]


async def test_a_process_that_hangs_with_a_dropped_phrase_is_replaced(make: Make) -> None:
    processes = make(grace_s=0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await said(processes, "hang")
    assert await said(processes, "word") == [(1, 1, 4)]


async def test_a_process_that_finishes_its_word_in_time_is_kept(make: Make, gate: Path) -> None:
    processes = make()
    await processes.start()
    [pid] = processes.pids
    speaking = asyncio.create_task(said(processes, f"{gate} never never"))
    with await asyncio.to_thread(gate.open, "wb"):  # returns when the process reads
        speaking.cancel()
        await asyncio.wait([speaking])
    assert (await words_made(processes))[0] == 1
    assert processes.pids == [pid]


async def test_what_cannot_be_spoken_costs_one_phrase_and_no_process(make: Make) -> None:
    processes = make()
    await processes.start()
    [pid] = processes.pids
    with pytest.raises(SpeechError, match="cannot say this: it is broken"):
        await said(processes, "break")
    assert await said(processes, "word") == [(2, 1, 4)]
    assert processes.pids == [pid]


async def test_closing_ends_phrases_and_processes(make: Make) -> None:
    processes = make()
    tasks = [asyncio.create_task(said(processes, text)) for text in ("hang", "waits")]
    await processes.start()
    await until_waiting(processes, 1)
    await processes.aclose()
    for task in tasks:
        with pytest.raises(SpeechError, match="has been closed"):
            await task
    with pytest.raises(SpeechError, match="has been closed"):
        await said(processes, "late")


async def test_closing_while_it_starts(make: Make) -> None:
    processes = make(command=[sys.executable, "-c", "import sys; sys.stdin.read()"])  # never ready
    starting = asyncio.create_task(processes.start())
    while not processes.pids:
        await asyncio.sleep(0)
    await processes.aclose()
    with pytest.raises(SpeechError, match="has been closed"):
        await starting


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", "raise SystemExit(4)"], "exit status 4"),
        (["/no/such/program"], "No such file"),
        ([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'F\\3\\0\\0\\0bad')"], "does not start: bad"),
    ],
)
async def test_a_program_that_does_not_start_says_why(make: Make, command: list[str], reason: str) -> None:
    processes = make(command=command)
    with pytest.raises(SpeechError, match=reason):
        await processes.start()
    with pytest.raises(SpeechError, match=reason):
        await said(processes, "word")


PARENT = """
import asyncio, os, sys
from taste_grpc.speech.voice_processes import VoiceProcesses

async def main():
    processes = VoiceProcesses(sys.argv[1:], 1, 3600.0)
    async for _ in processes.speak("word hang"):
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def test_processes_end_with_ours_however_that_ends() -> None:
    # the process inherits the error stream, so its end is seen only when both have ended
    parent = subprocess.run([sys.executable, "-c", PARENT, *COMMAND], cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
    assert parent.returncode == -signal.SIGKILL
