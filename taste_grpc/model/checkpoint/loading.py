"""Reading checkpoints in the published layout into modules, tensor by tensor.

A module is built on the meta device under the published names; each stored tensor is then mapped
from its file, converted and put in place, so that no second copy of the model is ever held.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from taste_grpc.errors import CheckpointError
from taste_grpc.model.spoken_lm.lora import LoraLinear, merge_lora

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NAMES_SHOWN = 6

DtypePolicy = Callable[[str], torch.dtype]
"""Target dtype of a floating-point tensor, by its published name."""


class TensorSource(Protocol):
    """Stored tensors by name."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every stored tensor."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, in its stored dtype."""
        ...

    @property
    def location(self) -> str:
        """File that stands for all of them, for error messages."""
        ...

    def label(self, name: str) -> str:
        """`name`, with whatever helps to find the tensor."""
        ...


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


class SafetensorsSource:
    """The tensors of `model.safetensors`, or of the shards its index names, in `directory`.

    Raises CheckpointError naming the file that is missing, damaged or not as the index says.
    """

    def __init__(self, directory: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self._directory = directory
        self._sharded = not (directory / _SINGLE).is_file()
        self.location = str(directory / (_INDEX if self._sharded else _SINGLE))
        listed = self._listed() if self._sharded else {}
        for file in sorted(set(listed.values())) if self._sharded else [_SINGLE]:
            self._open(file, listed)
        for name, file in listed.items():
            if name not in self._file_of:
                raise CheckpointError(f"{directory / file} lacks the tensor {name}, which {_INDEX} says it holds")

    def _listed(self) -> dict[str, str]:
        """The shard of every tensor, as the index has it."""
        path = self._directory / _INDEX
        if not path.is_file():
            raise CheckpointError(f"{self._directory} has neither {_SINGLE} nor {_INDEX}")
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path} has no weight_map")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{path} puts the tensor {name} into {file!r}, which is not the name of a file")
        return weight_map

    def _open(self, file: str, listed: Mapping[str, str]) -> None:
        path = self._directory / file
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {_INDEX} names it")
        try:
            handle: Any = safe_open(path, framework="pt")
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if listed.get(name, file) == file:
                    self.shapes[name] = tuple(handle.get_slice(name).get_shape())
                    self._file_of[name] = file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
        self._files[file] = handle

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped from its file."""
        path = self._directory / self._file_of[name]
        try:
            tensor: Tensor = self._files[self._file_of[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}") from error
        return tensor

    def label(self, name: str) -> str:
        """`name`, with its shard when there are several files."""
        return f"{name} (in {self._file_of[name]})" if self._sharded and name in self._file_of else name


class TorchSource:
    """The tensors of a `torch.save` file holding a plain dictionary of tensors. Code in it is never run.

    Raises CheckpointError naming the file when it is missing, damaged or holds anything else.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        self.location = str(path)
        content = self._read(path)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise CheckpointError(f"{path} is not a plain dictionary of tensors")
        self._tensors: dict[str, Tensor] = content
        self.shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}

    @staticmethod
    def _read(path: Path) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd pickles; the errors below say enough
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            # torch refuses code and plain garbage with the same exception
            code = re.search(r"GLOBAL (\S+)", str(error))
            what = f"holds code ({code[1]}), which is not run" if code else "is damaged or holds more than tensors"
            raise CheckpointError(f"{path} {what}") from error
        except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, zipfile.BadZipFile) as error:
            reason = (str(error).splitlines() or ["it ends too soon"])[0].split(". ", 1)[0]
            raise CheckpointError(f"{path} is damaged or truncated: {reason}") from error

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]

    def label(self, name: str) -> str:
        """`name`: there is one file only."""
        return name


def check_names(module: nn.Module, source: TensorSource, optional: Iterable[str] = ()) -> None:
    """Hold the names and shapes `module` expects against what is stored.

    Raises:
        CheckpointError: one message with every missing, unexpected and misshapen tensor.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    misshapen = [
        f"{source.label(name)} is {list(source.shapes[name])}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in source.shapes and source.shapes[name] != shape
    ]
    found = {
        "missing": sorted(expected.keys() - source.shapes.keys() - set(optional)),
        "unexpected": [source.label(name) for name in sorted(source.shapes.keys() - expected.keys())],
        "misshapen": misshapen,
    }
    problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{source.location}: tensors do not fit the configuration; {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def load_into(
    module: nn.Module,
    source: TensorSource,
    *,
    device: torch.device,
    dtype_of: DtypePolicy,
    ties: Mapping[str, str] | None = None,
    show_progress: bool | None = None,
    description: str = "loading",
) -> None:
    """Fill `module`, built on the meta device, from `source`.

    Adapters are merged in float32 before the cast, and every submodule with a `fold_` method is folded.

    Args:
        device: where the tensors go.
        dtype_of: target dtype of floating-point tensors.
        ties: tensors that may be absent, with the name of the one that stands in for each.
        show_progress: None shows a bar on a terminal only.
        description: text beside the bar.

    Raises:
        CheckpointError: names or shapes do not fit, or a file is damaged.
    """
    ties = ties or {}
    check_names(module, source, optional=ties)
    expected = module.state_dict()
    total = sum(torch.Size(shape).numel() for shape in source.shapes.values())
    hidden = None if show_progress is None else not show_progress
    with tqdm(total=total, desc=description, unit="numbers", unit_scale=True, disable=hidden, file=sys.stderr) as bar:

        def fetch(name: str) -> Tensor:
            tensor = source.tensor(name)
            _check_kind(tensor, expected[name], name, source)
            bar.update(tensor.numel())
            return tensor

        _merge_adapters(module, fetch, device, dtype_of)
        _fill(module, source, fetch, device, dtype_of)
    for name, stand_in in ties.items():
        if name not in source.shapes:
            _place(module, name, _lookup(module, stand_in))
    for child in module.modules():
        fold = getattr(child, "fold_", None)
        if fold is not None:
            fold()


def _convert(tensor: Tensor, name: str, device: torch.device, dtype_of: DtypePolicy) -> Tensor:
    dtype = dtype_of(name) if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=dtype)


def _check_kind(tensor: Tensor, expected: Tensor, name: str, source: TensorSource) -> None:
    if tensor.is_floating_point() != expected.is_floating_point():
        raise CheckpointError(f"{source.location}: tensor {name} is {tensor.dtype}, expected {expected.dtype}")


def _merge_adapters(
    module: nn.Module, fetch: Callable[[str], Tensor], device: torch.device, dtype_of: DtypePolicy
) -> None:
    for name, child in list(module.named_modules()):
        if not isinstance(child, LoraLinear):
            continue
        merged = merge_lora(
            fetch(f"{name}.base_layer.weight").to(device),
            fetch(f"{name}.lora_A.default.weight").to(device),
            fetch(f"{name}.lora_B.default.weight").to(device),
            child.scale,
        )
        with torch.device("meta"):
            plain = nn.Linear(
                child.base_layer.in_features, child.base_layer.out_features, bias=child.base_layer.bias is not None
            )
        plain.weight = nn.Parameter(merged.to(dtype_of(f"{name}.base_layer.weight")), requires_grad=False)
        if child.base_layer.bias is not None:
            bias = _convert(fetch(f"{name}.base_layer.bias"), f"{name}.base_layer.bias", device, dtype_of)
            plain.bias = nn.Parameter(bias, requires_grad=False)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, plain)


def _fill(
    module: nn.Module,
    source: TensorSource,
    fetch: Callable[[str], Tensor],
    device: torch.device,
    dtype_of: DtypePolicy,
) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_meta and name in source.shapes:
            _place(module, name, _convert(fetch(name), name, device, dtype_of))


def _lookup(module: nn.Module, name: str) -> Tensor:
    parent, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(parent), attribute)
    return tensor


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` where `name` says, as a parameter or a buffer like the one before it."""
    parent_name, _, attribute = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if attribute in parent._parameters:
        own = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        parent._parameters[attribute] = own
    else:
        parent._buffers[attribute] = tensor
