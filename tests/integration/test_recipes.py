"""The pages of docs/: their commands and snippets are run against live servers, and what they state is looked up."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import BaseModel
from typer.main import get_command

from taste.v1 import common_pb2, taste_pb2, taste_pb2_grpc
from taste_grpc.cli.command_line import app
from taste_grpc.engine.loading import LoadedModel
from taste_grpc.engine.machine import MachineSettings, SharedMachine
from taste_grpc.settings import ChunkedResponseSettings, StreamSettings, load_settings
from taste_grpc_client import errors as client_errors
from tests.conftest import Loaded
from tests.support.recipe_servers import PLAIN, RecipeServers, recipe_servers
from tests.support.recipes import (
    DOCS,
    ROOT,
    Outcome,
    PageRun,
    Recipe,
    comparable,
    fences,
    read_recipes,
    recipe_pages,
    run_page,
    update,
)

RECIPES = {page.name: read_recipes(page) for page in recipe_pages()}
PAGES = sorted(DOCS.glob("*.md"))


class Book:
    """The recipes of all pages; each is run when it is first asked for, after those above it."""

    def __init__(self, servers: RecipeServers, root: Path) -> None:
        self._servers = servers
        self._root = root
        self._runs: dict[str, PageRun] = {}

    @property
    def ports(self) -> dict[int, int]:
        return self._servers.ports

    def outcome(self, recipe: Recipe) -> Outcome:
        if recipe.page not in self._runs:
            self.close()  # no page goes on once another has begun
            folder = self._root / recipe.page
            folder.mkdir()
            self._servers.furnish(folder)
            ports = self._servers.ports_of(DOCS / recipe.page)
            self._runs[recipe.page] = PageRun(RECIPES[recipe.page], ports, folder)
        return self._runs[recipe.page].outcome(recipe)

    def close(self) -> None:
        for run in self._runs.values():
            run.close()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Book]:
    with recipe_servers() as servers, closing(Book(servers, tmp_path_factory.mktemp("recipes"))) as book:
        yield book


@pytest.mark.parametrize("recipe", [r for recipes in RECIPES.values() for r in recipes], ids=lambda recipe: recipe.name)
def test_a_recipe_does_what_the_page_says(recipe: Recipe, book: Book) -> None:
    if recipe.missing:
        pytest.skip(f"there is no {recipe.missing} on this machine")
    done = book.outcome(recipe)
    assert comparable(done.output) == comparable(recipe.output)
    assert done.status == recipe.status


# --- what the pages state -----------------------------------------------------------------------------------

CODE = [*(ROOT / "taste_grpc").rglob("*.py"), *(ROOT / "clients/python/src/taste_grpc_client").rglob("*.py")]


def tables(page: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table of a page."""
    for block in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        yield header, rows


def rows_of(page: str, first_header: str) -> list[list[str]]:
    return [row for header, rows in tables(page) if header[0].strip("| ") == first_header for row in rows]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            if path.startswith("http"):
                continue
            file = (page.parent / path) if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page() -> None:
    listed = re.findall(r"\]\((\w[\w.-]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in PAGES if page.name != "README.md")


def test_every_snippet_is_run() -> None:
    unseen = [
        f"{page.name}:{block.first}"
        for page in PAGES
        if page.name not in RECIPES
        for block in fences(page.read_text(encoding="utf-8").splitlines())
        if block.language == "python"
    ]
    assert unseen == []


def test_every_flag_of_serve_is_one_it_has() -> None:
    known = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}
    known |= {option for parameter in get_command(app).commands["serve"].params for option in parameter.secondary_opts}
    named = [
        (page.name, flag)
        for page in PAGES
        for code in re.findall(r"serve [^`\n]*", page.read_text(encoding="utf-8"))
        for flag in re.findall(r"--[a-z-]+", code)
    ]
    assert named
    assert [(page, flag) for page, flag in named if flag not in known] == []


