"""Layers and channel groups: what a channel graph says of a network, in numbers of channels.

Every channel of the network has a number. A layer lists the channels that it reads and those that
it writes, one number for each position of the tensor axis; channels that must go together (both
sides of a residual sum, the input and output of a depthwise convolution) share their number. A
channel group is a run of consecutive numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

ChannelNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must go together, over all tensors that hold them.

    Attributes:
        name: The first producer, or the batch norm where the group begins with a gather.
        start: Number of its first channel in the graph.
        size: Number of channels.
        producers: Convolutions and linear layers whose filters are the channels; empty for a
            gather.
        gates: Convolutions and linear layers that scale the channels (squeeze and excitation).
        norms: Batch norms whose scales belong to the channels.
        gathered: The channels are read from a shared stream, which stays whole.
        blocks: A grouped convolution splits the group into this many equal blocks, each of which
            must keep equally many channels.
        fixed: Why the group must stay whole; None if it may be pruned.
        is_stream: It is fixed only because batch norms gather from it, so that it may lose what
            nothing writes any more.
    """

    name: str
    start: int
    size: int
    producers: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    gathered: bool = False
    blocks: int = 1
    fixed: str | None = None
    is_stream: bool = False

    @property
    def whole_because(self) -> str:
        """Why it stays whole where it does."""
        return self.fixed or "it is coupled by a sum (prune.coupled)"

    @property
    def numbers(self) -> slice:
        """The numbers of its channels."""
        return slice(self.start, self.start + self.size)

    @property
    def coupled(self) -> bool:
        """Several producers are summed: their channels go together or not at all."""
        return len(self.producers) > 1


@dataclass(frozen=True, eq=False)
class Axis:
    """One tensor dimension that runs over channels.

    Attributes:
        dim: The dimension.
        channels: (L,) channel number of every position.
        blocks: For the input of a grouped convolution: `channels` lists all inputs, of which the
            tensor's rows see one of `blocks` equal parts each. Otherwise 1.
    """

    dim: int
    channels: ChannelNumbers
    blocks: int = 1


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with parameters of its own for each channel, and the channels it reads and writes.

    Attributes:
        name: Module name.
        kind: What it is. A "scale" has parameters for each channel and leaves the channels apart
            (PReLU, instance norm); a "constant" is what a layer became that has nothing left to
            read.
        inputs: (C_in,) channel numbers; for a linear layer after a flatten they repeat.
        outputs: (C_out,) channel numbers.
        index: (C_out,) positions in `inputs` that a batch norm behind a gather reads, else None.
        blocks: Groups of a grouped convolution; a depthwise convolution has 1 and `depthwise`.
        depthwise: Every group has one input.
        transposed: The first dimension of a convolution's weight runs over its inputs.
        axis: The dimension of the output that runs over channels, 1 or -1.
        positions: Positions of one image at which its weight is used (height x width of the output,
            of the input if it is transposed; 1 for features), summed over the layer's calls.
        output_positions: Positions of its output, likewise.
        parameters: Names of its tensors that run over channels, without the layer's own name.
        rank: Number of dimensions of the output.
        normalised_by: The batch norms that alone read the output of its calls; none where anything
            else reads one.
        made_of: Of a constant: the layers whose output for no input it is.
    """

    name: str
    kind: Literal["conv", "linear", "norm", "scale", "constant"]
    inputs: ChannelNumbers
    outputs: ChannelNumbers
    index: ChannelNumbers | None = None
    blocks: int = 1
    depthwise: bool = False
    transposed: bool = False
    axis: int = 1
    positions: int = 0
    output_positions: int = 0
    parameters: tuple[str, ...] = ()
    rank: int = 4
    normalised_by: frozenset[str] = frozenset()
    made_of: tuple[str, ...] = ()

    @property
    def passes_on(self) -> bool:
        """Its outputs are its inputs, one by one: batch norm in place, depthwise convolution."""
        return self.depthwise or (self.kind in ("norm", "scale") and self.index is None)

    def axes(self) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Yield tensor name -> the axes that run over channels, for each tensor of the layer."""
        is_matrix = self.kind in ("conv", "linear") and not self.depthwise
        for parameter in self.parameters:
            axes: tuple[Axis, ...] = (Axis(0, self.outputs),)
            if parameter == "weight" and self.depthwise and self.transposed:
                axes = (Axis(0, self.inputs),)
            elif parameter == "weight" and is_matrix and self.transposed:
                axes = (Axis(0, self.inputs), Axis(1, self.outputs))
            elif parameter == "weight" and is_matrix:
                axes = (*axes, Axis(1, self.inputs, self.blocks))
            yield f"{self.name}.{parameter}", axes


def constant_layer(
    name: str, outputs: ChannelNumbers, made_of: tuple[str, ...], rank: int
) -> Layer:
    """Describe the constant (1, C, 1, ...), of `rank` dimensions, that some layers became."""
    nothing = np.empty(0, dtype=np.int64)
    return Layer(
        name, "constant", nothing, outputs, parameters=("bias",), rank=rank, made_of=made_of
    )
