"""Pages of docs/ whose commands and snippets are run: found, run, compared with what the page says, renewed.

`python -m tests.support.recipes` compares, `--update` writes what came out into the pages.

In a page that has the line `<!-- recipes -->` (`<!-- recipes: chat -->`: what it calls port 50051 is a server of
another model, see `recipe_servers`)
  - a fence of language `sh` is run by bash, one of language `python` by Python. Each language keeps what it
    has (variables, functions, names) from the top of the page to its end; both run in one scratch directory.
  - a fence of language `text` right after it is what it printed, errors included. No such fence: it prints nothing.
  - `<!-- recipe: exit=24 -->` on the line before it is the exit status it ends with (0 when not said);
    `<!-- recipe: needs=grpcurl -->` leaves it out where there is no such program; `<!-- recipe: skip -->` always.

Long lists and long base64 are shortened (`shorten`) in the page; what differs from run to run is
compared by the rules in `MASKS`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_MARKER = re.compile(r"^<!-- recipes(?:: (\w+))? -->$", re.MULTILINE)
_TIMEOUT_S = 150.0

# --- pages --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A fence that is run.

    `output` is what the page says it prints; its fence, with the blank lines before it, is in the lines
    `output_lines` (first, end) of the page, counted from 0. When both are the same, there is none yet.
    """

    page: str
    line: int
    language: str
    code: str
    output: str = ""
    output_lines: tuple[int, int] = (0, 0)
    status: int = 0
    needs: str = ""

    @property
    def name(self) -> str:
        """`debugging.md:12`, where its first line is."""
        return f"{self.page}:{self.line}"

    @property
    def missing(self) -> str:
        """The program it needs that is not there, if any."""
        return self.needs if self.needs and shutil.which(self.needs) is None else ""


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language and directive, the lines (first, end) of its content, counted from 0."""

    language: str
    directive: str
    first: int
    end: int
    text: str


_OPENING = re.compile(r"```(\w*)\s*$")
_DIRECTIVE = re.compile(r"<!-- recipe: (.*) -->\s*$")


def fences(lines: list[str]) -> Iterator[Fence]:
    """Every fenced block of a page."""
    number = 0
    while number < len(lines):
        opening = _OPENING.match(lines[number])
        if not opening:
            number += 1
            continue
        end = next((k for k in range(number + 1, len(lines)) if lines[k].strip() == "```"), None)
        if end is None:
            raise ValueError(f"line {number + 1}: the fence is not closed")
        before = _DIRECTIVE.match(lines[number - 1]) if number else None
        text = "\n".join(lines[number + 1 : end])
        yield Fence(opening[1], before[1] if before else "", number + 1, end, text)
        number = end + 1


def server_of(page: Path) -> str | None:
    """Name of the server a page talks to, `plain` if it names none; None when its recipes are not run."""
    marker = _MARKER.search(page.read_text(encoding="utf-8"))
    return (marker[1] or "plain") if marker else None


def read_recipes(page: Path) -> list[Recipe]:
    """The recipes of a page, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Recipe] = []
    blocks = list(fences(lines))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language not in ("sh", "python") or block.directive == "skip":
            continue
        recipe = _with_directive(Recipe(page.name, block.first + 1, block.language, block.text), block.directive)
        after = block.end + 1
        if following and following.language == "text" and not "".join(lines[after : following.first - 1]).strip():
            recipe = replace(recipe, output=following.text, output_lines=(after, following.end + 1))
        else:
            recipe = replace(recipe, output_lines=(after, after))
        found.append(recipe)
    return found


def _with_directive(recipe: Recipe, directive: str) -> Recipe:
    for word in directive.split():
        name, _, value = word.partition("=")
        if name == "exit":
            recipe = replace(recipe, status=int(value))
        elif name == "needs":
            recipe = replace(recipe, needs=value)
        else:
            raise ValueError(f"{recipe.name}: there is no directive {word!r}")
    return recipe


def recipe_pages() -> list[Path]:
    """The pages of docs/ whose recipes are run."""
    return [page for page in sorted(DOCS.glob("*.md")) if server_of(page)]


# --- what of an output is shown, and what of it is compared -----------------------------------------------

