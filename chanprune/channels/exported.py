"""The calls of a network that symbolic tracing cannot follow, recorded by torch.export.

What it records are ATen operations on parameters. Those of convolutions, linear layers and batch
norms are turned back into calls of their layers, so that they are followed as traced ones are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from chanprune.channels.baked import KINDS, bake, computes_its_weights
from chanprune.channels.calls import (
    Constants,
    codegen_of,
    name_of_constant,
    note_shapes,
    type_name,
    undisturbed,
)
from chanprune.channels.contexts import (
    AUTOCAST,
    NO_GRADIENT,
    lost_context,
    noting_inference_mode,
    seen,
)
from chanprune.channels.example import Example
from chanprune.channels.modes import copied, keeping_random_numbers, random_states
from chanprune.channels.operations import name_of, words
from chanprune.channels.plain import has_code_of_its_own
from chanprune.channels.rebuilt import with_constants
from chanprune.channels.refusals import UnsupportedNetwork, first_line

_LAYERS = words(
    """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear
    batch_norm
    """
)
_CASTS = frozenset({"to", "to_copy"})
_NOTED = ("nn_module_stack", "context")


class LostContext(UnsupportedNetwork):
    """What is exported would be called outside a context that the forward opens."""


class Exported:
    """The calls of one mode.

    Attributes:
        calls: The graph.
        plain: Names of the layers that are called as plain ones (see `baked`).
    """

    def __init__(self, model: nn.Module, example: Example, constants: Constants, training: bool):
        """Record the calls.

        Args:
            model: The network; it is not changed.
            example: What it is called with.
            constants: Takes the tensors that the network makes itself, by the names that the graph
                has for them.
            training: In train mode rather than in eval mode.

        Raises:
            UnsupportedNetwork: It cannot be exported.
        """
        is_meta = any(p.device.type == "meta" for p in model.parameters())
        network = copied(model).to_empty(device="cpu") if is_meta else model
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.constants = constants
        self.plain: set[str] = set()
        self.device: fx.Node | None = None
        with undisturbed(network, runs=True):
            program = _export(network.train(training), example)
            self._take_constants(program)
            self.calls = self._converted(_inlined(program), example)
            plain = bake(network.eval(), self.plain)
            with with_constants(plain, self.constants):
                note_shapes(self.calls, plain, example)
        if lost := lost_context(self.calls):
            raise LostContext(f"{type_name(type(model))} has to be exported, but {lost}")

    def _take_constants(self, program: fx.GraphModule) -> None:
        """Note the tensors that the calls read and the network does not have."""
        known = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for node in program.graph.nodes:
            if node.op == "get_attr" and str(node.target) not in known:
                self._take_constant(program, node)

    def _take_constant(self, program: nn.Module, node: fx.Node) -> None:
        value: Any = program
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor):
            node.target = name_of_constant(value, self.constants)

    def _converted(self, graph: fx.Graph, example: Example) -> fx.Graph:
        """Return the graph with calls of layers, and its output in the network's structure."""
        calls, is_flat = fx.Graph(), example.is_flat
        info = graph._codegen.pytree_info  # type: ignore[attr-defined]
        if not is_flat:
            calls.set_codegen(codegen_of(example, info.orig_args))
        new: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "output":
                leaves = fx.node.map_arg(node.args[0], new.__getitem__)
                calls.output(pytree.tree_unflatten(leaves, info.out_spec))
            elif node.op == "call_function" and name_of(node) == "lift_fresh_copy":
                new[node] = new[node.args[0]]
            elif not self._is_bookkeeping(node):
                new[node] = self._copied(calls, node, new)
        for node in reversed(calls.nodes):
            unused = node.op == "get_attr" or (
                node.op == "placeholder" and is_flat and not isinstance(node.meta["val"], Tensor)
            )
            node.meta.pop("val", None)
            if unused and not node.users:
                calls.erase_node(node)
        return calls

    def _copied(self, calls: fx.Graph, node: fx.Node, new: dict[fx.Node, fx.Node]) -> fx.Node:
        layer = self._layer_of(node)
        if layer is not None:
            copy = calls.call_module(layer, (new[node.all_input_nodes[0]],))
        elif node.op == "call_function" and name_of(node) in _CASTS:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), new.__getitem__)
            given = (*args[1:], kwargs.get("dtype"))
            wanted = [a for a in given if isinstance(a, (torch.dtype, fx.Node))]
            copy = calls.call_method("to", (args[0], *wanted[:1]))
        else:
            copy = calls.node_copy(node, new.__getitem__)
            copy.meta = {k: v for k, v in node.meta.items() if k in (*_NOTED, "val")}
            if "device" in copy.kwargs:
                copy.kwargs = {**copy.kwargs, "device": self._device(calls)}
            return copy
        copy.meta = {k: v for k, v in node.meta.items() if k in _NOTED}
        return copy

    def _device(self, calls: fx.Graph) -> fx.Node:
        """Return the device of the first input, where the tensors are that the calls make."""
        if self.device is None:
            first = next(iter(calls.nodes))
            with calls.inserting_after(first):
                self.device = calls.call_function(getattr, (first, "device"))
        return self.device

    def _is_bookkeeping(self, node: fx.Node) -> bool:
        """Tell whether a call checks the inputs, or counts the batches of a batch norm."""
        first = node.args[0] if node.args else None
        counts = isinstance(first, fx.Node) and str(first.target).endswith("num_batches_tracked")
        guards = node.op == "call_module" and "guard" in str(node.target)
        asserts = node.op == "call_function" and name_of(node) == "assert_tensor_metadata"
        return guards or asserts or (counts and not node.users)

    def _layer_of(self, node: fx.Node) -> str | None:
        """Name the layer whose work an operation does; None: it is none of a layer's."""
        if node.op != "call_function" or name_of(node) not in _LAYERS:
            return None
        weight, bias = _given(node)
        owner, _, last = str(weight.target).rpartition(".") if weight is not None else ("", "", "")
        module = self.modules.get(owner)
        if last != "weight" or not isinstance(module, KINDS):
            return None
        if bias is not None and bias.target != f"{owner}.bias":
            return None
        if (module.bias is None) != (bias is None) or computes_its_weights(module):
            return None
        if has_code_of_its_own(module) or getattr(module, "padding_mode", "zeros") != "zeros":
            self.plain.add(owner)
        return owner


