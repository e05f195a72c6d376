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
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

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
# Each channel by itself; what becomes of zeros is decided by the numbers that it is given.
ELEMENTWISE_MODULES = (nn.Hardtanh, nn.Threshold, nn.ConstantPad2d)
# Each channel by itself, but a channel of zeros does not stay one: only a product undoes that.
GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)
# The result has the channels of the operand, all of which it needs.
WHOLE_MODULES = (
    nn.Softmax,
    nn.LogSoftmax,
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
    F.max_pool2d_with_indices,
    F.feature_alpha_dropout,
    torch.max_pool2d,
    torch.zeros_like,
    torch.square,
    torch.sqrt,
    torch.sign,
    torch.log1p,
    torch.expm1,
]
CHANNELWISE_FUNCTIONS = frozenset(_CHANNELWISE)
# Of libraries that are not imported here, by module and name.
CHANNELWISE_NAMES = frozenset({"torchvision.ops.stochastic_depth.stochastic_depth"})
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
        "half",
        "to",
        "type_as",
        "square",
        "sqrt",
        "sign",
        "log1p",
        "expm1",
    }
)
_ELEMENTWISE: list[Any] = [
    torch.clamp,
    torch.clamp_min,
    torch.clamp_max,
    torch.clip,
    torch.pow,
    torch.exp,
    torch.log,
    torch.rsqrt,
    torch.cos,
    torch.ones_like,
    torch.rsub,
    operator.pow,
    operator.gt,
    operator.ge,
    operator.lt,
    operator.le,
    operator.ne,
    operator.eq,
    F.hardtanh,
    F.threshold,
]
ELEMENTWISE = frozenset(
    {
        *_ELEMENTWISE,
        *("clamp", "clamp_", "clamp_min", "clamp_max", "clip", "pow", "exp", "log", "rsqrt"),
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
SUM_METHODS = frozenset({"add", "add_", "sub", "sub_"})
DIVISIONS = frozenset({operator.truediv, operator.itruediv, torch.div, "div", "div_"})
PRODUCTS = frozenset({operator.mul, operator.imul, torch.mul}) | DIVISIONS
PRODUCT_METHODS = frozenset({"mul", "mul_"})
# Of zeros on both sides they make zeros, and of zeros on one side something else.
_PAIRS: list[Any] = [
    *(torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.where, torch.addcmul),
    *("maximum", "minimum", "where", "masked_fill", "masked_fill_", "addcmul"),
]
PAIRS = frozenset(_PAIRS)

CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})
PADS: frozenset[Any] = frozenset({F.pad})
SELECTIONS: frozenset[Any] = frozenset({torch.index_select})
SLICES = frozenset({operator.getitem})
ATTRIBUTES = frozenset({getattr})
SQUEEZES = frozenset({torch.squeeze, "squeeze"})
UNSQUEEZES = frozenset({torch.unsqueeze, "unsqueeze"})
PERMUTATIONS = frozenset({torch.permute, torch.transpose, "permute", "transpose"})
EXPANSIONS = frozenset({"expand", "expand_as"})
FLATTENS = frozenset({torch.flatten})
RESHAPES = frozenset({torch.reshape})
LIKE = frozenset({"expand_as", "view_as", "reshape_as"})
RESHAPING = RESHAPES | EXPANSIONS | LIKE | UNSQUEEZES | SLICES | {"reshape", "view"}
MEANS = frozenset({torch.mean})
# What makes a tensor whose values its operand does not decide.
FRESH = frozenset({"new_empty", "new_zeros", "new_ones", "new_full"})

# Operations along dimensions, by the place of the dimensions among the arguments. Along positions
# they leave each channel by itself; those with False make something of a channel of zeros.
_ALONG: dict[str, tuple[int, bool]] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "prod"), (1, True)),
    **dict.fromkeys(("max", "min", "median", "sort", "cumsum"), (1, True)),
    **dict.fromkeys(("std_mean", "var_mean", "flip"), (1, True)),
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp"), (1, False)),
    **dict.fromkeys(("topk", "kthvalue", "roll"), (2, True)),
}
ALONG: dict[Any, tuple[int, bool]] = {
    **_ALONG,
    **{getattr(torch, name): facts for name, facts in _ALONG.items()},
    F.softmax: (1, False),
    F.log_softmax: (1, False),
}
STATISTICS = frozenset({torch.std_mean, torch.var_mean})

# What tells the size, the type or the place of a tensor and looks at no value.
SIZES = frozenset({"size", "shape"})
FACTS = frozenset({"dim", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"})

INSTEAD: dict[Any, str] = {
    nn.ConvTranspose2d: "nn.Upsample and a convolution are followed",
    **dict.fromkeys(
        ("chunk", "split", "unbind", torch.chunk, torch.split, torch.unbind),
        "two layers, each with its own output, are followed",
    ),
    nn.LayerNorm: "a batch norm is followed",
    F.conv2d: "nn.Conv2d is followed",
    F.linear: "nn.Linear is followed",
    F.batch_norm: "nn.BatchNorm2d is followed",
}

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
