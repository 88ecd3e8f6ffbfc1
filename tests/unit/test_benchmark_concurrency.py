"""The benchmark of calls that run side by side works on a small model; its times are not judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taste_grpc import TasteForCausalLM
from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.model.embedded.random_checkpoint import LanguageSizes
from taste_grpc.model.spoken_lm.generation import decode_step, start_generations, text_prompt
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from taste_grpc.model.text.tokens import TextTokenizer
from tests.support.benchmarks import benchmark
from tests.support.served import served

IDS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calls") / "random"
    with pytest.MonkeyPatch.context() as patch:
        benchmark("concurrency", patch).write_model(str(directory), LanguageSizes(vocab_size=640))
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TasteForCausalLM:
    return TasteForCausalLM.from_pretrained(checkpoint, device="cpu", dtype="float32", show_progress=False)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("concurrency", monkeypatch)


class Multiplied(TorchFunctionMode):
    """Notes which memory the products in its block take their weights from: where it begins, and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        factor = {F.linear: 1, torch.mm: 0, torch.bmm: 0, torch.addmm: 1}.get(func)
        if factor is not None:
            weight = args[factor]
            self.places.append((weight.data_ptr(), weight.nbytes))
        return func(*args, **(kwargs or {}))

    def bytes_of(self, tensor: Tensor) -> int:
        """Bytes of `tensor` that were multiplied with, as often as they were."""
        start = tensor.data_ptr()
        return sum(size for place, size in self.places if start <= place < start + tensor.nbytes)


def decoded(model: TasteForCausalLM, checkpoint: Path, calls: int) -> Multiplied:
    """The products of one step of several calls, prompts left out."""
    lm, rvq = model.spoken_lm, model.audio_tower.rvq
    sets = TextTokenizer.from_directory(checkpoint / "llama_tokenizer").sets(lm.vocab_size)
    cache = lm.new_cache(slots=calls, capacity=32)
    prompts = [text_prompt(lm, [3, 4 + index]) for index in range(calls)]
    params, draws = [SamplingParams()] * calls, [SeededDraws(seed, model.vq_dim) for seed in range(calls)]
    generations = start_generations(lm, cache, range(calls), prompts, params, draws, sets)
    with Multiplied() as products:
        decode_step(lm, rvq, cache, generations)
    return products


@pytest.mark.parametrize("calls", [1, 16])
def test_the_bare_products_are_those_of_a_step(
    model: TasteForCausalLM, checkpoint: Path, module: ModuleType, calls: int
) -> None:
    """Every weight that a step multiplies with is there exactly once, itself and no copy, and nothing else is."""
    weights = module.StepWeights.of(model)
    with torch.inference_mode():
        step = decoded(model, checkpoint, calls)
        with Multiplied() as measured:
            weights.product_s(calls, repeats=1)
    for name, parameter in model.spoken_lm.named_parameters():
        is_there = parameter.data_ptr() in [weight.data_ptr() for weight in weights.products]
        assert step.bytes_of(parameter) == is_there * parameter.nbytes, name
        assert measured.bytes_of(parameter) == 2 * step.bytes_of(parameter), name  # both orders of the factors


def test_what_is_read_is_every_byte_once(
    model: TasteForCausalLM, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = module.StepWeights.of(model)
    lm = model.spoken_lm
    layers = [lm.llama.model.layers, lm.llama.model.norm, lm.llama.lm_head]
    names = ["fuse_for_bridge_in_llm.linear.weight", "extract_for_bridge_out_llm.fc_mu.weight"]
    expected = [parameter for part in layers for parameter in part.parameters()]
    expected += [lm.get_parameter(name) for name in names]
    assert weights.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in expected)
    read: list[int] = []

    def reader(words: Tensor) -> None:
        read.append(words.data_ptr())
        sizes.append(words.numel() * words.element_size())

    sizes: list[int] = []
    monkeypatch.setattr("_step_weights.READERS", (reader,))
    weights.read_s(repeats=1)
    assert sorted(read) == sorted(tensor.data_ptr() for tensor in expected)
    assert sum(sizes) == weights.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 1024), (3, 7)])
def test_every_way_of_reading_goes_to_the_end(dtype: torch.dtype, shape: tuple[int, int], module: ModuleType) -> None:
    """What is at the end of a tensor shows in the result."""
    import _step_weights

    for read in _step_weights.READERS:
        tensor = torch.zeros(shape, dtype=dtype)
        before = read(_step_weights._words(tensor)).clone()
        tensor.view(-1)[-1] = 2.0
        assert not torch.equal(read(_step_weights._words(tensor)), before)


@dataclass(frozen=True)
class Asked:
    """A server or a client that is asked in this process."""

    answer: Callable[[Any], Any]

    def ask(self, question: Any) -> Any:
        return self.answer(question)


@pytest.fixture
def place(checkpoint: Path, module: ModuleType) -> Iterator[Any]:
    import _generate_calls

    engine = LocalEngine(EngineSettings(model=checkpoint, device="cpu", threads=1, cache_mib=64))
    with served(lambda: engine) as site:
        client = Asked(lambda question: site.run(_generate_calls.arrivals(site.live.stub, **question)))
        yield module.Site(Asked(lambda _: _generate_calls.counted(engine)), client)


def test_calls_bring_as_many_ids_as_were_asked_for(
    place: Any, model: TasteForCausalLM, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    found = module.run_round(place, module.StepWeights.of(model), (1, 3), IDS, seed=1)
    assert list(found["points"]) == ["1", "3"]
    assert found["points"]["1"]["rows_per_step"] == 1.0
    assert 1.0 < found["points"]["3"]["rows_per_step"] <= 3.0
    several = place.calls(3, IDS, seed=1).check(IDS)
    assert several.steps == 3 * place.calls(1, IDS, seed=1).steps
    assert len(several.gaps) == 3 * (IDS - 1)
    with pytest.raises(SystemExit, match="6 times 1"):
        several.check(IDS + 1)
    names = {"speedup_16", "gemm_gain_16", "speedup_16_over_gemm", "bandwidth_fraction", "p95_ratio_16"}
    assert names <= found.keys()
    assert min(found["gemm_gain_16"], found["bandwidth_fraction"]) > 0
    assert all(math.isfinite(found[name]) for name in names), "of the others it depends on the machine"


@pytest.mark.slow
def test_server_and_client_are_processes(checkpoint: Path, module: ModuleType) -> None:
    with module.site({"model": str(checkpoint), "device": "cpu", "threads": 1, "cache_mib": 64}) as place:
        assert len(place.calls(2, IDS, seed=1).check(IDS).times) == 2


def test_figures_are_medians_of_rounds(module: ModuleType) -> None:
    rounds = [{"speed": speed, "points": {"1": {"ms": 10.0 * speed}}} for speed in (3.0, 1.0, 2.0)]
    assert module.medians(rounds) == {"speed": 2.0, "points": {"1": {"ms": 20.0}}}


def test_rates_are_of_the_time_in_which_all_calls_bring_something(module: ModuleType) -> None:
    ids = [[[1]] * 4] * 2
    arrivals = module.Arrivals(0.0, [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], ids, steps=8, batches=5)
    assert arrivals.steady_rate == 4 / 2.0
    assert arrivals.rate == 8 / 5.0
    assert arrivals.first_s == 2.0
    assert module.point(arrivals)["rows_per_step"] == 1.6