def test_every_reason_is_explained_with_its_code() -> None:
    proto = (ROOT / "protos/taste/v1/common.proto").read_text(encoding="utf-8")
    declared = {
        name: re.findall(r"// ([A-Z_]+):", comment)[0]
        for comment, name in re.findall(r"((?:  //.*\n)+)  (ERROR_REASON_\w+) = [1-9]\d*;", proto)
    }
    assert set(declared) == set(common_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    explained = {spans(row[0])[0]: spans(row[1])[0] for row in rows_of("errors.md", "reason")}
    assert explained == declared


def test_every_exception_of_the_client_is_listed() -> None:
    listed = {spans(row[0])[0] for row in rows_of("errors.md", "exception")}
    classes = vars(client_errors).values()
    base = client_errors.TasteClientError
    assert listed == {c.__name__ for c in classes if isinstance(c, type) and issubclass(c, base)} - {base.__name__}


def texts(path: Path) -> Iterator[str]:
    """The strings in a module; `…` for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def said(message: str, text: str) -> bool:
    """Whether `text` has the parts of `message` between `…`, in their order."""
    at = 0
    for part in filter(None, message.split("…")):
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def test_every_message_that_is_explained_is_one_that_the_code_says() -> None:
    known = [text for path in CODE for text in texts(path)]
    quoted = [
        message
        for header in ("message", "line")
        for row in rows_of("troubleshooting.md", header)
        for message in spans(row[0])
    ]
    assert len(quoted) > 30
    assert [message for message in quoted if not any(said(message, text) for text in known)] == []


def test_messages_of_grpc_are_what_it_says(book: Book) -> None:
    port = book.ports[PLAIN]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, grpc.insecure_channel("127.0.0.1:1") as nobody:
        info, name = taste_pb2.GetModelInfoRequest(), "/taste.v1.TasteService"
        large = taste_pb2.TokenizeRequest(text="a" * (17 << 20))
        health = health_pb2_grpc.HealthStub(channel)
        calls = {
            "failed to connect to all addresses": lambda: nobody.unary_unary(f"{name}/GetModelInfo")(b""),
            "Received message larger than max": lambda: taste_pb2_grpc.TasteServiceStub(channel).Tokenize(large),
            "Method not found!": lambda: channel.unary_unary(f"{name}/Nope")(info.SerializeToString()),
            "there is no such service": lambda: health.Check(health_pb2.HealthCheckRequest(service="nope")),
        }
        for message, call in calls.items():
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert message in caught.value.details()
            assert [caught.value.code().name] in [
                spans(row[0]) for row in rows_of("errors.md", "code") if message in spans(row[1])
            ]
    listed = {message for row in rows_of("errors.md", "code") for message in spans(row[1])}
    assert listed == set(calls)


def test_settings_files_can_be_loaded(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in fences(page.read_text(encoding="utf-8").splitlines()):
            if block.language == "toml" and block.directive != "skip":
                path = tmp_path / f"{page.stem}-{block.first}.toml"
                path.write_text(block.text, encoding="utf-8")
                load_settings({}, path)
                found += 1
    assert found


def test_settings_that_bound_a_machine_have_the_defaults_that_are_stated() -> None:
    settings: Any = load_settings().model_dump()
    for row in rows_of("sizing.md", "setting"):
        values = [value.removesuffix(" MiB").replace(",", "") for value in row[1].split(", ")]
        names = [name for name in spans(row[0]) if "." in name or name in settings]
        for name, stated in zip(names, values, strict=True):
            value = settings
            for part in name.split("."):
                value = value[part]
            if value is None:
                assert not any(letter.isdigit() for letter in stated), name
            else:
                assert value == int(stated) << (20 if "MiB" in row[1] and "bytes" in name else 0), name


@pytest.mark.parametrize(
    ("header", "prefix", "model"),
    [("stream setting", "", StreamSettings), ("reply setting", "chunked_response.", ChunkedResponseSettings)],
)
def test_settings_of_conversations_are_stated_with_default_and_range(
    header: str, prefix: str, model: type[BaseModel]
) -> None:
    rows = {spans(row[0])[0].removeprefix(prefix): row for row in rows_of("conversing.md", header)}
    assert set(rows) == set(model.model_fields)
    for name, field in model.model_fields.items():
        _, default, allowed, *_ = rows[name]
        assert default.partition(":")[0] == as_stated(field.default), name
        bounds = {
            as_stated(bound)
            for limit in field.metadata
            for side in ("gt", "ge", "lt", "le")
            if (bound := getattr(limit, side, None)) is not None
        }
        assert bounds <= set(re.findall(r"[\d,.]*\d", allowed)), name


def as_stated(value: Any) -> str:
    """A default or bound, as tables have it."""
    if value is None or isinstance(value, bool):
        return "unset" if value is None else str(value).lower()
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)


# --- sizes -------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_what_is_allocated(tiny: Loaded) -> None:
    (recipe,) = RECIPES["sizing.md"]
    printed = {
        line[:18].strip(): int(re.findall(r"[\d,]+(?= bytes)", line)[0].replace(",", ""))
        for line in recipe.output.splitlines()
    }
    lm, decoder = tiny.model.spoken_lm, tiny.model.speech_decoder
    position = lm.new_cache(slots=1, capacity=128).nbytes - lm.new_cache(slots=1, capacity=64).nbytes
    row = decoder.new_cache(1, 128).nbytes - decoder.new_cache(1, 64).nbytes
    assert printed["a position"] == position // 64
    assert printed["a row of speech"] == row // 64
    settings = load_settings()
    shape = MachineSettings(
        text_slots=settings.admission.generate.active,
        unit_slots=settings.admission.detokenize.active,
        text_positions=8192 + 4096 + 1024,
        cache_bytes=1 << 30,
    )
    machine = SharedMachine(LoadedModel(tiny.model, tiny.processor, None, None), shape)  # type: ignore[arg-type]
    laid_out = [int(size.replace(",", "")) for size in re.findall(r"16 slots +([\d,]+)", recipe.output)]
    assert laid_out == [16 * machine.text_pool.capacity * position // 64, 16 * machine.unit_pool.capacity * row // 64]
    assert printed["16 Generate calls"] == 16 * (200 + 512 + 2) * position // 64
    held = [*tiny.model.parameters(), *tiny.processor.get_generator(tiny.model.device).parameters()]
    assert printed["weights"] == pytest.approx(sum(tensor.nbytes for tensor in held), rel=0.15)


@pytest.mark.parametrize(("dtype", "column"), [("bfloat16", 1), ("float32", 2)])
def test_sizes_of_the_published_checkpoint(dtype: str, column: int) -> None:
    names: dict[str, Any] = {}
    (recipe,) = RECIPES["sizing.md"]
    exec(recipe.code.rpartition("\n\n")[0], names)
    data = ROOT / "tests/data"
    config = json.loads((data / "published_config.json").read_text(encoding="utf-8"))
    layout = json.loads((data / "published_layout.json").read_text(encoding="utf-8"))
    width = names["BYTES"][dtype]
    weights = 4 * sum(math.prod(shape) for shape, _ in layout["voice_generator"].values())
    for name, (shape, _) in layout["model"].items():
        if ".lora_" not in name:
            weights += math.prod(shape) * (width if name.startswith(names["IN_DTYPE"]) else 4)
    position, row = names["key_value_bytes"](config, dtype), names["speech_row_bytes"](config)
    computed = [
        weights,
        position,
        16 * (200 + 512 + 2) * position,
        16 * (8192 + 4096 + 1024) * position,
        row,
        16 * 4096 * row,
    ]
    units = {"KiB": 10, "MiB": 20, "GiB": 30}
    (rows,) = [rows for header, rows in tables("sizing.md") if "bfloat16" in header]
    for size, cells in zip(computed, rows, strict=True):
        number, unit = cells[column].strip("| ").split()
        assert round(size / 2 ** units[unit], len(number.partition(".")[2])) == float(number), cells[0]


# --- the machinery itself ------------------------------------------------------------------------------------

PAGE = """<!-- recipes -->
```sh
word=kept; echo "$word" && false
```

```text
stale
```

```sh
echo "$word"
```

<!-- recipe: exit=3 -->
```python
import sys; print("out"); sys.exit(3)
```

<!-- recipe: needs=no-such-program -->
```sh
no-such-program
```

```python
print([1] * 20)
```
"""


def test_outputs_are_renewed_but_not_those_of_failures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    recipes = read_recipes(page)
    assert [(recipe.line, recipe.status, recipe.missing) for recipe in recipes] == [
        (3, 0, ""),
        (11, 0, ""),
        (16, 3, ""),
        (21, 0, "no-such-program"),
        (25, 0, ""),
    ]
    outcomes = run_page(recipes, {}, tmp_path)
    assert outcomes["page.md:3"] == Outcome("kept", 1)
    assert outcomes["page.md:16"].status == 3
    assert update(page, recipes, outcomes) == 3
    again = read_recipes(page)
    assert [recipe.output.splitlines()[:1] for recipe in again] == [
        ["stale"],
        ["kept"],
        ["out"],
        [],
        ["[1, 1, 1, 1, 1, 1, 1, 1, … 12 more]"],
    ]
    assert update(page, again, run_page(again, {}, tmp_path)) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"elapsedMs": 1.5,', '"elapsedMs": 17.25,'),
        ('"stagesMs": {\n "decode": 3\n}', '"stagesMs": {\n "decode": 4, "prefill": 1\n}'),
        ("12:34:56.789 INFO", "01:02:03.004 INFO"),
        (f'"requestId": "{"0a" * 16}"', f'"requestId": "{"1b" * 16}"'),
        ("peer=ipv4:127.0.0.1:1234 code=OK", "peer=ipv4:127.0.0.1:5 code=OK"),
        ("[0.123456, -0.0011]", "[0.123457, 0.0012]"),
    ],
)
def test_what_differs_from_run_to_run_is_not_compared(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('"audioMs": 1500', '"audioMs": 1400'),
        ('"textIds": [476]', '"textIds": [477]'),
        ("code=OK", "code=INTERNAL"),
        ('"chunkDurationMs": 452.8125', '"chunkDurationMs": 480'),
        ('"audio": "nf3G… (14490 bytes)"', '"audio": "nf3G… (14491 bytes)"'),
        ("[0.123456]", "[0.223456]"),
    ],
)
def test_what_matters_is_compared(one: str, other: str) -> None:
    assert comparable(one) != comparable(other)
