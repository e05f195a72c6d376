"""A replayed step does what the step does; which methods may say that all steps are alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from chanprune.channels import Bank, Plan, trace
from chanprune.methods import METHODS, Setting, Step
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.models import build
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.optimiser import make_optimiser
from chanprune.pipeline.replay import STEPS_BEFORE, Replay
from chanprune.pipeline.updates import Updates
from chanprune.processes.interruption import Interruption
from chanprune.rewiring import Rewiring
from chanprune.rewiring.copies import Copies, Copying
from tests.test_methods import OPTIONS

SHAPE = (3, 16, 16)
REPEATING = sorted(name for name, method in METHODS.items() if method.repeats)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


class Training:
    """A small network in training, with batches that depend on nothing else."""

    def __init__(self, name, device="cpu", optimiser="sgd"):
        torch.manual_seed(0)
        options = {"name": "vgg11", "width": 0.125}
        if name == "selectconv":
            options = {"name": "preresnet29", "width": 0.25}
        self.model = build(**options, num_classes=5, in_channels=3, image_size=16)
        self.model.to(device, memory_format=torch.channels_last).train()
        graph = trace(self.model, SHAPE)
        method = MultiFidelity(graph, (0.5, 1.0)) if name == "levels" else METHODS[name]()
        method.before_training(self.model, graph, Setting(lr_travel=10.0, num_steps=100))
        options = replace(OPTIONS, optimiser=optimiser)
        trained_by = make_optimiser(self.model, options, method.weight_decays())
        self.said = []
        bank = Bank(self.model, graph, trained_by)
        self.updates = Updates(bank, trained_by, method, options, Interruption(), self.said.append)
        self.device = device
        self.draws = torch.Generator().manual_seed(1)
        self.copying = iter([n for n, m in self.model.named_modules() if isinstance(m, Copying)])

    def batch(self):
        images = torch.randn(8, *SHAPE, generator=self.draws)
        labels = torch.randint(5, (8,), generator=self.draws)
        return images.to(self.device), labels.to(self.device)

    def step(self, index, lr):
        return self.updates.do(Step(index, 0, lr, index / 100), *self.batch(), Cost())[0]

    def change(self):
        """Let one more norm that may have copies have two, and put a plan in place."""
        for name in islice(self.copying, 1):
            shifts = torch.tensor([[0.3, -1.2], [-0.6, 0.4]])
            conv = next(u.conv for u in self.updates.method.units if u.norm == name)
            copies = Copies([1, 2], [0, 0], [0, 0], shifts)
            Rewiring(conv, name, [1, 2], copies).apply(self.updates.bank)
        bank = self.updates.bank
        bank.activate(bank.graph.cut(Plan({})))


class Operations(TorchDispatchMode):
    """Notes every operation, with all that is no tensor, and where the parameters are."""

    def __init__(self, model):
        super().__init__()
        self.own = {p.data_ptr(): n for n, p in model.named_parameters()}
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat, _ = tree_flatten((args, kwargs or {}))
        told = [self.own.get(x.data_ptr(), x.shape) if isinstance(x, Tensor) else x for x in flat]
        self.seen.append((str(func), [str(value) for value in told]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*REPEATING, "levels"])
def test_a_method_that_repeats_does_the_same_in_every_step_without_asking_it(name):
    training = Training(name)
    updates, seen = training.updates, []
    assert updates.method.repeats
    for index in range(4):
        training.step(index, 0.1)
        if index == 1:
            training.change()
        updates._step, batch = None, training.batch()
        with Operations(training.model) as operations:
            updates._update(*batch)
        seen.append(operations.seen)
    assert len(seen[2]) > 50
    assert seen[2] == seen[3]


def test_methods_that_choose_anew_at_every_step_do_not_repeat():
    assert not any(METHODS[name].repeats for name in ("cucb", "random_every_step", "lgc"))
    graph = Training("none").updates.bank.graph
    assert not MultiFidelity(graph, (0.5, 1.0), sandwich=True).repeats


def test_fused_sgd_goes_on_when_another_layer_begins_to_have_a_gradient():
    training = Training("selectconv")
    for group in training.updates.optimiser.param_groups:
        group["fused"] = True
    for index in range(3):
        assert training.step(index, 0.02).isfinite()
        training.change()
    shifts = [m.shift for m in training.model.modules() if isinstance(m, Copying)]
    assert sum(shift.grad is not None for shift in shifts) > 1


@on_a_gpu
@pytest.mark.parametrize("name", [*REPEATING, "levels"])
@pytest.mark.parametrize("optimiser, lr", [("sgd", 0.02), ("adam", 1e-3)])
def test_a_replay_trains_as_the_steps_do(name, optimiser, lr):
    torch.backends.cudnn.deterministic = True
    ends = []
    for is_replayed in (False, True):
        training = Training(name, "cuda", optimiser)
        if not is_replayed:
            training.updates.replay = None
        losses = []
        for index in range(5 * STEPS_BEFORE):
            if index in (2 * STEPS_BEFORE, 3 * STEPS_BEFORE - 1):
                training.change()
            if index == 3 * STEPS_BEFORE:
                with training.updates.bank.whole():
                    pass
            losses.append(training.step(index, lr / (1 + index)))
        assert not training.said
        assert not is_replayed or training.updates.replay._graph is not None
        ends.append((torch.stack(losses), training.model.state_dict()))
    (losses, before), (others, after) = ends
    torch.testing.assert_close(others, losses, rtol=2e-3, atol=2e-3)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-2, atol=5e-3, msg=key)


@on_a_gpu
def test_a_step_that_waits_for_the_gpu_is_done_as_it_is():
    class Impatient(nn.Linear):
        def forward(self, input):
            return super().forward(input) * (1 + 0 * input.sum().item())

    model = Impatient(4, 2).cuda()
    optimiser = make_optimiser(model, OPTIONS)

    def update(images, labels):
        optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach(), loss.detach()

    said: list[Any] = []
    step = Replay(update, said.append)
    images, labels = torch.randn(8, 4).cuda(), torch.randint(2, (8,)).cuda()
    losses = [step(images, labels)[0].item() for _ in range(20)]
    assert len(said) == 1 and "not replayed" in said[0]
    assert losses[-1] < losses[STEPS_BEFORE] < losses[0]
