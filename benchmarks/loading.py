"""What loading a checkpoint costs in memory.

    python benchmarks/loading.py [--quick]

Writes a random checkpoint of at least 500 MB whose language model is stored in bfloat16, loads it in a fresh process
and watches the anonymous memory of that process. JSON key: `anon_over_model_bytes`, the greatest growth over the bytes
of the model at its target dtype (at most 1.3 wanted), the worse of float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _report import report

SAMPLE_S = 0.002


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not report RssAnon")


def load(directory: str, dtype: str) -> dict[str, float]:
    """Load once and watch; run in a process of its own."""
    import torch

    from taste_grpc import TasteForCausalLM

    torch.set_num_threads(1)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(SAMPLE_S)

    before = anonymous_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    model = TasteForCausalLM.from_pretrained(directory, device="cpu", dtype=dtype, show_progress=False)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return {
        "growth_bytes": max(peak, anonymous_bytes()) - before,
        "model_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "seconds": seconds,
    }


def measure(directory: str, dtype: str) -> dict[str, float]:
    """`load` in a fresh process."""
    command = [sys.executable, __file__, "--load", directory, "--dtype", dtype]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="float32 only")
    parser.add_argument("--load", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(arguments.load, arguments.dtype)))
        return

    from taste_grpc.model.embedded.random_checkpoint import LanguageSizes, RandomSizes, write_random_checkpoint

    sizes = RandomSizes(
        language=LanguageSizes(hidden=1024, layers=16, heads=16, kv_heads=8, ffn=4096, vocab_size=32_000)
    )
    rows, figures, worst = [], {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(folder, seed=0, sizes=sizes)
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        for dtype in ["float32"] if arguments.quick else ["float32", "bfloat16"]:
            result = measure(folder, dtype)
            ratio = result["growth_bytes"] / result["model_bytes"]
            worst = max(worst, ratio)
            figures[dtype] = {name: round(value, 3) for name, value in result.items()}
            rows.append((f"as {dtype}: model", f"{result['model_bytes'] / 1e6:.0f} MB"))
            rows.append(
                (f"as {dtype}: anonymous memory grew by", f"{result['growth_bytes'] / 1e6:.0f} MB ({ratio:.2f} x)")
            )
            rows.append((f"as {dtype}: loaded in", f"{result['seconds']:.1f} s"))
    report(
        f"loading a random checkpoint of {stored / 1e6:.0f} MB",
        rows,
        {"anon_over_model_bytes": round(worst, 3), "stored_bytes": stored, "by_dtype": figures},
        arguments.quick,
    )


if __name__ == "__main__":
    main()
