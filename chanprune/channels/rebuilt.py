"""A network built from its calls: what a plan leaves that empties whole layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from chanprune.channels.graph import ChannelGraph


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
    if graph.trains_alike:
        network = fx.GraphModule(model, graph.calls, type(model).__name__)
    else:
        network = TwoModes(model, graph.calls, graph.in_training)
    for name, module in network.named_modules():
        module.training = model.get_submodule(name).training
    return network


class TwoModes(nn.Module):
    """A network that makes other calls in train mode than in eval mode.

    Args:
        root: Holds the layers and parameters under their names.
        in_eval: Its calls in eval mode.
        in_training: Its calls in train mode.
    """

    def __init__(self, root: nn.Module, in_eval: fx.Graph, in_training: fx.Graph):
        super().__init__()
        self.calls = (in_eval, in_training)
        for calls in self.calls:
            for node in calls.nodes:
                if node.op in ("call_module", "get_attr"):
                    _take(self, root, str(node.target))
        self._forwards = self._compiled()

    def forward(self, images: Any) -> Any:
        """Return what the network returns in the mode that it is in."""
        return self._forwards[self.training](self, images)

    def _compiled(self) -> list[Callable[..., Any]]:
        return [type(fx.GraphModule(self, calls)).forward for calls in self.calls]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_forwards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forwards = self._compiled()


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
        into.register_buffer(last, value)
    else:
        setattr(into, last, value)
