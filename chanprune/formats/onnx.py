"""ONNX files, written by PyTorch's exporter and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from chanprune.channels.refusals import first_line
from chanprune.files.writing import replace
from chanprune.formats.exporting import EXAMPLES, example, exporting, needed
from chanprune.processes.errors import UserError

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "logits"
OLDEST_OPSET = 18  # what the exporter writes; it is converted to later ones, not to earlier ones


def write(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str],
    opset: int | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = None,
) -> None:
    """Write a network.

    Args:
        model: In eval mode; takes images (N, C, H, W), and returns one tensor.
        input_shape: (C, H, W).
        path: The file, which is there whole or not at all.
        metadata: Texts that it holds, by name.
        opset: Version of ONNX's operators; None: the one that the exporter prefers.
        dtype: Of the images; None: that of the network's parameters.
        batch: How many images it takes, which is written sooner; None: any number.

    Raises:
        UserError: A package is missing, there is no such opset, or the network cannot be written.
        RunError: The file cannot be written.
    """
    needed("onnxscript", "format=onnx")
    refuse_opset(opset)
    images = example(model, input_shape, dtype, batch or EXAMPLES)
    free = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    with exporting(f"ONNX{'' if opset is None else f' of opset={opset}'}"):
        program = torch.onnx.export(
            model,
            (images,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=free,
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        got = program.model.opset_imports[""]
        shape = program.model.graph.inputs[0].shape
        if batch is None and shape is not None and isinstance(shape[0], int):
            raise UserError("the number of images is fixed by the network's code")
        if opset not in {None, got}:
            raise UserError(f"opset={opset}: the network was converted to opset {got} at most")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose files each operation comes from
    program.model.metadata_props.update(metadata)
    replace(path, lambda part: program.save(str(part), external_data=False))


def refuse_opset(opset: int | None) -> None:
    """Refuse a version of the operators that the exporter does not write; raises UserError."""
    newest = int(needed("onnx", "format=onnx").defs.onnx_opset_version())
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"opset={opset}: must be from {OLDEST_OPSET} to {newest}")


def opened(path: Path, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """Return what runs a file by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: That one operation is shared by; None: as many as ONNX Runtime takes.

    Returns:
        Takes images (N, C, H, W), returns what the network puts out.

    Raises:
        UserError: ONNX Runtime is missing, or does not take the file.
    """
    runtime = needed("onnxruntime", "running an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about what it optimises
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path}: ONNX Runtime does not take it: {first_line(error)}") from error
    (images,) = session.get_inputs()

    def run(batch: Tensor) -> Tensor:
        (outputs,) = session.run(None, {images.name: batch.detach().cpu().numpy()})
        return torch.from_numpy(outputs)

    return run
