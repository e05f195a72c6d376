"""The step of training: choose channels, forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from chanprune.channels import Bank
from chanprune.methods import Method, Step
from chanprune.pipeline.cost import Cost
from chanprune.pipeline.optimiser import TrainOptions, set_lr
from chanprune.pipeline.replay import Replay
from chanprune.processes import ranks
from chanprune.processes.errors import RunError
from chanprune.processes.interruption import Interruption
from chanprune.processes.parallel import average_gradients, check_equal, hash_of


class Updates:
    """Does the steps of a stage, which a GPU replays where the method allows it.

    Args:
        bank: The network.
        optimiser: What trains it.
        method: Whose hooks are called.
        options: How it trains.
        interruption: Tells of requests to stop, which several processes tell each other.
        say: Takes a remark for the user.
    """

    def __init__(
        self,
        bank: Bank,
        optimiser: torch.optim.Optimizer,
        method: Method,
        options: TrainOptions,
        interruption: Interruption,
        say: Callable[[str], None],
    ):
        self.bank = bank
        self.optimiser = optimiser
        self.method = method
        self.options = options
        self._others_stop = False
        self._changes = bank.changes
        self._interruption = interruption
        model = bank.model
        self._forward = cast(nn.Module, torch.compile(model)) if options.compile else model
        is_on_gpu = next(model.parameters()).device.type == "cuda"
        replays = method.repeats and is_on_gpu and ranks.count() == 1 and not options.compile
        self.replay = Replay(self._update, say) if replays else None

    def do(
        self, step: Step, images: Tensor, labels: Tensor, cost: Cost, *, watch: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Do a step on the channels that are active.

        Args:
            step: Where the training stands.
            images: (N, C, H, W) on the device.
            labels: (N,).
            cost: Takes in what the step cost.
            watch: Note as well what it keeps for its backward pass.

        Returns:
            The loss, and the share of images that were classified correctly.

        Raises:
            RunError: The network is to be compiled, and PyTorch cannot.
        """
        method = self.method
        for change in method.rewirings(step):
            change.apply(self.bank)
        active = method.active_channels(step)
        if active is not None:
            self.bank.activate(active)
        if self.replay and self._changes != self.bank.changes:
            self.replay.forget()
        self._changes = self.bank.changes
        set_lr(self.optimiser, step.lr)
        method.before_step(step)
        self._step = step
        if self.options.compile:
            loss, hits = self._update_compiled(images, labels)
        elif watch:
            with cost.watch(self.bank.model):
                loss, hits = self._update(images, labels)
        else:
            loss, hits = (self.replay or self._update)(images, labels)
        cost.add_step(len(images) * ranks.count(), method.macs_per_image(self.bank.macs))
        return loss, hits

    def is_asked_to_stop(self) -> bool:
        """Tell whether a signal came; several processes go by what they told each other."""
        if ranks.count() > 1:
            return self._others_stop
        return self._interruption.requested is not None

    def _update_compiled(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._update(images, labels)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"PyTorch cannot compile the network: {reason}; train.compile=false and "
                "finetune.compile=false train without, a C++ compiler may be what is missing"
            ) from error

    def _update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward, backward, update, with the method's hooks in between; return loss and hits."""
        method, options = self.method, self.options
        self.optimiser.zero_grad(set_to_none=True)
        images = images.to(memory_format=torch.channels_last)
        is_bf16 = options.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_bf16):
            loss, logits = method.loss(self._forward, images, labels, options.label_smoothing)
        loss.backward()
        hits = (logits.detach().argmax(1) == labels).float().mean()
        loss, hits = self._tell_each_other(loss.detach(), hits)
        method.after_backward(self._step)
        self.optimiser.step()
        method.after_step(self._step)
        return loss, hits

    def _tell_each_other(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Average gradients, loss and hits over all processes, and compare what they decided."""
        if ranks.count() == 1:
            return loss, hits
        decision = hash_of(self.bank.plan)
        facts = torch.tensor([self._interruption.requested or 0, decision], device=loss.device)
        values = torch.cat([torch.stack([loss.float(), hits]), facts])
        loss, hits, asked, decisions = average_gradients(self.bank.model, values)
        check_equal(decision, decisions.item())
        self._others_stop = asked.item() != 0
        return loss, hits
