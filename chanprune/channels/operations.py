"""What each operation does with channels.

An operation that is not listed is unknown, and a network that uses it on channels is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Each channel by itself, and a channel of zeros stays one of zeros.
CHANNELWISE_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Softsign,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)
# Each channel by itself, but a channel of zeros does not stay one: only a product undoes that.
GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)
# The result has the channels of the operand, all of which it needs.
WHOLE_MODULES = (
    nn.Softmax,
    nn.LogSoftmax,
    nn.PReLU,
    nn.GroupNorm,
    nn.InstanceNorm2d,
    nn.LocalResponseNorm,
)

_CHANNELWISE: list[Any] = [
    torch.relu,
    torch.tanh,
    torch.abs,
    torch.neg,
    torch.clone,
    operator.neg,
    F.relu,
    F.relu_,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.tanh,
    F.dropout,
    F.dropout2d,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.interpolate,
    torch.max_pool2d,
]
CHANNELWISE_FUNCTIONS = frozenset(_CHANNELWISE)
CHANNELWISE_METHODS = frozenset(
    {
        "relu",
        "relu_",
        "tanh",
        "abs",
        "neg",
        "clone",
        "contiguous",
        "detach",
        "float",
        "double",
        "to",
    }
)

_RELUS: list[Any] = [torch.relu, torch.relu_, F.relu, "relu", "relu_"]
RELUS = frozenset(_RELUS)
_GATES: list[Any] = [torch.sigmoid, F.sigmoid, F.softplus, F.hardsigmoid]
GATES = frozenset([*_GATES, "sigmoid", "sigmoid_"])
_WHOLE: list[Any] = [torch.softmax, F.softmax, F.log_softmax]
WHOLE_FUNCTIONS = frozenset(_WHOLE)
WHOLE_METHODS = frozenset({"softmax", "log_softmax"})

SUMS = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub})
PRODUCTS = frozenset({operator.mul, operator.imul, operator.truediv, torch.mul, torch.div})
SUM_METHODS = frozenset({"add", "add_", "sub", "sub_"})
PRODUCT_METHODS = frozenset({"mul", "mul_", "div", "div_"})

CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})
PADS: frozenset[Any] = frozenset({F.pad})
SELECTIONS: frozenset[Any] = frozenset({torch.index_select})
SLICES = frozenset({operator.getitem})
FLATTENS = frozenset({torch.flatten})
RESHAPES = frozenset({torch.reshape})
MEANS = frozenset({torch.mean})

# Of constant maps, these make constant maps of the same or the summed constants.
LINEAR_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.ChannelShuffle,
)
LINEAR_CALLS = (
    SUMS
    | SUM_METHODS
    | CONCATENATIONS
    | FLATTENS
    | MEANS
    | SLICES
    | PADS
    | SELECTIONS
    | {F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool2d, F.dropout}
    | {"flatten", "mean", "contiguous", "index_select"}
)
