"""ONNX files with whole numbers of eight bits, by ONNX Runtime's static quantisation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from chanprune.formats.exporting import exporting, needed
from chanprune.formats.onnx import INPUT


def quantise(path: Path, images: Tensor) -> None:
    """Replace an ONNX file by its quantised form.

    Weights are signed, with a scale for each channel; values in between are unsigned, with ranges
    that the images show.

    Args:
        path: The file, of a network whose batch norms are folded.
        images: (N, C, H, W), as it takes them.

    Raises:
        UserError: ONNX Runtime is missing, or cannot quantise the network.
    """
    needed("onnxruntime", "precision=int8")
    from onnxruntime import quantization

    class Shown(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images.split(1))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {INPUT: image.numpy()}

    with exporting("int8"), tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx")
        plain.write_bytes(path.read_bytes())
        quantization.quantize_static(
            str(plain),
            str(path),
            Shown(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
