"""The calls that a network makes for a batch of images, recorded without values (torch.fx)."""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from chanprune.channels import operations as ops
from chanprune.channels.arguments import put_in_order
from chanprune.channels.contexts import opened, seen
from chanprune.channels.emptied import Constant
from chanprune.channels.example import Example
from chanprune.channels.modes import keeping_random_numbers, random_states
from chanprune.channels.operations import name_of
from chanprune.channels.outputs import leaves, tensor_shapes
from chanprune.channels.refusals import UnsupportedNetwork, first_line
from chanprune.channels.takes import Takes

Constants = dict[str, Tensor]
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LIBRARY = str(Path(torch.__file__).parent)


def record_calls(model: nn.Module, example: Example, constants: Constants) -> fx.Graph:
    """Record what a network calls in eval mode, with the shape of every tensor in `meta["shape"]`.

    `meta["holds"]` lists the shapes of the tensors in a value that is none, and `meta["value"]` is
    what a call returns that makes no tensor. Every argument that the example does not give keeps
    its default.

    Args:
        model: The network; it is not changed, and its hooks are not called.
        example: What it is called with.
        constants: Takes the tensors that the network makes of numbers, by the names that the calls
            have for them.

    Raises:
        UnsupportedNetwork: What it calls depends on values or on random numbers, or it does not
            take such images.
    """
    with undisturbed(model):
        calls = _with_constants(model.eval(), example, constants)
        note_shapes(calls, model, example)
    return calls


def record_training(
    model: nn.Module, example: Example, constants: Constants, calls: fx.Graph
) -> fx.Graph:
    """Do the same in train mode; return the graph of eval mode where that is the same.

    Args:
        model: As for `record_calls`.
        example: As for `record_calls`.
        constants: As for `record_calls`.
        calls: What `record_calls` returned.

    Raises:
        UnsupportedNetwork: As in `record_calls`.
    """
    with undisturbed(model):
        in_training = _with_constants(model.train(), example, constants)
        put_in_order(in_training)
        if str(in_training) == str(calls):
            return calls
        note_shapes(in_training, model.eval(), example)
    return in_training


def record_as_is(model: nn.Module, example: Example) -> fx.Graph:
    """Record what a network calls in the mode that it is in, without shapes.

    Raises:
        UnsupportedNetwork: As in `record_calls`.
    """
    with undisturbed(model):
        return _trace(model, example)


def name_of_constant(tensor: Tensor, constants: Constants) -> str:
    """Return the name of a tensor among constants, to which it is added if it is a new one."""
    for name, known in constants.items():
        if known.dtype == tensor.dtype and torch.equal(known, tensor):
            return name
    name = f"constant_{len(constants)}"
    constants[name] = tensor.detach().clone()
    return name


def _with_constants(model: nn.Module, example: Example, constants: Constants) -> fx.Graph:
    """Trace a network, which has the tensors that it makes of numbers as attributes then.

    What it makes of buffers is no constant, and is traced; this is tried where there is need of it,
    as code may decide by buffers.
    """
    before = set(dir(model))
    device = next(model.parameters(), torch.empty(0)).device
    calls = _trace(model, example)
    if not any(_is_new(node, before) for node in calls.nodes):
        return calls
    calls = _trace(model, example, traces_buffers=True)
    for node in calls.nodes:
        if _is_new(node, before):
            name = name_of_constant(getattr(model, str(node.target)), constants)
            node.target = name
            setattr(model, name, constants[name].to(device))
    return calls


def _is_new(node: fx.Node, before: set[str]) -> bool:
    name = str(node.target)
    return node.op == "get_attr" and name.startswith("_tensor_constant") and name not in before


def codegen_of(example: Example, names: list[str]) -> CodeGen:
    """Let compiled calls take arguments that hold several tensors each."""
    structure = pytree.tree_structure((example.args, example.kwargs))
    return _PyTreeCodeGen(_PyTreeInfo(names, structure, None))


