"""What a chunk of speech costs: early and late in an utterance, and against making everything again for each chunk.

    python benchmarks/detokenize.py [--quick] [--threads N] [--device cuda] [--sizes quarter|published]

A minute of speech in 20 chunks of equal length, from words over units and mel to the waveform. The weights are random
and so is what is said; widths are about an eighth of the published ones, with about a quarter of the layers of the unit
decoder and of the flow's stages. A random decoder ends its chunks by chance, so all are given the same number of units.

JSON keys:

- `counters_flat`: 1 when chunk 20 had as many rows, frames and network calls as chunk 2 by the counters of the product,
  and as many floating point operations by torch's (wanted);
- `chunk20_over_chunk2`: its seconds over those of chunk 2 (at most 1.25 wanted);
- `resynth_over_incremental`: seconds of chunks when each reads all words and units before it and makes all audio anew
  to return the end of it, as `taste_detokenize` does, over the seconds that the same chunks took in the stream (at
  least 5 wanted). These are chunks 3, 10 and 17; on average they lie before the middle of the 20 and costs grow faster
  than linearly, so that is too little rather than too much for all of them;
- `peak_stream_over_oneshot`: greatest anonymous memory of a process that streams, from words to waveform, over that of
  one that makes a waveform of the same units at once (below 1 wanted); `growth_mb`: over the loaded model;
- `join_hift_error`: greatest difference between the waveforms that the vocoder makes of one mel in chunks and at once,
  and `join_hift_tolerance`, what the recorded numbers of the tests allow; `join_hift_peak`: greatest sample;
- `join_excess`: difference between the streamed mel and that made at once, within 20 ms of the joins over elsewhere
  (at most 1.5 wanted): the greater of where a window begins and all along its fade; `mel_difference`: that difference
  everywhere, over the standard deviation of the mel;
- `samples_equal`: 1 when the stream had as many samples as the audio that is made at once (wanted);
- `first_audio_ms`: from the first word to the first sample;
- `points`: [chunk, seconds] of the stream and of making all again.

The minute is spoken once, and the state before each chunk kept. From there on chunks are spoken again, in 5 rounds:
each time chunks 1, 2 and 20, then others, some of which are made with all that was before them right afterwards.
Times are medians of the rounds, ratios those of each round. With `--quick` there are 5 chunks and 3 rounds; the last
chunk takes the place of chunk 20, and only chunk 3 is made with all that was before it.
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
from _speaking import (
    CHUNK_UNITS,
    PUBLISHED,
    QUARTER,
    SEED,
    SMALL,
    Streamed,
    Subject,
    operations,
    resynthesised,
    spoken_again,
    streamed,
    synthesised,
)
from loading import SAMPLE_S, anonymous_bytes

T = TypeVar("T")

CHUNKS, ROUNDS = 20, 5
QUICK_CHUNKS, QUICK_ROUNDS = 5, 3
TIMED, MADE_AGAIN = (3, 6, 10, 13, 17), (3, 10, 17)
SIZES = {"small": SMALL, "quarter": QUARTER, "published": PUBLISHED}
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
    joins = joins[:-1]
    reach = round(0.020 * flow.config.sampling_rate_hz / flow.config.hop_samples)
    excess = max(
        near_over_elsewhere(difference, [(join - reach, join + extent + reach) for join in joins])
        for extent in (0, windowing.fade_frames)
    )
    source, _ = vocoder.source(vocoder.f0(whole), seed=SEED)
    at_once = vocoder.decode(whole, source)[0]
    return {
        "join_hift_error": float((torch.cat(waves(subject, whole, joins)) - at_once).abs().max()),
        "join_hift_tolerance": golden_tolerance(),
        "join_hift_peak": round(float(at_once.abs().max()), 3),
        "join_excess": round(excess, 3),
        "mel_difference": round(float(difference.mean() / whole.std()), 4),
    }


def near_over_elsewhere(difference: Tensor, spans: Sequence[tuple[int, int]]) -> float:
    """Mean of `[T]` inside of spans (both ends included) over that outside."""
    near = torch.zeros(len(difference), dtype=torch.bool)
    for first, last in spans:
        near[first : last + 1] = True
    near = near.to(difference.device)
    return float(difference[near].mean() / difference[~near].mean())


def waves(subject: Subject, mel: Tensor, borders: Sequence[int]) -> list[Tensor]:
    """The waveform of `mel` in chunks that end at `borders` and at its end."""
    state, parts = WaveState.empty(mel.shape[1]), []
    ends = [*borders, mel.shape[2]]
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


Seconds = dict[int, float]
"""Of chunks, counted from 1."""


def one_round(subject: Subject, utterance: Streamed) -> tuple[Seconds, Seconds]:
    """Of the stream, and of making all again."""
    chunks, ours, theirs = len(utterance.units), {}, {}
    for chunk in (1, 2, chunks, *(k for k in TIMED if k < chunks)):
        ours[chunk] = spoken_again(subject, chunk - 1, utterance)
        if chunk in MADE_AGAIN:
            theirs[chunk] = resynthesised(subject, chunk - 1, utterance.units_before(chunk - 1))
    return ours, theirs


def medians(rounds: Sequence[Seconds]) -> list[tuple[int, float]]:
    """Chunks and the median of their seconds."""
    return [(chunk, round(statistics.median(each[chunk] for each in rounds), 4)) for chunk in sorted(rounds[0])]


def measure(subject: Subject, chunks: int, rounds: int) -> tuple[dict[str, Any], list[int]]:
    """Figures of time and joins, and the units that were spoken."""
    utterance = streamed(subject, chunks, keep_states=True)
    units = utterance.units_before(chunks)
    resynthesised(subject, 0, [])  # warm up
    ours, theirs = zip(*(one_round(subject, utterance) for _ in range(rounds)), strict=True)
    early, late = (
        {**utterance.counters[k - 1], "floating_point_operations": operations(subject, k - 1, utterance)}
        for k in (2, chunks)
    )
    points = {"streamed": medians(ours), "made_again": medians(theirs)}
    chunk_s = CHUNK_UNITS / subject.generator.config.flow.unit_rate_hz
    ratios = [sum(slow.values()) / sum(fast[k] for k in slow) for fast, slow in zip(ours, theirs, strict=True)]
    figures: dict[str, Any] = {
        "counters_flat": int(early == late),
        "chunk20_over_chunk2": round(statistics.median(each[chunks] / each[2] for each in ours), 3),
        "resynth_over_incremental": round(statistics.median(ratios), 2),
        "first_audio_ms": round(1000 * dict(points["streamed"])[1]),
        "compute_over_speech_time": round(statistics.mean(seconds for _, seconds in points["streamed"]) / chunk_s, 3),
        "chunks": chunks,
        "chunk_units": CHUNK_UNITS,
        "rounds": rounds,
        "counters": {"chunk_2": early, f"chunk_{chunks}": late},
        "points": points,
        **join_figures(subject, units),
    }
    return figures, units


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What people read."""
    last, seconds = figures["chunks"], dict(figures["points"]["streamed"])
    early, late = figures["counters"].values()
    rows = [(f"chunk 2 and {last}: {name}", f"{early[name]} / {late[name]}") for name in early]
    return [
        *rows,
        (f"chunk 2 and {last}: time", f"{seconds[2]:.2f} / {seconds[last]:.2f} s"),
        (f"time of chunk {last} over chunk 2", str(figures["chunk20_over_chunk2"])),
        *(
            (f"chunk {k}: streamed, all made again", f"{seconds[k]:.2f} / {again:.2f} s")
            for k, again in figures["points"]["made_again"]
        ),
        ("these, made again over streamed", str(figures["resynth_over_incremental"])),
        ("first audio", f"{figures['first_audio_ms']} ms"),
        ("computing over speaking time", str(figures["compute_over_speech_time"])),
        ("peak memory, streamed and at once", " / ".join(f"{mb} MB" for mb in figures["peak_mb"].values())),
        ("peak memory over the loaded model", " / ".join(f"{mb} MB" for mb in figures["growth_mb"].values())),
        ("streamed as many samples as at once", "yes" if figures["samples_equal"] else "no"),
        ("vocoder in chunks, error (allowed)", f"{figures['join_hift_error']:.1e} ({figures['join_hift_tolerance']})"),
        ("mel difference at joins over elsewhere", str(figures["join_excess"])),
        ("mel difference over deviation of the mel", str(figures["mel_difference"])),
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CHUNKS} chunks, {QUICK_ROUNDS} rounds")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--sizes", choices=SIZES, default="small", help="widths as parts of the published ones")
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
        chunks, rounds = (QUICK_CHUNKS, QUICK_ROUNDS) if arguments.quick else (CHUNKS, ROUNDS)
        sizes = RandomSizes(speech=SIZES[arguments.sizes])
        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(folder, seed=0, sizes=sizes, units_per_token=None)
            figures, units = measure(Subject.load(folder, arguments.device), chunks, rounds)
            figures |= memory_figures(peaks(folder, arguments.device, units), arguments.device)
    title = f"{chunks * CHUNK_UNITS // 50} s of speech in {chunks} chunks, random weights, sizes: {arguments.sizes}"
    report(title, table(figures), {**figures, "sizes": arguments.sizes}, arguments.quick)


if __name__ == "__main__":
    main()
