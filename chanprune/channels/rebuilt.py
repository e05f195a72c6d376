"""A network built from its calls: what a plan leaves that empties whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels.graph import ChannelGraph
from chanprune.channels.takes import Takes

_CHECK = "takes_shapes"


def rebuilt(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    """Build a network that makes the calls of a graph, and has nothing that they do not use.

    Args:
        model: Holds the layers; the result shares them, and every one keeps its mode.
        graph: The graph of the network that is built.

    Raises:
        ValueError: The calls in train mode are not known.
    """
    if isinstance(graph.in_training, str):
        raise ValueError(f"the calls in train mode are not known: {graph.in_training}")
    network: nn.Module
    with with_constants(model, graph.constants), _with_check(model, graph) as calls:
        if graph.trains_alike and not _hides_a_layer(model):
            network = fx.GraphModule(model, calls[0], type(model).__name__)
        else:
            network = TwoModes(model, *calls)
        _put_in_order(network, model)
        for name, module in network.named_modules():
            module.training = model.get_submodule(name).training
    return network


@contextmanager
def _with_check(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[fx.Graph, fx.Graph]]:
    """Let a network that was exported have a check of what it is called with, for a while.

    Yields:
        The calls in both modes, with that of the check.
    """
    in_eval, in_training = graph.calls, graph.in_training
    assert isinstance(in_training, fx.Graph)
    if not graph.is_exported:
        yield in_eval, in_training
        return
    before = model._modules.get(_CHECK)
    model.add_module(_CHECK, Takes(_shapes_taken(in_eval, graph.example.batch)))
    checked = _with_first(in_eval, _CHECK)
    yield checked, checked if graph.trains_alike else _with_first(in_training, _CHECK)
    del model._modules[_CHECK]
    if before is not None:
        model._modules[_CHECK] = before


def _shapes_taken(calls: fx.Graph, batch: int | None) -> list[tuple[int | None, ...]]:
    """Return the shape of each tensor that the calls take, with None for the batch."""
    shapes = [tuple(node.meta["shape"]) for node in _tensors_taken(calls)]
    return [(None, *shape[1:]) if shape and shape[0] == batch else shape for shape in shapes]


def _tensors_taken(calls: fx.Graph) -> list[fx.Node]:
    return [node for node in calls.nodes if node.op == "placeholder" and "shape" in node.meta]


def _with_first(calls: fx.Graph, name: str) -> fx.Graph:
    """Copy calls, with one of a module in front that is given all tensors."""
    copy = fx.Graph()
    copy.set_codegen(calls._codegen)
    copies: dict[fx.Node, fx.Node] = {}
    taken = _tensors_taken(calls)
    for node in calls.nodes:
        copies[node] = copy.node_copy(node, copies.__getitem__)
        if node is taken[-1]:
            copy.call_module(name, tuple(copies[each] for each in taken))
    return copy


@contextmanager
def with_constants(model: nn.Module, constants: dict[str, Tensor]) -> Iterator[None]:
    """Let a network have tensors that its graph reads, for a while, on its device, in its type."""
    parameter = next(model.parameters(), torch.empty(0))
    for name, tensor in constants.items():
        dtype = parameter.dtype if tensor.is_floating_point() else tensor.dtype
        model.register_buffer(name, tensor.to(parameter.device, dtype))
    try:
        yield
    finally:
        for name in constants:
            delattr(model, name)


def _put_in_order(network: nn.Module, model: nn.Module) -> None:
    """Let a network have its layers in the order in which another one defines them."""
    for name, child in model._modules.items():
        own = network._modules.pop(name, None)
        if own is not None and child is not None:
            network._modules[name] = own
            if own is not child:
                _put_in_order(own, child)


def _hides_a_layer(model: nn.Module) -> bool:
    """Tell whether a layer or tensor has the name of what a graph module has of its own."""
    own = (
        model.named_children(),
        model.named_parameters(recurse=False),
        model.named_buffers(recurse=False),
    )
    return any(hasattr(fx.GraphModule, name) for named in own for name, _ in named)


class TwoModes(nn.Module):
    """A network that makes other calls in train mode than in eval mode.

    Args:
        root: Holds the layers and parameters under their names.
        in_eval: Its calls in eval mode.
        in_training: Its calls in train mode.
    """

    def __init__(self, root: nn.Module, in_eval: fx.Graph, in_training: fx.Graph):
        super().__init__()
        self.__calls = (in_eval, in_training)
        for calls in self.__calls:
            for node in calls.nodes:
                if node.op in ("call_module", "get_attr"):
                    _take(self, root, str(node.target))
        codegen: Any = in_eval._codegen
        if hasattr(codegen, "pytree_info"):
            self._in_spec = codegen.pytree_info.in_spec
        self._forwards = self._compiled()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns in the mode that it is in."""
        return self._forwards[self.training](self, *args, **kwargs)

    def _compiled(self) -> list[Callable[..., Any]]:
        return [_forward_of(calls) for calls in self.__calls]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_forwards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forwards = self._compiled()


def _forward_of(calls: fx.Graph) -> Callable[..., Any]:
    """Compile the calls, as a graph module does."""
    code = calls.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    forward: Callable[..., Any] = names["forward"]
    return forward


def _take(into: nn.Module, root: nn.Module, target: str) -> None:
    """Let a module have what another one has under the same name."""
    *owners, last = target.split(".")
    for name in owners:
        root = root.get_submodule(name)
        if name not in dict(into.named_children()):
            into.add_module(name, nn.Module())
        into = into.get_submodule(name)
    value = getattr(root, last)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        into.register_buffer(last, value, persistent=last not in root._non_persistent_buffers_set)
    else:
        setattr(into, last, value)
