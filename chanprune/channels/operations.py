"""What each operation does with channels, by the kinds of layers and the names of operations.

An operation that is not listed leaves the channels that it reads whole. Operations that only move
elements are in `rules/positions.py`: what they do is found by running them.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# Each element by itself.
ELEMENTWISE_MODULES = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Hardshrink),
    *(nn.Softshrink, nn.Hardtanh, nn.Threshold, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid),
    *(nn.Softplus, nn.Dropout, nn.AlphaDropout),
)
# Along the last dimensions, as many as the name says.
SPATIAL_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d),
    *(nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad2d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout),
)
PLAIN_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)

_NAMES = """
    relu relu6 leaky_relu rrelu elu celu selu gelu silu swish mish hardswish hardtanh
    threshold tanh sigmoid hardsigmoid logsigmoid log_sigmoid softplus softsign tanhshrink
    hardshrink softshrink dropout alpha_dropout feature_dropout dropout1d dropout2d dropout3d
    feature_alpha_dropout stochastic_depth native_dropout
    abs neg negative square sqrt rsqrt sign exp exp2 expm1 log log1p log2 log10 sin cos tan atan
    sinh cosh asin acos erf reciprocal round floor ceil trunc frac nan_to_num logical_not isnan
    isinf isfinite clamp clamp_min clamp_max clip pow float_power
    clone contiguous detach float double half bfloat16 int long bool alias lift
    lift_fresh_copy requires_grad data zeros_like ones_like full_like empty_like rand_like
    randn_like bernoulli cpu cuda
    add sub subtract rsub mul multiply div divide true_divide truediv floordiv floor_divide
    remainder fmod maximum minimum fmax fmin where masked_fill addcmul addcdiv lerp gt ge lt le ne
    eq greater less logical_and logical_or logical_xor and_ or_ xor invert copysign hypot atan2
    logaddexp copy
"""
ELEMENTWISE = words(_NAMES)
# Of zeros they make something else, so that a product with them scales channels.
GATES = frozenset({"sigmoid", "hardsigmoid", "logsigmoid", "log_sigmoid", "softplus", "exp"})
# To the type of something, or to its device.
CASTS = frozenset({"to", "type", "type_as", "to_copy"})
CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
SUMS = frozenset({"add", "sub", "subtract", "rsub"})
PRODUCTS = frozenset({"mul", "multiply"})
DIVISIONS = frozenset({"div", "divide", "true_divide", "truediv"})
# What makes zeros of zeros, whatever numbers are given besides.
KEEPS_ZERO = words(
    """
    relu relu6 leaky_relu elu celu selu gelu silu mish hardswish tanh softsign dropout
    dropout1d dropout2d dropout3d stochastic_depth abs neg square sqrt sign expm1 log1p
    clone contiguous detach float double half to type_as alias mean sum amax amin std var
    prod max min median sort cumsum topk max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d lp_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool2d interpolate
    """
)

# Along the last dimensions, as many as the name says; `interpolate` along all behind the second.
SPATIAL = words(
    """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool2d_with_indices interpolate
    upsample upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    upsample_nearest_exact2d upsample_linear1d grid_sample
    """
)

# Along dimensions, by the place of these among the arguments.
ALONG: dict[str, int] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "prod"), 1),
    **dict.fromkeys(("max", "min", "median", "sort", "argsort", "cumsum", "cumprod"), 1),
    **dict.fromkeys(("std_mean", "var_mean", "softmax", "log_softmax", "logsumexp"), 1),
    **dict.fromkeys(("argmax", "argmin", "any", "all", "softmin", "nanmean"), 1),
    **dict.fromkeys(("topk", "kthvalue"), 2),
    **dict.fromkeys(("norm", "vector_norm", "normalize"), 2),
}
# Their results have the dimensions of the operand; the others lose theirs, unless asked to keep.
KEEPS_DIMENSIONS = words(
    """
    sort argsort cumsum cumprod softmax log_softmax softmin topk normalize
    """
)
# What multiplies matrices without being a layer's.
MULTIPLY = words(
    """
    matmul bmm mm mv addmm baddbmm einsum linear bilinear conv1d conv2d conv3d convolution
    conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention
    """
)
# What tells the size, the type or the place of a tensor and looks at no value.
SIZES = frozenset({"size", "shape", "sym_size", "numel", "stride", "sym_numel", "sym_stride"})
FACTS = words(
    """
    dim ndim dtype device is_cuda requires_grad layout is_floating_point is_contiguous
    """
)
# What makes a tensor whose values its operand does not decide.
FRESH = frozenset({"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"})

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
LINEAR_CALLS = words(
    """
    add sub mean getitem pad index_select avg_pool2d adaptive_avg_pool2d max_pool2d
    dropout cat concat concatenate flatten contiguous chunk split
    """
)
RESHAPING = words(
    """
    view reshape expand expand_as view_as reshape_as unsqueeze getitem flatten squeeze
    """
)

# Of operations that are not the user's own; those of PyTorch's core have no module.
_TRUSTED = ("torch", "_operator", "builtins", "math", "torchvision.ops")
_OWN_NAMES = {F.unfold: "im2col"}  # the method `unfold` does something else
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}


def name_of(node: fx.Node) -> str:
    """Return the name of what a node calls, the same for functions, methods, ATen operations.

    It is empty for layers, inputs and outputs.

    The underscores of private and in-place forms are left out. Of an attribute that is read it is
    the attribute's name. A function of the user's own, or of
    another library, has its module in front.
    """
    target: Any = node.target
    if node.op not in ("call_function", "call_method"):
        return ""
    if isinstance(target, str):
        return target.strip("_")
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        name = target._schema.name if isinstance(target, OpOverload) else str(target)
        return name.replace(".", "::").rpartition("::")[2].strip("_")
    if target is getattr:
        return str(node.args[1])
    name = _OWN_NAMES.get(target) or str(getattr(target, "__name__", target))
    module = getattr(target, "__module__", None) or "torch"
    if not module.startswith(_TRUSTED):
        return f"{module}.{name}"
    return _IN_PLACE.get(name, name).strip("_")


def is_in_place(node: fx.Node) -> bool:
    """Tell whether a function or method writes its result over its operand."""
    target: Any = node.target
    if isinstance(target, OpOverload):
        return target._schema.is_mutable
    name = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
    return name in ("__setitem__", "setitem", *_IN_PLACE) or (
        name.endswith("_") and not name.endswith("__")
    )
