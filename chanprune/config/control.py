"""Controls of a finished run: what it would have come to by simpler means.

`python -m chanprune.train control=NAME control_of=DIRECTORY` trains, with the options and the seed
of the run there,

scratch_e   its compact network from fresh initialisation, for the epochs of its train stage
scratch_b   the same for the multiply-accumulates of its train stage (Rethinking the Value of
            Network Pruning, section 3), at most twice the epochs on images of ImageNet's size
random      the whole network without a penalty, and keeps as many channels of each group as the
            run, at random
l1norm      the same, and keeps the filters with the largest L1 norm
uniform     the same, with L1 norms, and takes one share of every group, for the run's
            multiply-accumulates

The last three fine-tune as the run did. The compute of fine-tuning is not counted in scratch_b, as
in the paper.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.config.recorded import checked_config
from chanprune.processes.errors import UserError
from chanprune.records.run_dir import located
from chanprune.records.schemas import Model, Summary, read_model, read_summary

if TYPE_CHECKING:
    from chanprune.channels import ChannelGraph

IMAGENET_PIXELS = 224
RATIOS = [step / 1000 for step in range(1000)]
Config = dict[str, Any]


def control(name: str, run_dir: Path, root: str | None = None) -> Config:
    """Return the configuration of a run's control.

    Args:
        name: A key of `CONTROLS`.
        run_dir: The run.
        root: Where its data is now; None: where it was.

    Raises:
        UserError: No finished run is there, or it took no channels out.
    """
    config = checked_config(run_dir)
    try:
        summary, model = read_summary(run_dir), read_model(run_dir)
    except (OSError, ValueError) as error:
        raise UserError(f"control_of={run_dir}: no finished run is there") from error
    except UserError as error:
        raise UserError(f"control_of={run_dir}: no finished run is there; {error}") from error
    if config is None or not model.plan:
        raise UserError(f"control_of={run_dir}: the run there took no channels out")
    return CONTROLS[name](located(run_dir, config, root), run_dir, summary, model)


def _scratch(config: Config, run_dir: Path, epochs: int) -> Config:
    return {
        **config,
        "model": {"name": "compact", "run": str(run_dir)},
        "method": {"name": "none"},
        "train": {**config["train"], "epochs": epochs},
        "prune": {**config["prune"], "widths": None},
    }


def _equal_epochs(config: Config, run_dir: Path, summary: Summary, model: Model) -> Config:
    return _scratch(config, run_dir, config["train"]["epochs"])


def _equal_compute(config: Config, run_dir: Path, summary: Summary, model: Model) -> Config:
    costs = [cost for stage, cost in summary.cost.items() if stage.startswith("train")]
    if not costs or not costs[0].images:
        raise UserError(f"control_of={run_dir}: its summary.json does not say what training cost")
    epochs: int = config["train"]["epochs"]
    images = costs[0].images / epochs
    fitting = int(sum(cost.macs for cost in costs) / (3 * images * summary.macs))
    if model.input_shape[1] >= IMAGENET_PIXELS:
        fitting = min(fitting, 2 * epochs)
    return _scratch(config, run_dir, max(1, fitting))


def _same_widths(method: str) -> Callable[[Config, Path, Summary, Model], Config]:
    def make(config: Config, run_dir: Path, summary: Summary, model: Model) -> Config:
        return {
            **config,
            "method": {"name": method, "shares": {}},
            "prune": {**config["prune"], "widths": str(run_dir)},
        }

    return make


def _uniform(config: Config, run_dir: Path, summary: Summary, model: Model) -> Config:
    from chanprune.channels import trace
    from chanprune.models import build_skeleton

    skeleton = build_skeleton(**model.architecture.model_dump())
    graph = trace(skeleton, model.input_shape)
    prune = {**config["prune"], "widths": None, "rule": "ratio"}

    def saved(ratio: float) -> int:
        return summary.macs - _macs(skeleton, graph, {**prune, "ratio": ratio})

    place = bisect_left(RATIOS, 0, key=saved)
    near = RATIOS[max(0, place - 1) : place + 1]
    ratio = min(near, key=lambda ratio: abs(saved(ratio)))
    return {
        **config,
        "method": {"name": "l1norm", "shares": {}},
        "prune": {**prune, "ratio": ratio},
    }


def _macs(skeleton: Any, graph: ChannelGraph, prune: Mapping[str, Any]) -> int:
    """Return the multiply-accumulates that are left when every group loses the same share."""
    from chanprune.channels import Plan, count_plan
    from chanprune.methods import METHODS, PruneOptions, Setting

    not_of_the_selection = {"absorb", "least_squares", "recalibrate", "order"}
    options = PruneOptions(**{k: v for k, v in prune.items() if k not in not_of_the_selection})
    method = METHODS["random"]()
    method.before_training(skeleton, graph, Setting(lr_travel=0, prune=options))
    selection, _ = method.select_channels(skeleton, graph, options)
    return count_plan(skeleton, graph, Plan(selection.kept)).macs


CONTROLS: dict[str, Callable[[Config, Path, Summary, Model], Config]] = {
    "scratch_e": _equal_epochs,
    "scratch_b": _equal_compute,
    "random": _same_widths("random"),
    "l1norm": _same_widths("l1norm"),
    "uniform": _uniform,
}
