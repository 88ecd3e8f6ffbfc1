"""What somebody who is being answered notices of another call that comes with half a minute of speech.

    python benchmarks/fairness.py [--quick] [--threads N]

A language model of 0.3 billion random weights and an audio tower a quarter as wide as the published one, in an engine
in this process. One Generate call is under way, whose ids are timed; then another one sends a recording of 30 s with
its 120 words, which goes through the audio tower and, as a prompt, through the language model.

JSON keys:

- `prefill_delay_over_step`: how much longer than the median id of the call alone its ids take while the other call is
  listened to, in such medians: what 95 % of them stay below, the median over 5 rounds (at most 2 wanted);
- `worst_delay_over_step`: the same of the slowest id of a round;
- `step_ms`: the median id alone; `listening_s`: from the other call's start to its first result; `ids_meanwhile`: of
  the first call, in that time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from taste_grpc.audio import Waveform
from taste_grpc.engine import EngineSettings, GenerateRequest, GenerateResult, LocalEngine, SegmentInput
from taste_grpc.model.embedded.random_checkpoint import (
    LanguageSizes,
    RandomSizes,
    words_tokenizer,
    write_random_checkpoint,
)

sys.path.insert(0, str(Path(__file__).parent))
from _report import report
from _speaking import QUARTER

SIZES = RandomSizes(
    language=LanguageSizes(hidden=1024, layers=16, heads=16, kv_heads=8, ffn=4096, vocab_size=49_155),
    speech=replace(QUARTER, tower_width=320),
)
CLIP_S, CLIP_WORDS, RATE_HZ = 30, 120, 16_000
IDS_ALONE, QUICK_IDS_ALONE = 32, 12
MOST_IDS = 1000
ROUNDS = 5


def heard(seed: int, words: int, seconds: float) -> SegmentInput:
    """A recording with its text; what is in it does not change what it costs."""
    noise = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ)) * 0.1
    return SegmentInput("user", "audio", audio=Waveform(noise.astype(np.float32), RATE_HZ), text=text(seed, words))


def text(seed: int, words: int) -> str:
    """Words the tokenizer has whole."""
    numbers = np.random.default_rng(seed).integers(0, 1000, words)
    return " ".join(f"w{number}" for number in numbers)


class Talking:
    """An answer under way, read as it comes."""

    def __init__(self, engine: LocalEngine, segment: SegmentInput, ids: int, seed: int) -> None:
        request = GenerateRequest((segment,), text_top_p=0.9, extra_words=ids, max_length=ids, seed=seed)
        self._results: AsyncGenerator[GenerateResult] = engine.generate(request)
        self.arrivals: list[float] = []

    async def read(self, until: asyncio.Event | None = None, count: int | None = None) -> None:
        """Note when results arrive, until `until` is set or there are `count` more."""
        first = len(self.arrivals)
        async for result in self._results:
            self.arrivals.append(time.perf_counter())
            if result.is_complete:
                raise SystemExit("the answer ended before it was measured")
            if (until is not None and until.is_set()) or (count is not None and len(self.arrivals) - first >= count):
                return

    async def close(self) -> None:
        """End it."""
        await self._results.aclose()


async def one_round(engine: LocalEngine, alone: int, seed: int, words: int, seconds: float) -> dict[str, float]:
    """The figures of one round."""
    talking = Talking(engine, SegmentInput("user", "text", text=text(seed, 16)), MOST_IDS, seed)
    await talking.read(count=4)
    begin = len(talking.arrivals)
    await talking.read(count=alone)
    step = float(np.median(np.diff(talking.arrivals[begin:])))

    answered = asyncio.Event()

    async def listen() -> float:
        started = time.perf_counter()
        request = GenerateRequest((heard(seed, words, seconds),), extra_words=4, max_length=16, seed=seed)
        results = engine.generate(request)
        await anext(results)
        took = time.perf_counter() - started
        answered.set()
        await results.aclose()
        return took

    listening = asyncio.create_task(listen())
    begin = len(talking.arrivals) - 1
    await talking.read(until=answered)
    took = await listening
    await talking.close()
    delays = np.diff(talking.arrivals[begin:]) / step - 1.0
    return {
        "prefill_delay_over_step": float(np.percentile(delays, 95)),
        "worst_delay_over_step": float(delays.max()),
        "step_ms": 1000 * step,
        "listening_s": took,
        "ids_meanwhile": len(delays),
    }


async def measure(
    directory: str,
    settings: dict[str, Any],
    *,
    rounds: int,
    alone: int,
    words: int = CLIP_WORDS,
    seconds: float = CLIP_S,
) -> dict[str, Any]:
    """Medians over the rounds."""
    engine = LocalEngine(EngineSettings(model=directory, device="cpu", **settings))
    await engine.start()
    try:
        await one_round(engine, 4, 0, words, seconds)  # warm up
        found = [await one_round(engine, alone, seed, words, seconds) for seed in range(1, rounds + 1)]
    finally:
        await engine.drain(0)
    return {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]} | {"rounds": rounds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, fewer ids")
    parser.add_argument("--threads", type=int, help="threads of the model (default: its own)")
    arguments = parser.parse_args()
    rounds, alone = (1, QUICK_IDS_ALONE) if arguments.quick else (ROUNDS, IDS_ALONE)
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, seed=0, sizes=SIZES, text_tokenizer=words_tokenizer())
        figures = asyncio.run(measure(folder, {"threads": arguments.threads}, rounds=rounds, alone=alone))
    rows = [
        ("an id of the first call, alone", f"{figures['step_ms']:.0f} ms"),
        ("its delay by the second call, 95 %", f"{figures['prefill_delay_over_step']:.2f} ids"),
        ("at worst", f"{figures['worst_delay_over_step']:.2f} ids"),
        ("the second call's first word after", f"{figures['listening_s']:.1f} s"),
        ("ids of the first call meanwhile", f"{figures['ids_meanwhile']:.0f}"),
    ]
    report("a prompt of 30 s while another call talks", rows, figures, arguments.quick)


if __name__ == "__main__":
    main()
