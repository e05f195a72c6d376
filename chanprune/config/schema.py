"""What the configuration may say: every option's type and range, checked before any work.

Methods, models and data sets say themselves what options they have (`chanprune.components`); what
all runs have stands here. Nothing imports PyTorch, so that a mistake is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from chanprune import components
from chanprune.components import (
    Component,
    Count,
    CountOrZero,
    FilePath,
    Ge,
    Gt,
    Lt,
    NotNegative,
    PartOrAll,
    Positive,
    Share,
    ShareOrAll,
    Text,
)
from chanprune.config.checks import Section, check
from chanprune.config.chosen import check_demands, chosen_component, section_of
from chanprune.processes.errors import UserError

SUFFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
TARGETS = ("target_macs", "target_params", "target_memory", "target_latency_ms")
# The options that hold a path, beside those of components; whether they may be null.
PATHS = {
    **dict.fromkeys(("cache.dir", "model.run", "run"), False),
    **dict.fromkeys(
        ("run.dir", "model.weights", "resume", "control_of", "components", "prune.widths"), True
    ),
}


def _amount(value: Any) -> Any:
    """Read 200M as 200,000,000."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9.]+(?:e[+]?[0-9]+)?) *([kMG]?)B?", value.strip())
    wrong = "must be a share of the whole in (0, 1], or an amount as 200M"
    try:
        amount = float(match[1]) * SUFFIXES[match[2]] if match else float(value)
    except ValueError:
        raise ValueError(wrong) from None
    if amount <= 1 and not value[-1].isdigit():
        raise ValueError(wrong)
    return amount


def _ascending(values: list[float]) -> list[float]:
    if values != sorted(set(values)):
        raise ValueError("must be ascending")
    return values


Amount = Annotated[float, BeforeValidator(_amount), Gt(0)]


def _milliseconds(value: Any) -> Any:
    """Read 5 as milliseconds, and 50% as a share."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,2}(\.[0-9]+)? ?%", value.strip()):
        share = value.strip().removesuffix("%").strip()
        if float(share) > 0:
            return f"{share}%"
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("must be milliseconds > 0, as 5, or a share of the whole's below 100%, as 50%")


Milliseconds = Annotated[float | str, BeforeValidator(_milliseconds)]


class RunSection(Section):
    """run.*: where the run goes."""

    dir: FilePath | None
    overwrite: bool


class CacheSection(Section):
    """cache.*: where trained stages are kept for runs that train alike."""

    dir: FilePath
    enabled: bool


class Compact(Section):
    """model=compact: the compact network of a finished run, from fresh initialisation.

    Attributes:
        target: The factory that its network is made by (model=custom), where it is one's own.
    """

    name: Literal["compact"]
    run: FilePath
    target: Text | None = None
    weights: FilePath | None = None


class Latency(Section):
    """prune.latency.*: what prune.target_latency_ms is the time of."""

    runtime: Literal["eager", "compiled", "ort"]
    batch: Count
    threads: Count | None


class Prune(Section):
    """prune.*: which channels go."""

    rule: Literal["ratio", "elementwise", "prefix"]
    threshold: NotNegative
    ratio: Share
    target_macs: Amount | None
    target_params: Amount | None
    target_memory: Amount | None
    target_latency_ms: Milliseconds | None
    latency: Latency
    scope: Literal["global", "layer"]
    keep: list[str]
    shares: dict[str, Share]
    absorb: Literal["none", "bias"]
    coupled: Literal["keep", "together"]
    order: bool
    min_channels: CountOrZero
    min_share: ShareOrAll
    max_share: PartOrAll
    round_to: Count
    widths: FilePath | None
    least_squares: CountOrZero
    recalibrate: CountOrZero


class Train(Section):
    """train.* and finetune.*: how the whole network, and the pruned one, are trained."""

    epochs: CountOrZero
    batch_size: Count
    lr: Positive
    optimiser: Literal["sgd", "adam"]
    momentum: Share
    nesterov: bool
    weight_decay: NotNegative
    weight_decay_norm: NotNegative
    weight_decay_bias: NotNegative
    schedule: Literal["step", "cosine"]
    milestones: Annotated[list[Annotated[float, Gt(0), Lt(1)]], AfterValidator(_ascending)]
    lr_factor: PartOrAll
    warmup: Share
    label_smoothing: Share
    precision: Literal["fp32", "bf16"]
    compile: bool
    save_every_minutes: Positive


class _Scalars(Section):
    seed: Annotated[int, Ge(0), Lt(2**32)]
    device: Literal["auto", "cpu", "cuda"]
    components: Text | None
    resume: FilePath | None
    control: Literal["scratch_e", "scratch_b", "random", "l1norm", "uniform"] | None
    control_of: FilePath | None


SECTIONS: dict[str, type[Section] | None] = {
    "run": RunSection,
    "cache": CacheSection,
    "model": None,
    "dataset": None,
    "method": None,
    "criterion": None,
    "prune": Prune,
    "train": Train,
    "finetune": Train,
}


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a composed configuration; from then on this process knows its `components`.

    Args:
        config: Nested plain values, as composed from configs/ and the command line.

    Returns:
        The same values, with the defaults of a method's, model's and data set's options that are
        left out, and with integers turned to floats where a float is meant.

    Raises:
        UserError: The first thing that is wrong, in one line.
    """
    scalars = {key: value for key, value in config.items() if key not in SECTIONS}
    checked = check(_Scalars, scalars, "", [*_Scalars.model_fields, *SECTIONS])
    components.use(checked["components"])
    chosen: dict[str, Component] = {}
    for section, fixed in SECTIONS.items():
        values = config.get(section)
        if not isinstance(values, Mapping):
            raise not_a_section(section, values)
        kind = fixed
        if kind is None and section == "model" and values.get("name") == "compact":
            kind = Compact
        if kind is None:
            chosen[section] = chosen_component(section, values)
            kind = section_of(chosen[section])
        checked[section] = check(kind, values, f"{section}.", list(kind.model_fields))
    for later in ("weights", "target"):
        if checked["model"].get(later) is None and later not in config["model"]:
            checked["model"].pop(later, None)  # as it was recorded before there was this option
    _check_together(checked, chosen)
    return checked


