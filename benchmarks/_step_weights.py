"""The weights that a step of the language model reads, and how fast this processor reads and multiplies them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taste_grpc import TasteForCausalLM

_ROW = 1024  # float32 numbers that are added up together

Words = Tensor
"""The bytes of a tensor as `[n]` int64, or uint8 where they are no multiple of 8."""


@dataclass(frozen=True)
class StepWeights:
    """What a step reads of a model, in the order in which it does: its own tensors, not copies.

    Attributes:
        products: `[out, in]`, the weights of all linear layers.
        gains: `[D]`, the weights of the norms.
    """

    products: Sequence[Tensor]
    gains: Sequence[Tensor]

    @classmethod
    def of(cls, model: TasteForCausalLM) -> StepWeights:
        """From the fusion of text and speech to the scores of the ids and the latent of the codes."""
        lm = model.spoken_lm
        layers, norm = lm.llama.model.layers, lm.llama.model.norm
        parts = (lm.fuse_for_bridge_in_llm, layers, lm.llama.lm_head, lm.extract_for_bridge_out_llm)
        linear = [module.weight for part in parts for module in part.modules() if isinstance(module, nn.Linear)]
        gains = [weight for part in (layers, norm) for weight in part.parameters() if weight.dim() == 1]
        return cls([weight.detach() for weight in linear], [weight.detach() for weight in gains])

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.products, *self.gains))

    def read_s(self, repeats: int) -> float:
        """Seconds to read all once: the fastest of some ways, each the median of `repeats` times."""
        words = [_words(tensor) for tensor in (*self.products, *self.gains)]
        return min(median_s(lambda way=way: [way(part) for part in words], repeats) for way in READERS)

    def product_s(self, rows: int, repeats: int) -> float:
        """Seconds for the products of all linear layers with `rows` rows: `x @ W.T` or `W @ x.T`, which is faster.

        The inputs are made before; there is nothing between one product and the next.
        """
        shapes = {(weight.shape[1], weight.dtype) for weight in self.products}
        inputs = {shape: torch.randn(rows, shape[0]).to(shape[1]) for shape in shapes}
        columns = {shape: found.t().contiguous() for shape, found in inputs.items()}
        paired = [(weight, (weight.shape[1], weight.dtype)) for weight in self.products]
        return min(
            median_s(lambda: [F.linear(inputs[shape], weight) for weight, shape in paired], repeats),
            median_s(lambda: [torch.mm(weight, columns[shape]) for weight, shape in paired], repeats),
        )


def _words(tensor: Tensor) -> Words:
    flat = tensor.reshape(-1).view(torch.uint8)
    return flat.view(torch.int64) if flat.numel() % 8 == 0 else flat


def _added_up(words: Words) -> Tensor:
    return words.sum()


def _greatest(words: Words) -> Tensor:
    return words.view(torch.int32).amax() if words.dtype == torch.int64 else words.amax()


def _times_ones(words: Words) -> Tensor:
    if words.numel() * words.element_size() % (4 * _ROW):
        return words.sum()
    return torch.mv(words.view(torch.float32).view(-1, _ROW), _ONES)


_ONES = torch.ones(_ROW)
READERS: tuple[Callable[[Words], Tensor], ...] = (_added_up, _greatest, _times_ones)
"""Ways to read a tensor to its end that write next to nothing."""


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Seconds that `run` takes, the median of `repeats` times."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
