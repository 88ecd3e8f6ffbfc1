"""Runs the benchmarks and puts what they found into docs/benchmarks.md: tables, and pictures in docs/benchmarks/.

    python benchmarks/report.py [--quick] [--only NAME ...] [--draw]

Each script runs in a process of its own, one after the other; its last line is kept as docs/benchmarks/NAME.json, and
tables and pictures are made from those files alone. `--only` runs some and keeps what is known of the others; `--draw`
runs none. Figures of `--quick` runs are for trying the machinery, and are not kept.

Pictures: the time of an id against its position, with the loop that recomputes the prefix; ids per second against calls
at once, with what bare matrix products would allow; the cost of a chunk of speech against its index, with making
everything again. Needs matplotlib (`pip install 'taste-grpc[plot]'`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
KEPT = FOLDER.parent / "docs" / "benchmarks"

_BEGIN, _END = "<!-- figures: {} -->", "<!-- end -->"
_OURS, _BASELINE = "#33567f", "#b3261e"


@dataclass(frozen=True)
class Key:
    """A figure that is shown.

    Attributes:
        name: key of the script's JSON.
        wanted: in words; empty when nothing is.
        means: what it is.
    """

    name: str
    wanted: str
    means: str


SCRIPTS: dict[str, tuple[Key, ...]] = {
    "generate": (
        Key("last_over_first_quarter", "≤ 1.25", "time of an id, last quarter of an answer over the first"),
        Key("recompute_over_cached", "≥ 10", "128 ids after 100: recomputing the prefix for each, over keeping it"),
        Key("gemm_over_matvec", "", "what bare matrix products of that many rows take over those of one"),
    ),
    "concurrency": (
        Key("speedup_16", "", "ids per second of 16 calls over those of one, over gRPC"),
        Key("gemm_gain_16", "", "what 16 rows gain in bare matrix products"),
        Key("speedup_16_over_gemm", "≥ 0.7", "the one over the other"),
        Key("bandwidth_fraction", "≥ 0.6", "one call's decode against a pass that only reads the weights"),
        Key("p95_ratio_16", "≤ 3", "95th percentile of the time between ids of 16 calls over the median of one"),
    ),
    "fairness": (
        Key(
            "prefill_delay_over_step",
            "≤ 2",
            "delay of an id while another call's 30 s are read, in ids (95th percentile)",
        ),
        Key("worst_delay_over_step", "", "the slowest id of a round"),
    ),
    "detokenize": (
        Key("counters_flat", "1", "chunk 20 had the rows, frames and network calls of chunk 2"),
        Key("chunk20_over_chunk2", "≤ 1.25", "its time over that of chunk 2"),
        Key("resynth_over_incremental", "≥ 5", "making everything again for each chunk, over making what is new"),
        Key("peak_stream_over_oneshot", "< 1", "peak memory of a minute streamed over a minute at once"),
        Key("join_hift_error", "", "waveform in chunks against at once, of one mel: greatest difference"),
        Key("join_hift_tolerance", "", "what the recorded outputs of the vocoder allow"),
        Key("join_excess", "≤ 1.5", "mel difference within 20 ms of a join over that elsewhere"),
    ),
    "converse": (
        Key("first_partial_s", "≤ 1.5", "from the beginning of speech to the first partial transcript"),
        Key("first_audio_s", "≤ 3.5", "from the end of speech to the first audio of the answer"),
        Key("first_audio_4_s", "", "the same with four conversations at once"),
        Key("transcript_s", "", "of that, one conversation: to the final transcript, silence included"),
        Key("llm_first_token_s", "", "from there to the first token"),
        Key("phrase_s", "", "from there to the text of the first phrase"),
        Key("tts_s", "", "from there to its audio"),
        Key("word_error_rate", "", "of the final transcripts"),
    ),
    "wire": (
        Key("fraction_1", "≥ 0.7", "message rate over that of a bare echo server, 1 stream"),
        Key("fraction_16", "≥ 0.7", "16 streams"),
        Key("fraction_64", "≥ 0.7", "64 streams"),
    ),
    "soak": (
        Key("rss_growth", "≤ 0.05", "memory after 1,000 calls over that after 100, less 1"),
        Key("kv_bytes", "0", "bytes of caches still reserved"),
        Key("live_slots", "0", "slots still held"),
        Key("leaked_tasks", "0", "tasks left"),
        Key("wrong_results", "0", "calls with another result than alone"),
    ),
}


def run(name: str, quick: bool) -> Figures:
    """The figures of a script. Raises SystemExit when it fails."""
    command = [sys.executable, f"{FOLDER.name}/{name}.py", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=FOLDER.parent)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"{name}.py failed with status {done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


# --- tables


def table(name: str, figures: Figures) -> str:
    """The table of a script's figures, and what they were measured on."""
    machine = figures["machine"]
    rows = [f"| `{key.name}` | {figures[key.name]} | {key.wanted} | {key.means} |" for key in SCRIPTS[name]]
    on = machine["cuda"] or f"{machine['cores']} cores of {machine['cpu']}"
    versions = f"Python {machine['python']}, torch {machine['torch']}, taste-grpc {machine['taste_grpc']}"
    return "\n".join(
        [
            f"| `benchmarks/{name}.py` | measured | wanted | |",
            "|---|---|---|---|",
            *rows,
            "",
            f"On {on}; {versions}; `python {figures['command']}`.",
        ]
    )


