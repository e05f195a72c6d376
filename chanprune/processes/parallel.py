"""What the processes of a training tell each other.

Each process takes its share of every batch. Gradients are averaged in one message a step, before
the method sees them, and batch norms normalise by the whole batch; so every process makes the
decisions and holds the bits that all others do, and one process with the same batch would make and
hold but for rounding. DistributedDataParallel would do the averaging for networks that stay as they
are; here the tensors that are trained change from step to step.

Alone, nothing here does anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import Plan
from chanprune.channels.batchnorm import in_place_of_forward
from chanprune.channels.gathered import Gathered
from chanprune.channels.operations import BATCH_NORMS
from chanprune.channels.rowwise_norm import counted_batch
from chanprune.processes import ranks
from chanprune.processes.errors import RunError

PATIENCE = timedelta(days=2)  # a process may wait so long for the first, which waits for a cache
HASHES = 2**16  # so that the sum over up to 256 processes is exact in float32


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, and part in order."""
    if ranks.count() == 1 or dist.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(ranks.number_on_host())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    yield
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def _reaching_the_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"another process of this training ended: {reason}") from error


def shared(value: Any) -> Any:
    """Return what the first process has."""
    if ranks.count() == 1:
        return value
    values = [value]
    with _reaching_the_others():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def of_all(value: Any) -> list[Any]:
    """Return what the processes have, the first one's first."""
    values = [value] * ranks.count()
    if ranks.count() > 1:
        with _reaching_the_others():
            dist.all_gather_object(values, value)
    return values


def share_files(folder: Path, names: Sequence[str]) -> None:
    """Give every process the first one's files of these names, as many as there are."""
    if ranks.count() == 1:
        return
    own = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    theirs = shared(own)
    if not ranks.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in theirs.items():
            (folder / name).write_bytes(content)


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do something, a download say, before the others do."""
    if not ranks.is_first():
        shared(None)
    yield
    if ranks.is_first():
        shared(None)


def largest(value: int) -> int:
    """Return the largest of all processes' values."""
    if ranks.count() == 1:
        return value
    found = torch.tensor(value)
    with _reaching_the_others():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def summed(values: Tensor) -> Tensor:
    """Return the sum of all processes' values."""
    if ranks.count() > 1:
        with _reaching_the_others():
            dist.all_reduce(values)
    return values


def average_gradients(model: nn.Module, values: Tensor) -> Tensor:
    """Average the gradients of all parameters over the processes, in place.

    Args:
        model: The network, after its backward pass.
        values: (N,) other numbers to average in the same message.

    Returns:
        Their averages.
    """
    if ranks.count() == 1:
        return values
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([values.to(gradients[0]), *(g.flatten() for g in gradients)])
    flat = summed(flat) / ranks.count()
    averages = flat[len(values) :].split([g.numel() for g in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))
    return flat[: len(values)]


def hash_of(plan: Plan | None) -> int:
    """Return a number by which processes compare their decisions."""
    if ranks.count() == 1 or plan is None:
        return 0
    return zlib.crc32(json.dumps(plan.to_json(), sort_keys=True).encode()) % HASHES


def agree(plan: Plan) -> None:
    """Make sure that all processes made the same decision.

    Raises:
        RunError: They did not.
    """
    own = hash_of(plan)
    check_equal(own, largest(own))
    check_equal(own, -largest(-own))


def check_equal(own: float, of_all: float) -> None:
    """Compare the hash of a decision with that of all processes; raises as `agree` does."""
    if own != of_all:
        raise RunError("the processes chose different channels; please report this")


def whole_batch_norms(model: nn.Module) -> AbstractContextManager[None]:
    """Let batch norms in training normalise by the batches of all processes together."""
    norms = (module for module in model.modules() if isinstance(module, BATCH_NORMS))
    return in_place_of_forward(_forward, norms)


class _Sum(torch.autograd.Function):
    """The sum over all processes, through which gradients find all that was summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient.clone())


def _forward(norm: Any, images: Tensor) -> Tensor:
    """Normalise, and do what follows in a library's batch norm (timm: dropout, activation)."""
    values = _normalise(norm, images)
    for behind in norm.children():
        values = behind(values)
    return values


def _normalise(norm: Any, images: Tensor) -> Tensor:
    """Do what a batch norm does, with mean and variance over all processes.

    Sums are in float64, in which the mean square less the squared mean is exact enough.
    """
    if isinstance(norm, Gathered):
        images = norm.gathered(images)
    if not norm.training:
        return F.batch_norm(
            images, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    axes = [axis for axis in range(images.dim()) if axis != 1]
    shape = [1, -1, *[1] * (images.dim() - 2)]
    values = images.float() if images.dtype == torch.bfloat16 else images
    number = images.numel() // images.shape[1] * ranks.count()
    own = torch.cat([values.sum(axes, dtype=torch.float64), values.double().square().sum(axes)])
    sums: Tensor = _Sum.apply(own)
    mean, mean_square = (sums / number).chunk(2)
    variance = (mean_square - mean.square()).clamp(min=0)
    scale = (variance + norm.eps).rsqrt().to(values.dtype)
    shift = -mean.to(values.dtype) * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    with torch.no_grad():
        share = counted_batch(norm)
        norm.running_mean.lerp_(mean.to(norm.running_mean), share)
        unbiased = variance * (number / (number - 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var), share)
    normalised: Tensor = values * scale.view(shape) + shift.view(shape)
    return normalised.to(images.dtype)
