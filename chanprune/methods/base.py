"""What a method may do, and when: the hooks of the one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from chanprune.channels import (
    Budget,
    Change,
    ChannelGraph,
    ChannelGroup,
    Cut,
    Selection,
    Target,
    by_rank,
    select_above,
    select_global,
    select_widths,
)
from chanprune.components import method
from chanprune.show.charts import Chart

TrainingImages = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Step:
    """Where the training stands.

    Attributes:
        index: Optimiser updates done so far in this stage.
        epoch: Passes over the training data done so far in this stage.
        lr: Learning rate of this step.
        progress: Share of the stage that is done, in [0, 1).
    """

    index: int
    epoch: int
    lr: float
    progress: float


@dataclass(frozen=True)
class PruneOptions:
    """How channels are selected; see `select_global`, `select_above`, `ChannelGraph.prunable`.

    Attributes:
        rule: "ratio" drops the lowest share of all channels; "elementwise" and "prefix" what is not
            above the threshold.
        budget: Instead of a ratio: what the network that is left may cost.
        scope: "global" compares channels of all groups; "layer" takes the same share of each.
        shares: Group name -> the share of its own that goes, whatever becomes of the others.
        widths: Group name -> how many channels it keeps; None: decided by the scores.
    """

    ratio: float
    rule: Literal["ratio", "elementwise", "prefix"] = "ratio"
    threshold: float = 0.05
    budget: Budget | Target | None = None
    scope: Literal["global", "layer"] = "global"
    shares: Mapping[str, float] = field(default_factory=dict)
    min_channels: int = 1
    min_share: float = 0.02
    max_share: float = 1.0
    round_to: int = 1
    coupled: Literal["keep", "together"] = "keep"
    widths: Mapping[str, int] | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any], graph: ChannelGraph) -> PruneOptions:
        """Read what the section prune of a configuration says of the selection, but its budget.

        Raises:
            ValueError: A pattern matches nothing.
        """
        names = {each.name for each in fields(cls)} - {"budget", "shares", "widths"}
        shares = graph.matching_shares(section["shares"])
        return cls(**{name: section[name] for name in names}, shares=shares)

    def width(self, group: ChannelGroup, share: float) -> int:
        """Return what a group keeps when a share of it goes: whole multiples, above its floor."""
        width = math.floor(group.size * (1 - share) + 1e-9)
        floor = max(self.min_channels, math.ceil(self.min_share * group.size - 1e-9), 1)
        unit = math.lcm(self.round_to, group.blocks)
        return min(group.size, math.ceil(max(width, floor) / unit) * unit)


@dataclass(frozen=True)
class Setting:
    """What a method may know of a stage before its first step.

    Attributes:
        lr_travel: Sum of the learning rates of all steps, divided by (1 - momentum): how far a
            constant unit gradient moves a parameter over the whole schedule.
        num_steps: Number of steps.
        seed: Seed of the run, for a generator of the method's own.
        norm_decay: Weight decay of batch-norm scales.
        prune: How channels will be selected at the end.
    """

    lr_travel: float
    num_steps: int = 1
    seed: int = 0
    prune: PruneOptions = PruneOptions(ratio=0.0)
    norm_decay: float = 0.0


@dataclass(frozen=True)
class Conversion:
    """The trained network in another form of its architecture.

    Attributes:
        label: What the table calls it.
        options: Options of the model that differ from now on (see `models.build`).
        state: All its tensors, by name.
        exact: Whether it must compute what the network before it does, which is then checked.
    """

    label: str
    options: Mapping[str, Any]
    state: Mapping[str, Tensor]
    exact: bool = False


def select(scores: Mapping[str, Tensor], graph: ChannelGraph, options: PruneOptions) -> Selection:
    """Decide by the rule that the options name which of the scored channels stay.

    Raises:
        ValueError: The floors leave too few channels to drop, or the budget cannot be met.
    """
    if options.widths is not None:
        return select_widths(scores, options.widths, blocks=graph.blocks)
    own = {name: share for name, share in options.shares.items() if name in scores}
    for name in sorted(options.shares.keys() - own.keys()):
        group = graph.groups[name]
        may_go = group in graph.prunable(options.coupled)
        reason = "what ranks channels says nothing of it" if may_go else group.whole_because
        raise ValueError(f"prune.shares names {name}, which stays whole: {reason}")
    widths = {name: options.width(graph.groups[name], share) for name, share in own.items()}
    given = select_widths(scores, widths, blocks=graph.blocks)
    others = {name: score for name, score in scores.items() if name not in own}
    return _by_rule(others, graph, options, given.kept).beside(given)


def _by_rule(
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    options: PruneOptions,
    besides: Mapping[str, list[int]],
) -> Selection:
    blocks = graph.blocks
    if options.rule != "ratio":
        return select_above(
            scores,
            options.threshold,
            prefix=options.rule == "prefix",
            min_channels=max(1, options.min_channels),
            blocks=blocks,
        )
    names = scores if options.min_channels == 0 else ()
    return select_global(
        by_rank(scores, blocks) if options.scope == "layer" else scores,
        options.budget or options.ratio,
        min_channels=options.min_channels,
        min_share=options.min_share,
        max_share=options.max_share,
        round_to=options.round_to,
        blocks=blocks,
        may_be_emptied=[name for name in names if graph.may_be_emptied(name)],
        besides=besides,
    )


class Method:
    """Hooks that do nothing.

    A method overrides the moments it needs. It decides which channels to keep and returns that
    decision; surgery, checks, counting and saving are done elsewhere, once.

    Attributes:
        prunes: Whether a prune stage follows the train stage.
        converts: Whether that stage takes the method's conversions, and no channels are selected.
        score: What `select_channels` ranks channels by, for pictures.
        percentages: Those of its metrics that are shares, in [0, 1].
        levels: Fidelity levels, in (0, 1], that the product is measured at.
        passes: Rounds of training, pruning and fine-tuning.
        level_statistics: Number of training images from which every level's own batch-norm
            statistics are estimated at the end; 0 if the levels share the whole network's.
        advice: What the user should know of the options, once `before_training` has seen them.
        remarks: What the user should know of the choice, once `select_channels` has made it.
        after_training: Names of the method's options that its training does not look at.
        trains_as: Name that methods share whose training is the same, whatever their options.
        trains_for_pruning: Whether its training looks at how channels will be selected.
        repeats: Whether `loss`, `after_backward` and `after_step` do the same to the same tensors
            in every step, until channels are rewired or made active, without asking the step. They
            are then not called for steps that a GPU replays (see `Replay`).
    """

    prunes = False
    converts = False
    score = "|batch-norm scale|"
    percentages: tuple[str, ...] = ()
    levels: tuple[float, ...] = (1.0,)
    passes = 1
    level_statistics = 0
    advice = ""
    remarks: tuple[str, ...] = ()
    after_training: tuple[str, ...] = ()
    trains_as = ""
    trains_for_pruning = False
    repeats = False

    def before_training(
        self, model: nn.Module, graph: ChannelGraph, setting: Setting
    ) -> dict[str, float]:
        """Called once, before the first step of the stage.

        Args:
            model: The network, on its device.
            graph: Its channel graph.
            setting: What is known of the stage.

        Returns:
            What the log should say of the method, name -> value.
        """
        return {}

    def weight_decays(self) -> dict[float, list[nn.Parameter]]:
        """Return parameters whose weight decay is their own: decay -> parameters.

        Called after `before_training`.
        """
        return {}

    def rewirings(self, step: Step) -> Sequence[Change]:
        """Return what is to be done to the network and the optimiser's state, such as a `Rewiring`.

        Called before each step, before `active_channels`.
        """
        return []

    def active_channels(self, step: Step) -> Cut | None:
        """Return the channels to execute and train from this step on; None: as before.

        Called before each step. What is not active keeps every bit; see `Bank`.
        """
        return None

    def before_step(self, step: Step) -> None:
        """Called before each forward pass."""

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits (N, classes); the default is cross-entropy."""
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    def after_backward(self, step: Step) -> None:
        """Called when gradients exist, before the optimiser reads them; may change `.grad`."""

    def after_step(self, step: Step) -> None:
        """Called after each optimiser update."""

    def after_epoch(self, step: Step) -> dict[str, float]:
        """Called after each epoch; returns what the log should say, name -> value."""
        return {}

    def before_pruning(
        self, model: nn.Module, graph: ChannelGraph, training_images: TrainingImages
    ) -> None:
        """Called before `select_channels`.

        Args:
            model: The trained network, on its device.
            graph: Its channel graph.
            training_images: Number of images -> about so many, shuffled and not augmented, in
                batches (images, labels) on that device.
        """

    def select_channels(
        self, model: nn.Module, graph: ChannelGraph, options: PruneOptions
    ) -> tuple[Selection, dict[str, Tensor]]:
        """Decide which channels stay; return the decision and the scores (C,) it rests on."""
        raise NotImplementedError(f"{type(self).__name__} does not prune")

    def conversions(self, model: nn.Module) -> list[Conversion]:
        """Return the forms that the trained network takes one after the other, the product last."""
        return []

    def charts(
        self, model: nn.Module, graph: ChannelGraph, metrics: Sequence[Mapping[str, Any]]
    ) -> list[Chart]:
        """Return what there is to see of the training, once it is over.

        Args:
            model: The trained network.
            graph: Its channel graph.
            metrics: Of every epoch: its number "epoch", and what `after_epoch` said.
        """
        return []

    def finetune_hooks(self, graph: ChannelGraph) -> Method | None:
        """Return the hooks of the finetune stage, or None if there is no such stage.

        By default a stage without hooks follows pruning, so that penalties end.

        Args:
            graph: Channel graph of the network as it is then.
        """
        return Plain() if self.prunes else None

    def product(self, model: nn.Module) -> nn.Module:
        """Return the network as it is measured and stored: here the one that is trained."""
        return model

    def macs_per_image(self, macs: int) -> int:
        """Return the multiply-accumulates of the last step's forward passes, for one image.

        Args:
            macs: Those of a pass through the network that is in place.
        """
        return macs

    def validated(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the networks that meet the validation images after each epoch.

        Returns:
            What the log adds to "val_accuracy" -> network; where an epoch is chosen, it is the one
            with the best mean.
        """
        return {"": self.product(model)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive a restart."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off."""


@method("none")
class Plain(Method):
    """Plain training of the whole network."""

    repeats = True
