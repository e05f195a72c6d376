"""Single layers in ONNX Runtime, side by side in one graph, by its own profile.

The graph is written down directly: exporting thousands of layers would take an hour. The profile
tells the time of each layer without that of bringing its input into another order in memory, which
a network does not do between its layers.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.formats.exporting import needed

Called = tuple[nn.Module, Sequence[Tensor]]


def profiled(layers: Sequence[Called], threads: int, rounds: int) -> list[float]:
    """Return the seconds that each layer takes: the median of some rounds.

    Args:
        layers: Convolutions and linear layers, each with the inputs that it is called with.
        threads: How many are used.
        rounds: How often all layers are called.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    helper, runtime = needed("onnx", "runtime=ort").helper, needed("onnxruntime", "runtime=ort")
    nodes: list[Any] = []
    tensors: dict[str, Any] = {}
    feed: dict[str, Any] = {}
    for number, (layer, inputs) in enumerate(layers):
        own = {name: value.detach().cpu().numpy() for name, value in layer.named_parameters()}
        if isinstance(layer, nn.Linear):
            own["weight"] = np.ascontiguousarray(own["weight"].T)
        tensors |= {f"{name}_{number}": value for name, value in own.items()}
        for call, images in enumerate(inputs):
            feed[f"images_{number}_{call}"] = images.cpu().contiguous().numpy()
            nodes += _nodes(helper, layer, f"{number}_{call}", [f"{n}_{number}" for n in own])
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(name, 1, value.shape) for name, value in feed.items()],
        [
            helper.make_tensor_value_info(name.replace("images", "out"), 1, [None] * value.ndim)
            for name, value in feed.items()
        ],
        [needed("onnx", "").numpy_helper.from_array(own, name) for name, own in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "profile"))
        providers = ["CPUExecutionProvider"]
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=providers)
        for _ in range(rounds + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return _medians(events, len(layers))


def _nodes(helper: Any, layer: nn.Module, name: str, parameters: list[str]) -> list[Any]:
    """Write down one call of a layer; its nodes, or what they put out, are named out_NAME."""
    read, put = [f"images_{name}", *parameters], f"out_{name}"
    if isinstance(layer, nn.Linear):
        if layer.bias is None:
            return [helper.make_node("MatMul", read, [put], name=put)]
        return [
            helper.make_node("MatMul", read[:2], [f"{put}_product"], name=put),
            helper.make_node("Add", [f"{put}_product", read[2]], [put], name=f"{put}_sum"),
        ]
    assert isinstance(layer, (*ops.CONVOLUTIONS, *ops.TRANSPOSED))
    kind = "ConvTranspose" if isinstance(layer, ops.TRANSPOSED) else "Conv"
    pads: dict[str, Any] = {"pads": [*layer.padding] * 2}
    if isinstance(layer.padding, str):
        pads = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]}
    steps = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups}
    return [helper.make_node(kind, read, [put], name=put, **pads, **steps)]


def _medians(events: Sequence[dict[str, Any]], layers: int) -> list[float]:
    """Return the median of all rounds but the first of each node, added up by layer."""
    took: dict[str, list[float]] = defaultdict(list)
    for event in events:
        node, found, number = event["name"].partition("out_")
        if event.get("cat") == "Node" and not node and event["name"].endswith("_kernel_time"):
            took[f"{found}{number}"].append(event["dur"] / 1e6)
    seconds = [0.0] * layers
    for name, durations in took.items():
        seconds[int(name.split("_")[1])] += statistics.median(durations[1:])
    return seconds