def _inlined(program: fx.GraphModule) -> fx.Graph:
    """Return the calls, with those of regions without gradients or in one precision among them."""
    graph = fx.Graph()
    graph.set_codegen(program.graph._codegen)
    graph.output(_copy_calls(program, graph, {}))
    return graph


def _copy_calls(
    program: fx.GraphModule,
    into: fx.Graph,
    new: dict[fx.Node, Any],
    context: str | None = None,
) -> Any:
    """Copy calls to the end of a graph; return what stands in place of the output's arguments.

    Args:
        program: The calls.
        into: The graph.
        new: Call -> its copy; the inputs of a region are in it already.
        context: What they are called within.
    """
    for node in program.graph.nodes:
        regions = [a for a in node.args if isinstance(a, fx.Node) and _region(program, a)]
        if node in new or _region(program, node):
            continue
        if regions:
            region: Any = _region(program, regions[0])
            given = node.args[node.args.index(regions[0]) + 1 :]
            inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
            inner = dict(zip(inputs, (new[a] for a in given), strict=True))
            new[node] = _copy_calls(region, into, inner, _context_of(node) or context)
        elif name_of(node) == "getitem" and isinstance(new[node.args[0]], (tuple, list)):
            new[node] = new[node.args[0]][node.args[1]]
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], new.__getitem__)
        else:
            new[node] = into.node_copy(node, new.__getitem__)
            if context is not None:
                new[node].meta["context"] = context
    return None


def _context_of(node: fx.Node) -> str | None:
    """Name the context that a region is run in; None where it changes nothing."""
    if "autocast" in name_of(node):
        return AUTOCAST
    return None if node.args[0] is True else NO_GRADIENT


def _region(program: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    found = getattr(program, str(node.target), None) if node.op == "get_attr" else None
    return found if isinstance(found, fx.GraphModule) else None


def _given(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the parameters that are the weight and the bias of an operation."""
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    nodes = [given.get(key) for key in ("weight", "bias")]
    if any(n is not None and (not isinstance(n, fx.Node) or n.op != "get_attr") for n in nodes):
        return None, None
    return nodes[0], nodes[1]  # type: ignore[return-value]


def _export(network: nn.Module, example: Example) -> fx.GraphModule:
    parameter = next(network.parameters(), torch.empty(0))
    args, kwargs = example.filled(torch.empty, parameter.dtype, parameter.device)
    batch = torch.export.Dim("batch", min=1)

    def sizes(leaf: Any) -> Any:
        return {0: batch} if isinstance(leaf, Tensor) and example.has_batch(leaf) else None

    shapes = pytree.tree_map(sizes, (args, kwargs))
    given = None if example.batch is None else (*shapes[0], *shapes[1].values())
    try:
        with (
            warnings.catch_warnings(),
            _silent(),
            keeping_random_numbers(),
            seen(),
            noting_inference_mode() as opened,
        ):
            warnings.simplefilter("ignore")
            drawn = random_states()[:2]
            program = torch.export.export(network, args, kwargs, dynamic_shapes=given, strict=False)
            module = program.module()
            if random_states()[:2] != drawn:
                raise ValueError("its forward draws random numbers")
            if opened:
                raise LostContext("its forward opens torch.inference_mode; use torch.no_grad")
    except LostContext:
        raise
    except Exception as error:
        raise UnsupportedNetwork(
            f"{type_name(type(network))} cannot be traced, and cannot be exported either: "
            f"{first_line(error)}; let it decide by what is known when the network is built"
        ) from error
    assert isinstance(module, fx.GraphModule)
    return module


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