@contextmanager
def undisturbed(model: nn.Module, runs: bool = False) -> Iterator[None]:
    """Put all attributes of all modules back afterwards, modes too; call no hooks meanwhile.

    So are the values of buffers, which a forward may count in or write to.

    Args:
        model: The network.
        runs: Its batch norms are run as well, not only traced.
    """
    values = [
        (buffer, buffer.detach().clone())
        for module in model.modules()
        if runs or not isinstance(module, ops.BATCH_NORMS)
        for buffer in module.buffers(recurse=False)
        if not buffer.is_meta
    ]
    before = []
    for module in model.modules():
        own = vars(module)
        contents = {k: _contents(v) for k, v in own.items() if type(v) in CONTAINERS}
        before.append((own, dict(own), contents))
        own.update({key: OrderedDict() for key in HOOKS}, _compiled_call_impl=None)
    try:
        yield
    finally:
        for own, attributes, contents in before:
            own.clear()
            own.update(attributes)
            for key, content in contents.items():
                _refill(own[key], content)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _contents(container: Any) -> tuple[Any, ...]:
    return tuple(container.items() if isinstance(container, dict) else container)


def _refill(container: Any, content: tuple[Any, ...]) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(content)
    else:
        container.update(content)


def _trace(model: nn.Module, example: Example, traces_buffers: bool = False) -> fx.Graph:
    tracer = _Tracer(example)
    tracer.proxy_buffer_attributes = traces_buffers
    try:
        with keeping_random_numbers(), _answering(model), seen() as tracer.outside:
            states = random_states()
            calls = tracer.trace(model)
            if not example.is_flat:
                calls.set_codegen(codegen_of(example, tracer.names))
            decides_at_random = random_states() != states
    except Exception as error:
        inside = list(tracer.module_stack.values()) or [("", type(model))]
        name, kind = inside[-1]
        where = f"layer {name} ({type_name(kind)})" if name else type_name(kind)
        raise UnsupportedNetwork(f"{where} cannot be traced: {_why(error)}") from error
    if decides_at_random:
        raise UnsupportedNetwork(
            f"{type(model).__name__} cannot be traced: its forward draws random numbers, which may "
            "decide what it computes; draw them in a layer such as nn.Dropout"
        )
    return calls


def _why(error: Exception) -> str:
    """Say in one line what a forward does that tracing without values cannot."""
    text = first_line(error)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((LIBRARY, str(Path(__file__).parent)))
    ]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    if isinstance(error, fx.proxy.TraceError) or "Proxy" in text or "symbolic" in text:
        return (
            f"its forward{place} decides by the value or the size of a tensor, or leaves PyTorch; "
            "let it decide by what is known when the network is built, or trace a part of it "
            "(example_of)"
        )
    if isinstance(error, NameError) and "not installed as a submodule" in text:
        return f"its forward{place} calls a layer that is not registered; keep it in nn.ModuleList"
    if isinstance(error, NotImplementedError) and "argument of type" in text:
        return (
            f"its forward{place} passes on or returns a thing of another kind ({text}); use "
            "tensors, and tuples, lists, dictionaries or dataclasses of them"
        )
    return f"its forward{place} fails: {text}"