def filled(page: str, found: Mapping[str, Figures]) -> str:
    """`page` with the tables of what was found in their places."""
    for name, figures in found.items():
        before, begin, rest = page.partition(_BEGIN.format(name))
        if not begin:
            raise ValueError(f"the page has no place for {name}")
        _, end, after = rest.partition(_END)
        page = f"{before}{begin}\n{table(name, figures)}\n{end}{after}"
    return page


# --- pictures


def draw(found: Mapping[str, Figures], folder: Path) -> list[Path]:
    """Draw what there are figures for; returns the files."""
    pictures = {"generate": _draw_positions, "concurrency": _draw_throughput, "detokenize": _draw_chunks}
    return [pictures[name](found[name], folder) for name in pictures if name in found]


Line = tuple[str, Sequence[float], Sequence[float], str]


def _draw_positions(figures: Figures, folder: Path) -> Path:
    names = {"cached": ("keys and values kept", _OURS), "recomputed": ("prefix recomputed", _BASELINE)}
    lines: list[Line] = []
    for name, (label, colour) in names.items():
        positions, milliseconds = zip(*figures["points"][name], strict=True)
        lines.append((label, positions, milliseconds, colour))
    return _plot(folder / "generate.png", "Time of an id", "position in the answer", "ms", lines, logarithmic=True)


def _draw_throughput(figures: Figures, folder: Path) -> Path:
    points = figures["points"]
    counts = [int(count) for count in points]
    ours = [point["ids_per_s"] for point in points.values()]
    one = points["1"]["ids_per_s"]
    return _plot(
        folder / "concurrency.png",
        "Ids per second of all calls",
        "Generate calls at once",
        "ids/s",
        [
            ("over gRPC", counts, ours, _OURS),
            ("one call × what 16 rows gain in bare products", [1, 16], [one, one * figures["gemm_gain_16"]], _BASELINE),
        ],
    )


def _draw_chunks(figures: Figures, folder: Path) -> Path:
    names = {"streamed": ("only what is new", _OURS), "made_again": ("everything made again", _BASELINE)}
    lines: list[Line] = []
    for name, (label, colour) in names.items():
        chunks, seconds = zip(*figures["points"][name], strict=True)
        lines.append((label, chunks, seconds, colour))
    return _plot(folder / "detokenize.png", "Time of a chunk of 3 s of speech", "chunk", "s", lines)


def _plot(path: Path, title: str, x: str, y: str, lines: Sequence[Line], *, logarithmic: bool = False) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, xs, ys, colour in lines:
        axes.plot(xs, ys, marker="o", markersize=3.5, color=colour, label=label)
    axes.set(title=title, xlabel=x, ylabel=y)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    return path


def kept() -> dict[str, Figures]:
    """Figures of earlier runs."""
    files = {name: KEPT / f"{name}.json" for name in SCRIPTS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def main() -> None:
    """Run the benchmarks and renew the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="quick runs; draws into a temporary folder")
    parser.add_argument("--only", nargs="+", choices=tuple(SCRIPTS), default=tuple(SCRIPTS), help="run these")
    parser.add_argument("--draw", action="store_true", help="run nothing; renew page and pictures from what is kept")
    arguments = parser.parse_args()
    found = {} if arguments.draw else {name: run(name, arguments.quick) for name in arguments.only}
    if arguments.quick:
        folder = Path(tempfile.mkdtemp(prefix="taste-benchmarks-"))
        print("\n".join(map(str, draw(found, folder))))
        return
    KEPT.mkdir(exist_ok=True)
    for name, figures in found.items():
        (KEPT / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    everything = kept()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), everything), encoding="utf-8")
    print("\n".join(map(str, [PAGE, *draw(everything, KEPT)])))


if __name__ == "__main__":
    main()