_SHOWN_VALUES = 8
_SHOWN_BASE64 = 12
_VALUE = r"(?:-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|\"[^\"\\\n,]*\")"
_LIST = re.compile(rf"\[\s*({_VALUE}(?:,\s*{_VALUE})*)\s*\]")
_LONG_BASE64 = re.compile(r'"(?=[A-Za-z0-9+/]*[A-Z])([A-Za-z0-9+/]{96,}={0,2})"')


def shorten(text: str) -> str:
    """`text` with each list of plain values in one line, and long lists and long base64 cut: `[1, 2, … 190 more]`."""
    text = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return _LONG_BASE64.sub(_short_base64, _LIST.sub(_short_list, text))


def _short_list(match: re.Match[str]) -> str:
    values = [value.strip() for value in match[1].split(",")]
    if len(values) > _SHOWN_VALUES + 2:
        values = [*values[:_SHOWN_VALUES], f"… {len(values) - _SHOWN_VALUES} more"]
    return f"[{', '.join(values)}]"


def _short_base64(match: re.Match[str]) -> str:
    size = len(match[1].rstrip("=")) * 3 // 4
    return f'"{match[1][:_SHOWN_BASE64]}… ({size} bytes)"'


MASKS: dict[str, tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = {
    # Named rules: what they match counts as equal in page and output.
    "measured times": (
        re.compile(r'("(?:queuedMs|elapsedMs|processingTimeMs|[a-z_]+_ms)": |\w+_ms[=:] ?)\d+(?:\.\d+)?'),
        r"\1<ms>",
    ),
    "stages": (re.compile(r'("stages(?:Ms|_ms)": \{)[^}]*'), r"\1<stages>"),
    "clock": (re.compile(r"\b\d\d:\d\d:\d\d\.\d{3}\b"), "<clock>"),
    "request ids": (re.compile(r"\b[0-9a-f]{32}\b"), "<request id>"),
    "request ids in base64": (
        re.compile(r'(google\.rpc\.RequestInfo",\s+"value": ")[^"]*'),
        r"\1<request id>",
    ),
    "names of conversations": (re.compile(r'("sessionId": )"[0-9a-f]{16}"'), r'\1"<session>"'),
    # It draws what it says, and no client can set the seed.
    "what a language model answers": (re.compile(r"^(answer: ).+", re.MULTILINE), r"\1<words>"),
    "ports of callers": (re.compile(r"(ipv[46]:[^ ]*):\d+"), r"\1:<port>"),
    # Both sides watch the clock.
    "who was first to give up": (re.compile(r"code=(?:CANCELLED|DEADLINE_EXCEEDED)\b"), "code=<too late>"),
    "whose deadline it was": (re.compile(r"\b(?:context deadline exceeded|Deadline Exceeded)"), "<deadline exceeded>"),
    "version of the server": (re.compile(r'("server_?[vV]ersion": )"[^"]*"'), r'\1"<version>"'),
    "state": (re.compile(r'("resume_?[sS]tate": )"[^"]*"'), r'\1"<state>"'),
    "first bytes of audio": (re.compile(r'("audio": )"[^"…]*…'), r'\1"…'),
    # The last digits are another processor's to choose.
    "digits": (re.compile(r"-?\d+\.\d{4,}"), lambda match: f"{float(match[0]):.2f}".replace("-0.00", "0.00")),
}
"""What may differ between two runs."""


def comparable(text: str) -> str:
    """`text` without what may differ."""
    for pattern, replacement in MASKS.values():
        text = pattern.sub(replacement, text)
    return text


# --- running --------------------------------------------------------------------------------------------

_SHELL = 'while IFS= read -r block <&3; do . "$block" >"$block.out" 2>&1 </dev/null; echo $?; done'
_INTERPRETER = """
import contextlib, pathlib, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    path, status = pathlib.Path(line.rstrip()), 0
    with open(f"{path}.out", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        try:
            exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), names)
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            status = 1
            traceback.print_exc(file=out)
    print(status, flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What a recipe did."""

    output: str
    status: int


class Session:
    """Runs the fences of one language of one page, one after the other, in one process."""

    def __init__(self, language: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        command = ["bash", "-c", f"exec 3<&0; {_SHELL}"] if language == "sh" else [sys.executable, "-c", _INTERPRETER]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str, code: str) -> Outcome:
        """Run `code`. A process that dies, or takes too long, is an error."""
        path = self._folder / ".recipes" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code + "\n", encoding="utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(_TIMEOUT_S, self._kill)
        watchdog.start()
        try:
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            status = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        output = Path(f"{path}.out").read_text(encoding="utf-8")
        if not status:
            raise RuntimeError(f"{name} ended the process it ran in, or took more than {_TIMEOUT_S} s:\n{output}")
        return Outcome(output, int(status))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process, and those it has started."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class PageRun:
    """The recipes of a page, run one after the other in `folder` as far as somebody asks for them.

    `ports` tells where what the page calls port N really listens.
    """

    def __init__(self, recipes: list[Recipe], ports: Mapping[int, int], folder: Path) -> None:
        self._recipes = iter(recipes)
        self._ports = dict(ports)
        self._said = {live: said for said, live in reversed(self._ports.items())}
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, recipe: Recipe) -> Outcome:
        """What `recipe` did, after all before it; not to be asked of one that misses a program."""
        while recipe.name not in self._outcomes:
            following = next(self._recipes)
            if not following.missing:
                self._outcomes[following.name] = self._run(following)
        return self._outcomes[recipe.name]

    def _run(self, recipe: Recipe) -> Outcome:
        session = self._sessions.get(recipe.language)
        if session is None:
            session = self._sessions[recipe.language] = Session(recipe.language, self._folder, self._environment())
        done = session.run(recipe.name, _translate(recipe.code, self._ports))
        return Outcome(shorten(_translate(done.output, self._said)), done.status)

    def _environment(self) -> dict[str, str]:
        programs = self._folder / ".recipes" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        command = programs / "taste-grpc"  # which is not there where the package is not installed
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m taste_grpc "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in ("", "clients/python/src")),
            "GRPC_VERBOSITY": "NONE",
            "BUF_CACHE_DIR": str(self._folder / ".buf"),
            "TERM": "dumb",
            "COLUMNS": "120",
        }

    def close(self) -> None:
        """End what the recipes left running."""
        for session in self._sessions.values():
            session.close()


