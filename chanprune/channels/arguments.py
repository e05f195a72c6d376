"""Arguments of calls in the order of their operation's signature, so that a place names one."""

from __future__ import annotations

from torch import fx

from chanprune.channels.operations import name_of

# The operand, which may be given by name as well, and what follows it; "|" separates other names.
_OPERAND = "input|self|tensor"
_FOLLOWING = {
    "size": "dim",
    "sym_size": "dim",
    "narrow": "dim start length",
    "select": "dim index",
    "index_select": "dim index",
    "unflatten": "dim sizes",
    "view": "size|dtype",
    "reshape": "shape",
    "expand": "size",
    "broadcast_to": "size",
    "chunk": "chunks dim",
    "split": "split_size_or_sections|split_size dim",
    "split_with_sizes": "split_sizes dim",
    "tensor_split": "indices_or_sections|sections|indices dim",
    "layer_norm": "normalized_shape",
    "rms_norm": "normalized_shape",
    "channel_shuffle": "groups",
    "pixel_shuffle": "upscale_factor",
    "pad": "pad",
    "permute": "dims",
    "roll": "shifts dims",
    "topk": "k dim",
    "norm": "p dim",
    "im2col": "kernel_size",
}


def put_in_order(calls: fx.Graph) -> None:
    """Let calls give by place what they give by name, as far as the places before are given."""
    for node in calls.nodes:
        if node.kwargs and node.op in ("call_function", "call_method"):
            _put_in_order(node)


def _put_in_order(node: fx.Node) -> None:
    args, kwargs = list(node.args), dict(node.kwargs)
    for names in (_OPERAND, *_FOLLOWING.get(name_of(node), "").split())[len(args) :]:
        name = next((each for each in names.split("|") if each in kwargs), None)
        if name is None:
            break
        args.append(kwargs.pop(name))
    node.args, node.kwargs = tuple(args), kwargs
