"""What a new text id costs: at the beginning and at the end of an answer, and against recomputing the prefix.

    python benchmarks/generate.py [--quick]

A random model (8 layers, 512 wide). JSON keys: `last_over_first_quarter`, the time per id in the last quarter of 256
ids over that in the first (at most 1.25 wanted), and `recompute_over_cached`, the seconds for 128 ids after a prompt of
100 when every step reads the whole prefix again, as the published loop does, over the seconds with cached keys and
values (at least 10 wanted). Both are medians over rounds in which the two sides alternate, with the model in bfloat16,
as checkpoints store it.

`float32` holds the same figures in float32, where the two loops must choose the same ids. On a CPU the ratio depends on
the dtype: a single row is bound by memory, which bfloat16 halves, while many rows are bound by arithmetic, which
processors without bfloat16 instructions are slow at. `gemm_over_matvec` is the ratio that the bare matrix products of
the layers have for the mean number of rows against one: what a loop free of all other work would reach. `points` has,
for both loops, the milliseconds of an id by its position in the answer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor

from taste_grpc import TasteForCausalLM, TasteProcessor
from taste_grpc.model.embedded.random_checkpoint import LanguageSizes, RandomSizes, write_random_checkpoint
from taste_grpc.model.spoken_lm.generation import Prompt, decode_step, start_generations, text_prompt
from taste_grpc.model.spoken_lm.sampler import Sampler, SamplingParams, SeededDraws
from taste_grpc.model.text.tokens import TokenSets

sys.path.insert(0, str(Path(__file__).parent))
from _report import report

PROMPT_IDS, FLAT_IDS, COMPARED_IDS = 100, 256, 128
POINT_IDS = 8


def cached_steps(model: TasteForCausalLM, prompt: Prompt, sets: TokenSets, count: int) -> tuple[list[int], list[float]]:
    """Greedy ids and the seconds of each step, keys and values kept."""
    lm, rvq = model.spoken_lm, model.audio_tower.rvq
    params = SamplingParams(text_top_p=0.0, extra_words=count, max_length=count)
    cache = lm.new_cache(1, prompt.length + count + 2)
    (generation,) = start_generations(lm, cache, [0], [prompt], [params], [SeededDraws(0, model.vq_dim)], sets)
    ids, seconds = [], []
    while len(ids) < count:
        started = time.perf_counter()
        (result,) = decode_step(lm, rvq, cache, [generation])
        seconds.append(time.perf_counter() - started)
        ids.append(result.sampled.text_id)
    return ids, seconds


def recomputed_steps(
    model: TasteForCausalLM, prompt: Prompt, sets: TokenSets, count: int
) -> tuple[list[int], list[float]]:
    """The same ids from a loop that reads everything again for each one; nothing is kept but the input rows.

    As in the published loop, the forward pass gives scores and codes at every position, and the last is used.
    """
    lm, rvq = model.spoken_lm, model.audio_tower.rvq
    params = SamplingParams(text_top_p=0.0, extra_words=count, max_length=count)
    sampler = Sampler(
        params,
        sets,
        delay=lm.config.delay,
        has_prefix=False,
        history=prompt.history,
        draws=SeededDraws(0, model.vq_dim),
    )
    rows, audio, ids, seconds = prompt.rows, lm.pad_audio_unit_embed.float(), [], []
    while len(ids) < count:
        started = time.perf_counter()
        hidden = lm(rows[None], lm.new_cache(1, rows.shape[0]), [0])[0]
        scores, codes = lm.text_logits(hidden)[-1], rvq.indices_from_code(lm.taste_latent(hidden))[-1]
        logits: Tensor = torch.nn.functional.one_hot(codes, rvq.config.codebook_size).float() * 1000.0
        step = sampler.step(scores, logits)
        ids.append(step.text_id)
        if step.taste_ids[0] != -1:
            audio = rvq.output_from_indices(torch.tensor(step.taste_ids)).float()
        rows = torch.cat([rows, lm.fuse(audio[None], lm.embed_text(torch.tensor([step.text_id])))])
        seconds.append(time.perf_counter() - started)
    return ids, seconds


def measure(model: TasteForCausalLM, processor: TasteProcessor, rounds: int, compared: int) -> dict[str, Any]:
    """Figures for the model's dtype; in float32, raises when the two loops do not agree on the ids."""
    sets = processor.text_tokenizer.sets(model.spoken_lm.vocab_size)
    speakable = (~sets.banned & ~sets.word_start).nonzero().reshape(-1)
    generator = torch.Generator().manual_seed(0)
    chosen = speakable[torch.randint(len(speakable), (PROMPT_IDS,), generator=generator)].tolist()
    prompt = text_prompt(model.spoken_lm, chosen)
    quarter = FLAT_IDS // 4
    flat, ratios, cached_seconds, recomputed_seconds, bound = [], [], [], [], []
    by_position: dict[str, list[list[float]]] = {"cached": [], "recomputed": []}
    cached_steps(model, prompt, sets, 16)  # warm up
    for _ in range(rounds):
        _, seconds = cached_steps(model, prompt, sets, FLAT_IDS)
        flat.append(statistics.median(seconds[-quarter:]) / statistics.median(seconds[:quarter]))
        by_position["cached"].append(seconds)
        started = time.perf_counter()
        ids, _ = cached_steps(model, prompt, sets, compared)
        cached_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        again, seconds = recomputed_steps(model, prompt, sets, compared)
        recomputed_seconds.append(time.perf_counter() - started)
        by_position["recomputed"].append(seconds)
        if ids != again and model.dtype == torch.float32:
            raise SystemExit("the cached loop and the recomputing one chose different ids")
        ratios.append(recomputed_seconds[-1] / cached_seconds[-1])
        bound.append(product_seconds(model, PROMPT_IDS + compared // 2) / product_seconds(model, 1))
    return {
        "last_over_first_quarter": round(statistics.median(flat), 3),
        "recompute_over_cached": round(statistics.median(ratios), 2),
        "gemm_over_matvec": round(statistics.median(bound), 2),
        "ms_per_id": round(1000 * statistics.median(map(statistics.median, by_position["cached"])), 2),
        "cached_s": round(statistics.median(cached_seconds), 3),
        "recomputed_s": round(statistics.median(recomputed_seconds), 3),
        "compared_ids": compared,
        "rounds": rounds,
        "points": {name: points(runs) for name, runs in by_position.items()},
    }


def points(runs: list[list[float]]) -> list[tuple[int, float]]:
    """Position in the answer, and milliseconds an id takes there: the median over the runs and some neighbours."""
    middle = POINT_IDS // 2
    return [
        (first + middle, round(1000 * statistics.median(s for run in runs for s in run[first : first + POINT_IDS]), 3))
        for first in range(0, len(runs[0]), POINT_IDS)
    ]


def product_seconds(model: TasteForCausalLM, rows: int) -> float:
    """Seconds the matrix products of all layers take for `rows` rows, and nothing else."""
    layers = [module for module in model.spoken_lm.llama.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features).to(model.dtype) for layer in layers}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, fewer compared ids")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = RandomSizes(language=LanguageSizes(hidden=512, layers=8, heads=8, kv_heads=2, ffn=1024))
    figures = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_random_checkpoint(folder, seed=0, sizes=sizes)
        processor = TasteProcessor.from_pretrained(folder)
        for dtype in ("float32", "bfloat16"):
            model = TasteForCausalLM.from_pretrained(folder, device="cpu", dtype=dtype, show_progress=False)
            rounds, compared = (1, 16) if arguments.quick else (5, COMPARED_IDS)
            figures[dtype] = measure(model, processor, rounds, compared)
    rows = []
    for dtype, found in figures.items():
        rows += [
            (f"{dtype}: time per id", f"{found['ms_per_id']} ms"),
            (f"{dtype}: last quarter over first, {FLAT_IDS} ids", str(found["last_over_first_quarter"])),
            (f"{dtype}: {found['compared_ids']} ids after {PROMPT_IDS}, cached", f"{found['cached_s']} s"),
            (f"{dtype}: {found['compared_ids']} ids after {PROMPT_IDS}, recomputed", f"{found['recomputed_s']} s"),
            (f"{dtype}: recomputed over cached", str(found["recompute_over_cached"])),
            (f"{dtype}: bare products, many rows over one", str(found["gemm_over_matvec"])),
        ]
    title = "text generation, random weights, 8 layers x 512"
    report(title, rows, {**figures["bfloat16"], "float32": figures["float32"]}, arguments.quick)


if __name__ == "__main__":
    main()
