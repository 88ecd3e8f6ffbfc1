"""What sixteen Generate calls cost beside one, and what one costs beside reading the weights.

    python benchmarks/concurrency.py [--quick] [--threads N] [--dtype float32]

A language model of 0.3 billion random weights (16 layers, 1024 wide, 49,155 ids), which no cache holds, behind the
gRPC server in a process of its own; a client in another one notes when each id arrives. Every id is a word and comes in
a message of its own. All calls have a prompt of 16 words and bring the same number of ids, drawn with the settings that
calls have by default.

JSON keys; every ratio is of times of the same round, in which all sides take turns, and the median over 5 rounds:

- `speedup_16`: ids per second while 16 calls run over those while one does;
- `gemm_gain_16`: what 16 rows gain over one in the bare matrix products of all linear layers of a step, one after the
  other, with the same weights, dtype and threads: 16 times the seconds for one row over those for 16. For both, torch's
  `x @ W.T` or `W @ x.T`, whichever is faster, and nothing in between;
- `speedup_16_over_gemm`: the first over the second (at least 0.7 wanted);
- `bandwidth_fraction`: bytes of these weights, and those of the norms, times ids per second of one call, over the bytes
  per second of a pass that only reads them, in the fastest of some ways (at least 0.6 wanted);
- `p95_ratio_16`: the time from one id to the next of the same call that 95 % of those of 16 calls stay below, all of
  them from the first id of a call to its last, over the median of one call (at most 3 wanted); `p95_over_p95`: over
  what 95 % of those of one call stay below;
- `speedup_16_whole`: as `speedup_16`, but from when the calls are sent to when the last one ends: prompts are read, and
  calls begin and end at different times;
- `points`: by the number of calls, `ids_per_s` and `whole_ids_per_s` of all together, `median_ms` and `p95_ms` from id
  to id, `first_ms` until all have their first one, and `rows_per_step`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch

from taste_grpc import TasteForCausalLM
from taste_grpc.engine.loading import default_threads
from taste_grpc.model.embedded.random_checkpoint import (
    LanguageSizes,
    RandomSizes,
    words_tokenizer,
    write_random_checkpoint,
)

sys.path.insert(0, str(Path(__file__).parent))
from _generate_calls import Arrivals, Site, site
from _report import report
from _step_weights import StepWeights

SIZES = LanguageSizes(hidden=1024, layers=16, heads=16, kv_heads=8, ffn=4096, vocab_size=49_155)
MOST = 16
COUNTS, QUICK_COUNTS = (1, 2, 4, 8, MOST), (1, MOST)
IDS, QUICK_IDS = 32, 16
ROUNDS = 5
REPEATS = 3  # of the bare products and passes, in each round


def write_model(directory: str, sizes: LanguageSizes) -> None:
    """A checkpoint of random weights whose language model has `sizes`."""
    write_random_checkpoint(directory, seed=0, sizes=RandomSizes(language=sizes), text_tokenizer=words_tokenizer())


def run_round(place: Site, weights: StepWeights, counts: Sequence[int], ids: int, seed: int) -> dict[str, Any]:
    """Everything once: by key the ratios and the seconds, and by the number of calls its point.

    What is compared runs one after the other, so that it meets the same conditions.
    """
    with torch.inference_mode():
        found: dict[str, Any] = {"read_s": weights.read_s(REPEATS), "one_row_s": weights.product_s(1, REPEATS)}
        arrivals = {1: place.calls(1, ids, seed), MOST: place.calls(MOST, ids, seed + 1)}
        found["rows_s"] = weights.product_s(MOST, REPEATS)
    for index, count in enumerate(counts):
        if count not in arrivals:
            arrivals[count] = place.calls(count, ids, seed + 100 * index)
    for arrived in arrivals.values():
        arrived.check(ids)
    one, most = arrivals[1], arrivals[MOST]
    found["points"] = {str(count): point(arrivals[count]) for count in counts}
    found["speedup_16"] = most.steady_rate / one.steady_rate
    found["speedup_16_whole"] = most.rate / one.rate
    found["gemm_gain_16"] = MOST * found["one_row_s"] / found["rows_s"]
    found["speedup_16_over_gemm"] = found["speedup_16"] / found["gemm_gain_16"]
    found["bandwidth_fraction"] = found["read_s"] * one.steady_rate
    found["p95_ratio_16"] = p95(most.gaps) / statistics.median(one.gaps)
    found["p95_over_p95"] = p95(most.gaps) / p95(one.gaps)
    return found


def point(arrivals: Arrivals) -> dict[str, float]:
    """What is told of one number of calls."""
    return {
        "ids_per_s": arrivals.steady_rate,
        "whole_ids_per_s": arrivals.rate,
        "median_ms": 1000 * statistics.median(arrivals.gaps),
        "p95_ms": 1000 * p95(arrivals.gaps),
        "first_ms": 1000 * arrivals.first_s,
        "rows_per_step": arrivals.steps / arrivals.batches,
    }


def p95(gaps: Sequence[float]) -> float:
    """What 95 % of `gaps` stay below."""
    return float(np.percentile(gaps, 95))


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds, at every depth."""
    return {
        key: medians([found[key] for found in rounds])
        if isinstance(value, dict)
        else round(statistics.median(found[key] for found in rounds), 4)
        for key, value in rounds[0].items()
    }


