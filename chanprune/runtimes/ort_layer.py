"""One layer in ONNX Runtime, written down directly: exporting thousands would take an hour."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from chanprune.channels import operations as ops
from chanprune.formats.onnx import opened


def single(layer: nn.Module, images: Tensor, threads: int) -> Callable[[], object]:
    """Return what runs a convolution or a linear layer once by ONNX Runtime.

    Args:
        layer: The layer.
        images: Its input.
        threads: How many are used.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    tensors = {name: value.detach().cpu().numpy() for name, value in layer.named_parameters()}
    if isinstance(layer, nn.Linear):
        tensors["weight"] = np.ascontiguousarray(tensors["weight"].T)
        add = ("Add", ["product", "bias"]) if "bias" in tensors else ("Identity", ["product"])
        nodes = [
            helper.make_node("MatMul", ["images", "weight"], ["product"]),
            helper.make_node(*add, ["out"]),
        ]
    else:
        assert isinstance(layer, (*ops.CONVOLUTIONS, *ops.TRANSPOSED))
        kind = "ConvTranspose" if isinstance(layer, ops.TRANSPOSED) else "Conv"
        pads: dict[str, Any] = {"pads": [*layer.padding] * 2}
        if isinstance(layer.padding, str):
            pads = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]}
        options: dict[str, Any] = {
            "strides": layer.stride,
            "dilations": layer.dilation,
            "group": layer.groups,
        }
        nodes = [helper.make_node(kind, ["images", *tensors], ["out"], **pads, **options)]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * images.dim())],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        path.write_bytes(model.SerializeToString())
        run = opened(path, threads)
    return lambda: run(images)
