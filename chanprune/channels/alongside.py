"""Two networks side by side: one is run as far as the other has come, and a little ahead."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from chanprune.channels import operations as ops
from chanprune.channels.layers import Mask
from chanprune.channels.operations import name_of


class Ahead(fx.Interpreter):
    """A network that is run call by call, as far as it is asked for.

    Args:
        model: The network.
        calls: Its calls, in eval mode.
        images: Its input.
    """

    def __init__(self, model: nn.Module, calls: fx.Graph, images: Tensor):
        super().__init__(model, graph=calls)
        self.args_iter: Iterator[Any] = iter(calls.process_inputs(images))
        self.to_do = iter(calls.nodes)

    def run_until(self, node: fx.Node) -> Any:
        """Run everything up to a call and return its result, before others write over it."""
        for current in self.to_do:
            self.env[current] = result = self.run_node(current)
            for unused in self.user_to_last_uses.get(current, []):
                del self.env[unused]
            if current is node:
                return result
        raise AssertionError(f"{node} was run before")


def early(run: fx.Interpreter, node: fx.Node, layers: Container[str]) -> Any:
    """Return what a call returns that may come later; None if it cannot be made yet.

    Args:
        run: The network, somewhere on its way.
        node: The call.
        layers: Which are not called before it is their turn.
    """
    if node in run.env:
        return run.env[node]
    if not node.op.startswith("call") or str(node.target) in layers or ops.is_in_place(node):
        return None
    module = run.fetch_attr(str(node.target)) if node.op == "call_module" else None
    if getattr(module, "inplace", False):
        return None
    if any(early(run, source, layers) is None for source in node.all_input_nodes):
        return None
    run.env[node] = fx.Interpreter.run_node(run, node)
    return run.env[node]


def summand(node: fx.Node, has_norm: bool) -> fx.Node | None:
    """Return what else is added to what a layer puts out, behind its batch norm if it has one."""
    if has_norm:
        (node,) = node.users
    users = list(node.users)
    if len(users) != 1 or name_of(users[0]) != "add" or users[0].kwargs:
        return None
    operands = users[0].all_input_nodes
    return next(n for n in operands if n is not node) if len(operands) == 2 else None


def calls_of(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Return module name -> its calls, in their order."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def picked(tensor: Tensor, axis: int, keep: Mask) -> Tensor:
    """Return a copy of the channels that stay."""
    return tensor.index_select(axis, torch.from_numpy(keep.nonzero()[0]).to(tensor.device))