def run_page(recipes: list[Recipe], ports: Mapping[int, int], folder: Path) -> dict[str, Outcome]:
    """Run all recipes of a page; by name, what each did."""
    with closing(PageRun(recipes, ports, folder)) as run:
        return {recipe.name: run.outcome(recipe) for recipe in recipes if not recipe.missing}


def _translate(text: str, ports: Mapping[int, int]) -> str:
    return re.sub(r":(\d{4,5})\b", lambda match: f":{ports.get(int(match[1]), match[1])}", text)


def update(page: Path, recipes: list[Recipe], outcomes: Mapping[str, Outcome]) -> int:
    """Write outputs that differ into `page`, but not those of recipes that failed; returns how many were written."""
    lines = page.read_text(encoding="utf-8").splitlines()
    changed = 0
    for recipe in reversed(recipes):
        done = outcomes.get(recipe.name)
        if done is None or done.status != recipe.status or comparable(done.output) == comparable(recipe.output):
            continue
        changed += 1
        first, end = recipe.output_lines
        lines[first:end] = ["", "```text", *done.output.splitlines(), "```"] if done.output else []
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return changed


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A directory for recipes to run in."""
    with TemporaryDirectory(prefix="taste-recipes-") as name:
        yield Path(name)


def main(arguments: list[str]) -> int:
    """Compare, or with `--update` renew; further arguments are names of pages. Returns the exit status."""
    from tests.support.recipe_servers import recipe_servers

    wanted = [argument for argument in arguments if not argument.startswith("--")]
    pages = [page for page in recipe_pages() if not wanted or page.name in wanted]
    failed = 0
    with ExitStack() as stack:
        servers = stack.enter_context(recipe_servers())
        for page in pages:
            folder = stack.enter_context(scratch_folder())
            servers.furnish(folder)
            recipes = read_recipes(page)
            outcomes = run_page(recipes, servers.ports_of(page), folder)
            for recipe in recipes:
                failed += _report(recipe, outcomes.get(recipe.name))
            if "--update" in arguments:
                print(f"{page.name}: {update(page, recipes, outcomes)} outputs renewed")
    return 1 if failed else 0


def _report(recipe: Recipe, done: Outcome | None) -> bool:
    if done is None:
        print(f"{recipe.name}: not run, there is no {recipe.needs}")
    elif done.status != recipe.status:
        print(f"{recipe.name}: exit status {done.status}, not {recipe.status}\n{done.output}")
        return True
    elif comparable(done.output) != comparable(recipe.output):
        print(f"{recipe.name}: printed\n{done.output}")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