def note_shapes(calls: fx.Graph, model: nn.Module, example: Example) -> None:
    """Run the calls without values, and note the shape of every tensor (see `record_calls`).

    Raises:
        UnsupportedNetwork: The network does not take such images, or returns what cannot be
            compared.
    """
    put_in_order(calls)
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with _quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = example.inputs(torch.empty, parameter.dtype, parameter.device)
            output = _Shapes(model, calls).run(*inputs)
    except Exception as error:
        raise UnsupportedNetwork(
            f"{type(model).__name__} does not take images of shape {example.shape}: "
            f"{first_line(error)}"
        ) from error
    try:
        list(leaves(output))
    except ValueError as error:
        raise UnsupportedNetwork(f"{type(model).__name__} cannot be followed: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging a traceback of what is raised as well."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Tracer(fx.Tracer):
    """Do not look inside the layers that run over channels, also where a library extends them."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a tensor, or for a number of its sizes."""
        sources = node.all_input_nodes
        if name_of(node) in ops.SIZES | ops.FACTS or (
            node.op == "call_function" and sources and self.sizes.issuperset(sources)
        ):
            self.sizes.add(node)
            return fx.Proxy(node, self)
        return _TensorProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether the module is one call."""
        layers = (*ops.CONVOLUTIONS, *ops.TRANSPOSED, nn.Linear, *ops.BATCH_NORMS, Constant, Takes)
        if isinstance(m, nn.Unflatten):  # a call with sizes, which others can replace
            return False
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)

    def __init__(self, example: Example):
        super().__init__()
        self.example = example
        self.outside = 0
        self.sizes: set[fx.Node] = set()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note the context that a call is made in."""
        node = super().create_node(*args, **kwargs)
        context = opened(self.outside)
        if context is not None:
            node.meta["context"] = context
        return node

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Trace forward(images), or with what the example gives, whatever else forward takes."""
        assert isinstance(self.root, nn.Module)
        names = list(inspect.signature(self.root.forward).parameters)
        names += [f"input_{i}" for i in range(len(names), len(self.example.args))]
        given = list(zip(names, self.example.args, strict=False))
        args = [self._argument(name, value) for name, value in given]
        kwargs = {key: self._argument(key, value) for key, value in self.example.kwargs.items()}
        self.names = [name for name, _ in given] + list(kwargs)
        return lambda root, *_: root.forward(*args, **kwargs), [self.root]

    def _argument(self, name: str, value: Any) -> Any:
        def proxy(_: Tensor) -> fx.Proxy:
            return self.create_proxy("placeholder", name, (), {})

        return pytree.tree_map_only(Tensor, proxy, value)


class _TensorProxy(fx.Proxy):
    """What stands for a tensor."""


def _is_instance(value: Any, kinds: Any) -> bool:
    """Say what isinstance would say of the tensor that a value may stand for."""
    return isinstance(value, kinds) or (type(value) is _TensorProxy and issubclass(Tensor, kinds))


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Let the code of a network take what stands for a tensor for one, where it asks isinstance."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    code = [vars(sys.modules[name]) for name in names - {"builtins"} if name in sys.modules]
    changed = [names_in for names_in in code if "isinstance" not in names_in]
    for names_in in changed:
        names_in["isinstance"] = _is_instance
    try:
        yield
    finally:
        for names_in in changed:
            del names_in["isinstance"]


class _Shapes(fx.Interpreter):
    """Run the calls without values, and note the shape of every tensor.

    Plain convolutions, batch norms and activations, which take most of the time, are not run.
    """

    def __init__(self, model: nn.Module, calls: fx.Graph):
        super().__init__(model, graph=calls)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """Run one call."""
        result = super().run_node(n)
        if n.op == "get_attr":
            n.meta["is_parameter"] = isinstance(result, nn.Parameter)
        if isinstance(result, Tensor):
            n.meta["shape"] = result.shape
        else:
            n.meta["holds"] = tensor_shapes(result)
            if not n.meta["holds"]:
                n.meta["value"] = result
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module."""
        module = self.fetch_attr(str(target))
        if type(module) in ops.BATCH_NORMS and args and args[0].shape[1] == module.num_features:
            module._check_input_dim(args[0])
            return args[0]
        if type(module) in ops.ELEMENTWISE_MODULES and args:
            return args[0]
        if type(module) is nn.Conv2d and args and (shape := _convolved(module, args[0])):
            return args[0].new_empty(shape)
        return super().call_module(target, args, kwargs)


def _convolved(conv: nn.Conv2d, images: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a convolution's output; None where the convolution itself has to say."""
    if images.dim() != 4 or images.shape[1] != conv.in_channels or isinstance(conv.padding, str):
        return None
    facts = zip(
        images.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
    )
    sizes = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in facts]
    is_real = images.dtype == conv.weight.dtype and min(sizes) > 0
    return (images.shape[0], conv.out_channels, *sizes) if is_real else None


def type_name(kind: Any) -> str:
    """Return the last part of a type's name."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]
