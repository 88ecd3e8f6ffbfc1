"""What a chunk of speech costs: early and late in an utterance, and against making everything again for each chunk.

    python benchmarks/detokenize.py [--quick] [--threads N] [--device cuda] [--published]

A minute of speech in 20 chunks of equal length, from words over units and mel to the waveform. The weights are random
and so is what is said; widths are a quarter of the published ones (`--published`: those), with all layers of the unit
decoder and the vocoder. A random decoder ends its chunks by chance, so every chunk is given the same number of units.

JSON keys:

- `counters_flat`: 1 when chunk 20 had as many rows, frames and network calls as chunk 2 (wanted);
- `chunk20_over_chunk2`: its seconds over those of chunk 2 (at most 1.25 wanted);
- `resynth_over_incremental`: seconds for all chunks when each reads all words and units before it and makes all audio
  anew to return the end of it, as `taste_detokenize` does, over those of the stream (at least 5 wanted). Chunks 3, 8,
  13 and 18 are made so, each for itself and two on either side; costs grow faster than linearly, so that is too little
  rather than too much;
- `peak_stream_over_oneshot`: greatest anonymous memory of a process that streams, from words to waveform, over that of
  one that makes a waveform of the same units at once (below 1 wanted);
- `join_hift_error`: greatest difference between the waveforms that the vocoder makes of one mel in chunks and at once,
  and `join_hift_tolerance`, what the recorded numbers of the tests allow;
- `join_excess`: difference between the streamed mel and that made at once, within 20 ms of the joins over elsewhere
  (at most 1.5 wanted): the greater of where a window begins and all along its fade;
- `first_audio_ms`: from the first word to the first sample;
- `chunk_s`: seconds of each chunk; `resynth_s`: of chunk k when all is made again, by k.

Times are medians of 5 rounds in which the two sides alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor

from taste_grpc.model.embedded.random_checkpoint import RandomSizes, write_random_checkpoint
from taste_grpc.model.voice_generator.mel_stream import MelState, MelWindowing, extend_mel, finish_mel
from taste_grpc.model.voice_generator.wave_stream import WaveState, extend_wave

sys.path.insert(0, str(Path(__file__).parent))
from _report import report
from _speaking import CHUNK_UNITS, PUBLISHED, QUARTER, SEED, Streamed, Subject, resynthesised, streamed, synthesised
from loading import SAMPLE_S, anonymous_bytes

T = TypeVar("T")

CHUNKS, QUICK_CHUNKS = 20, 5
ROUNDS = 5
GOLDENS = Path(__file__).parents[1] / "tests" / "data" / "taste-tiny" / "goldens" / "index.json"


# --- joins


def result(pieces: Generator[Any, None, T]) -> T:
    """What a computation in pieces ends with."""
    while True:
        try:
            next(pieces)
        except StopIteration as stopped:
            value: T = stopped.value
            return value


def join_figures(subject: Subject, units: list[int]) -> dict[str, float | None]:
    """How far mel and waveform made in chunks are from those made at once of the same units."""
    flow, vocoder, windowing = subject.generator.flow, subject.generator.hift, MelWindowing()
    whole = flow.mel(torch.tensor([units], device=subject.speaker.device), subject.speaker, seed=SEED)
    state, mels, joins = MelState.empty(flow.config.mel_bins), [], []
    for start in range(0, len(units), CHUNK_UNITS):
        chunk = units[start : start + CHUNK_UNITS]
        mels.append(result(extend_mel(flow, state, chunk, subject.speaker, SEED, windowing)))
        joins.append(state.frame_count)
    difference = (torch.cat([*mels, finish_mel(state)], dim=2) - whole).abs().mean(dim=(0, 1))
    reach = round(0.020 * flow.config.sampling_rate_hz / flow.config.hop_samples)
    excess = max(
        near_over_elsewhere(difference, [(join - reach, join + extent + reach) for join in joins[:-1]])
        for extent in (0, windowing.fade_frames)
    )
    source, _ = vocoder.source(vocoder.f0(whole), seed=SEED)
    at_once = vocoder.decode(whole, source)[0]
    error = float((torch.cat(waves(subject, whole, joins)) - at_once).abs().max())
    return {"join_hift_error": error, "join_hift_tolerance": golden_tolerance(), "join_excess": round(excess, 3)}


def near_over_elsewhere(difference: Tensor, spans: Sequence[tuple[int, int]]) -> float:
    """Mean of `[T]` inside of spans (both ends included) over that outside."""
    near = torch.zeros(len(difference), dtype=torch.bool)
    for first, last in spans:
        near[first : last + 1] = True
    near = near.to(difference.device)
    return float(difference[near].mean() / difference[~near].mean())


def waves(subject: Subject, mel: Tensor, borders: Sequence[int]) -> list[Tensor]:
    """The waveform of `mel` in chunks that end at `borders`, the last of which is moved to its end."""
    state, parts = WaveState.empty(mel.shape[1]), []
    ends = [*borders[:-1], mel.shape[2]]
    for start, end in zip([0, *ends], ends, strict=False):
        last = end == mel.shape[2]
        parts.append(result(extend_wave(subject.generator.hift, state, mel[:, :, start:end], SEED, last=last)))
    return parts


def golden_tolerance() -> float | None:
    """What tests allow between the waveforms of one mel and one excitation; None where there are no tests."""
    if not GOLDENS.exists():
        return None
    tensors = json.loads(GOLDENS.read_text(encoding="utf-8"))["tensors"]
    return float(min(t["atol"] for t in tensors if t.get("stage") == "vocoder.waveform_given_source"))


# --- memory, in processes of their own


def peak_bytes(directory: str, device: str, way: str, units: list[int]) -> dict[str, int]:
    """Greatest memory while speaking; run in a fresh process."""
    subject = Subject.load(directory, device)
    before = peak = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(SAMPLE_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if way == "stream":
        samples = streamed(subject, len(units) // CHUNK_UNITS).samples
    else:
        samples = len(synthesised(subject, units))
    done.set()
    watcher.join()
    on_device = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    return {"before": before, "peak": max(peak, anonymous_bytes()), "on_device": on_device, "samples": samples}


def peaks(directory: str, device: str, units: list[int]) -> dict[str, dict[str, int]]:
    """`peak_bytes` of both ways."""
    found = {}
    for way in ("stream", "oneshot"):
        command = [sys.executable, __file__, "--peak", way, "--checkpoint", directory, "--device", device]
        run = subprocess.run(command, input=json.dumps(units), check=True, capture_output=True, text=True)
        found[way] = json.loads(run.stdout.splitlines()[-1])
    return found


def memory_figures(found: dict[str, dict[str, int]], device: str) -> dict[str, Any]:
    """Ratio of the peaks; on a GPU of what was allocated there."""
    what = "on_device" if device.startswith("cuda") else "peak"
    stream, oneshot = found["stream"], found["oneshot"]
    return {
        "peak_stream_over_oneshot": round(stream[what] / oneshot[what], 3),
        "peak_mb": {way: round(each[what] / 1e6) for way, each in found.items()},
        "growth_mb": {way: round((each["peak"] - each["before"]) / 1e6) for way, each in found.items()},
        "samples_equal": int(stream["samples"] == oneshot["samples"]),
    }


# --- all of it


def measure(subject: Subject, chunks: int, rounds: int) -> tuple[dict[str, Any], list[int]]:
    """Figures of time and joins, and the units that were spoken."""
    streamed(subject, 1)  # warm up
    resynthesised(subject, 0, [])
    ours: list[Streamed] = []
    theirs: list[dict[int, float]] = []
    for _ in range(rounds):
        ours.append(streamed(subject, chunks))
        units = ours[-1].units
        theirs.append({k: resynthesised(subject, k - 1, units[: (k - 1) * CHUNK_UNITS]) for k in range(3, chunks, 5)})
    early, late = ours[0].counters[1], ours[0].counters[-1]
    chunk_s = [statistics.median(seconds) for seconds in zip(*(run.seconds for run in ours), strict=True)]
    resynth_s = {k: statistics.median(run[k] for run in theirs) for k in theirs[0]}
    share = chunks / len(resynth_s)  # chunks that a measured one stands for
    ratios = [share * sum(slow.values()) / sum(run.seconds) for run, slow in zip(ours, theirs, strict=True)]
    spoken_s = chunks * CHUNK_UNITS / subject.generator.config.flow.unit_rate_hz
    figures: dict[str, Any] = {
        "counters_flat": int(early == late),
        "chunk20_over_chunk2": round(statistics.median(run.seconds[-1] / run.seconds[1] for run in ours), 3),
        "resynth_over_incremental": round(statistics.median(ratios), 2),
        "first_audio_ms": round(1000 * statistics.median(run.first_audio_s for run in ours)),
        "compute_over_speech_time": round(sum(chunk_s) / spoken_s, 3),
        "chunks": chunks,
        "chunk_units": CHUNK_UNITS,
        "rounds": rounds,
        "counters": {"chunk_2": early, f"chunk_{chunks}": late},
        "chunk_s": [round(seconds, 4) for seconds in chunk_s],
        "resynth_s": {str(k): round(seconds, 4) for k, seconds in resynth_s.items()},
        **join_figures(subject, ours[0].units),
    }
    return figures, ours[0].units


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What people read."""
    last = figures["chunks"]
    early, late = figures["counters"].values()
    rows = [(f"chunk 2 and {last}: {name}", f"{early[name]} / {late[name]}") for name in early]
    return [
        *rows,
        (f"chunk 2 and {last}: time", f"{figures['chunk_s'][1]:.2f} / {figures['chunk_s'][-1]:.2f} s"),
        (f"time of chunk {last} over chunk 2", str(figures["chunk20_over_chunk2"])),
        *((f"chunk {k}, all audio made again", f"{seconds:.2f} s") for k, seconds in figures["resynth_s"].items()),
        ("all chunks, made again over streamed", str(figures["resynth_over_incremental"])),
        ("first audio", f"{figures['first_audio_ms']} ms"),
        ("computing over speaking time", str(figures["compute_over_speech_time"])),
        ("peak memory, streamed and at once", " / ".join(f"{mb} MB" for mb in figures["peak_mb"].values())),
        ("peak memory over the loaded model", " / ".join(f"{mb} MB" for mb in figures["growth_mb"].values())),
        ("streamed as many samples as at once", "yes" if figures["samples_equal"] else "no"),
        ("vocoder in chunks, error (allowed)", f"{figures['join_hift_error']:.1e} ({figures['join_hift_tolerance']})"),
        ("mel difference at joins over elsewhere", str(figures["join_excess"])),
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CHUNKS} chunks, one round")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--published", action="store_true", help="the published widths")
    parser.add_argument("--peak", choices=["stream", "oneshot"], help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        if arguments.peak:
            print(json.dumps(peak_bytes(arguments.checkpoint, arguments.device, arguments.peak, json.load(sys.stdin))))
            return
        chunks, rounds = (QUICK_CHUNKS, 1) if arguments.quick else (CHUNKS, ROUNDS)
        sizes = RandomSizes(speech=PUBLISHED if arguments.published else QUARTER)
        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(folder, seed=0, sizes=sizes, units_per_token=None)
            figures, units = measure(Subject.load(folder, arguments.device), chunks, rounds)
            figures |= memory_figures(peaks(folder, arguments.device, units), arguments.device)
    widths = "published widths" if arguments.published else "a quarter of the published widths"
    title = f"{chunks * CHUNK_UNITS // 50} s of speech in {chunks} chunks, random weights, {widths}"
    report(title, table(figures), figures, arguments.quick)


if __name__ == "__main__":
    main()