def vouch_for_code(config: Mapping[str, Any]) -> None:
    """Let this process import the factory that a command line names: model.target."""
    model = config["model"]
    if isinstance(model, Mapping) and model.get("target") is not None:
        components.vouch(str(model["target"]))


def _check_together(config: Mapping[str, Any], chosen: Mapping[str, Component]) -> None:
    """Check what one option demands of another."""
    for kind, component in chosen.items():
        check_demands(component, config[kind], config)
    if config["train"]["epochs"] == 0 and config["method"]["name"] != "none":
        raise UserError(
            "train.epochs=0 takes the weights as they are, and "
            f"method={config['method']['name']} is about training; take method=none and a criterion"
        )
    targets = [key for key in TARGETS if config["prune"][key] is not None]
    if len(targets) > 1:
        raise UserError(f"prune.{' and prune.'.join(targets)}: give one of them")
    if config["prune"]["rule"] != "ratio":
        _refuse_what_a_threshold_ignores(config["prune"])
    if targets and config["prune"]["widths"] is not None:
        raise UserError(
            f"prune.{targets[0]} and prune.widths: give one of them; widths are those of a run"
        )
    if (config["control"] is None) != (config["control_of"] is None):
        raise UserError("control=NAME and control_of=DIRECTORY go together")


def _refuse_what_a_threshold_ignores(prune: Mapping[str, Any]) -> None:
    """Refuse options of prune.rule=ratio where another rule selects, by the threshold alone."""
    unused = {"scope": "global", "max_share": 1.0, "min_share": 0.02, "round_to": 1}
    for key, default in {**dict.fromkeys(TARGETS), **unused}.items():
        if prune[key] != default:
            raise UserError(
                f"prune.{key}={prune[key]} goes with prune.rule=ratio; {prune['rule']} keeps "
                "whatever is above prune.threshold"
            )


def refuse_missing_data(config: Mapping[str, Any]) -> None:
    """Refuse files of a data set that must be given and are not there; raises UserError."""
    dataset = config["dataset"]
    root = chosen_component("dataset", dataset).options.get("root")
    if root is not None and root.is_required and not Path(dataset["root"]).exists():
        raise UserError(
            f"dataset.root={dataset['root']} does not exist; give the directory or zip archive"
        )


def not_a_section(section: str, value: Any) -> UserError:
    """Say that a whole section was replaced by a value."""
    of_run = f"; model=compact model.run={value} is the network of that run"
    hint = of_run if section == "run" else ""
    return UserError(f"{section}={value}: must be a section with keys of its own{hint}")
