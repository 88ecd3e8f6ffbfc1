"""A small speaker network in the form of `cosyvoice/speaker_embed.onnx`, with random weights."""

from __future__ import annotations

import numpy as np

from taste_grpc.errors import CheckpointError

FEATURES = 80
EMBEDDING = 192
_OPSET = 13
_IR_VERSION = 8


def random_speaker_network(seed: int) -> bytes:
    """A serialised ONNX model: filter-bank features `input` `[1, T, 80]` to `output` `[1, 192]`.

    Mean and standard deviation over time, then one linear layer: different voices differ in the second.

    Raises:
        CheckpointError: the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise CheckpointError("writing a speaker network needs the package onnx: pip install onnx") from error

    rng = np.random.default_rng(seed)
    weights = {
        "project": (rng.standard_normal((FEATURES, FEATURES)) / np.sqrt(FEATURES)).astype(np.float32),
        "weight": (rng.standard_normal((2 * FEATURES, EMBEDDING)) / np.sqrt(2 * FEATURES)).astype(np.float32),
        "bias": (0.1 * rng.standard_normal(EMBEDDING)).astype(np.float32),
        "floor": np.array(1e-5, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["input", "project"], ["rows"]),
        node("Tanh", ["rows"], ["bounded"]),
        node("ReduceMean", ["bounded"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["bounded", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squared"]),
        node("ReduceMean", ["squared"], ["variance"], axes=[1], keepdims=0),
        node("Add", ["variance", "floor"], ["positive"]),
        node("Sqrt", ["positive"], ["deviation"]),
        node("ReduceMean", ["bounded"], ["average"], axes=[1], keepdims=0),
        node("Concat", ["average", "deviation"], ["pooled"], axis=1),
        node("MatMul", ["pooled", "weight"], ["projected"]),
        node("Add", ["projected", "bias"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "random_speaker_network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, "T", FEATURES])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, EMBEDDING])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    checker.check_model(model)
    return bytes(model.SerializeToString())