def measure(directory: str, settings: dict[str, Any], counts: Sequence[int], ids: int, rounds: int) -> dict[str, Any]:
    """The figures of the checkpoint in `directory`, served by an engine with `settings`."""
    model = TasteForCausalLM.from_pretrained(directory, device="cpu", dtype=settings["dtype"], show_progress=False)
    weights = StepWeights.of(model)
    with site({"model": directory, "device": "cpu", **settings}) as place:
        place.calls(MOST, 4, 0)  # warm up
        found = medians([run_round(place, weights, counts, ids, 10_000 * index) for index in range(1, rounds + 1)])
    gbytes = weights.nbytes / 1e9
    return {
        **found,
        "read_gb_per_s": round(gbytes / found["read_s"], 2),
        "step_weight_bytes": weights.nbytes,
        "parameters": sum(tensor.numel() for tensor in model.spoken_lm.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ids_per_call": ids,
        "rounds": rounds,
    }


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table."""
    rows = [
        (
            f"{count} calls" if count != "1" else "1 call",
            f"{found['ids_per_s']:.1f} ids/s, an id every {found['median_ms']:.0f} ms (95 %: {found['p95_ms']:.0f})",
        )
        for count, found in figures["points"].items()
    ]
    return [
        *rows,
        (f"{MOST} calls against one", f"{figures['speedup_16']:.2f} x ({figures['speedup_16_whole']:.2f} x in all)"),
        (f"bare products, {MOST} rows against one", f"{figures['gemm_gain_16']:.2f} x"),
        ("the one over the other", f"{figures['speedup_16_over_gemm']:.2f}"),
        ("reading the weights", f"{1000 * figures['read_s']:.0f} ms, {figures['read_gb_per_s']} GB/s"),
        ("one call's share of that", f"{figures['bandwidth_fraction']:.2f}"),
        (f"95 % of the gaps of {MOST} over the median of one", f"{figures['p95_ratio_16']:.2f}"),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, 1 and 16 calls, fewer ids")
    parser.add_argument("--threads", type=int, help="threads of the model and of the bare products (default: its own)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default float32)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or default_threads())
    settings = {"dtype": arguments.dtype, "threads": arguments.threads}
    quick = arguments.quick
    counts, ids, rounds = (QUICK_COUNTS, QUICK_IDS, 1) if quick else (COUNTS, IDS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, SIZES)
        figures = measure(folder, settings, counts, ids, rounds)
    title = f"Generate calls, {figures['parameters'] / 1e9:.2f} billion random weights, {figures['dtype']}"
    report(title, table(figures), figures, quick)


if __name__ == "__main__":
    main()
