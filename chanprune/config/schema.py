"""What the configuration may say: every option's type and range, checked before any work.

Nothing here imports PyTorch, so that a mistake is answered at once. The classes mirror configs/;
adding a model, a method or a data set with options of its own adds a class here.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from chanprune.processes.errors import UserError

# A directory may be called 5, which Hydra reads as a number.
Text = Annotated[str, BeforeValidator(lambda value: f"{value}" if type(value) is int else value)]
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]
# The options that hold a path, and those of them that may be null.
PATHS = {"dataset.root", "cache.dir", "model.run", "run"}
OPTIONAL_PATHS = {"run.dir", "resume", "control_of", "model.weights", "prune.widths"}
Positive = Annotated[float, Field(gt=0)]
Width = Annotated[float, Field(gt=0, le=64)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RunSection(_Section):
    """run.*: where the run goes."""

    dir: FilePath | None
    overwrite: bool


class CacheSection(_Section):
    """cache.*: where trained stages are kept for runs that train alike."""

    dir: FilePath
    enabled: bool


class Vgg(_Section):
    """model=vgg11 ... vgg19."""

    name: Literal["vgg11", "vgg13", "vgg16", "vgg19"]
    width: Width
    head: Literal["linear", "fc512"]
    head_norm: bool
    conv_bias: bool
    norm: bool


class ResNet(_Section):
    """model=resnet20 ... resnet110."""

    name: Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]
    width: Width
    shortcut: Literal["A", "B"]


class PreResNet(_Section):
    """model=preresnet29, preresnet164."""

    name: Literal["preresnet29", "preresnet164"]
    width: Width
    shortcut: Literal["projection", "zero_pad"]
    downsample: Literal["stride", "pool"]
    stem_stride: Annotated[int, Field(ge=1)]


class PreResNet50(_Section):
    """model=preresnet50."""

    name: Literal["preresnet50"]
    width: Width


class ResNeXt(_Section):
    """model=resnext29, preresnext29."""

    name: Literal["resnext29", "preresnext29"]
    width: Width
    cardinality: Annotated[int, Field(ge=1)]
    base_width: Annotated[int, Field(ge=1)]
    stem_stride: Annotated[int, Field(ge=1)]


class DenseNet(_Section):
    """model=densenet40, densenet40_bottleneck, densenet100_bottleneck, densenet100_bc."""

    name: Literal["densenet40", "densenet100"]
    width: Width
    growth: Annotated[int, Field(ge=1)]
    stem: Annotated[int, Field(ge=1)]
    bottleneck: bool
    transition: Literal["conv", "pool"]
    compression: Annotated[float, Field(gt=0, le=1)]
    stem_stride: Annotated[int, Field(ge=1)]


class CondenseNet(_Section):
    """model=condensenet50 ... condensenet182."""

    name: Literal[
        "condensenet50",
        "condensenet74",
        "condensenet86",
        "condensenet98",
        "condensenet110",
        "condensenet122",
        "condensenet182",
    ]
    width: Width
    groups: Annotated[int, Field(ge=1)]
    condensation: Annotated[int, Field(ge=1)]
    converted: bool
    half_classifier: bool
    dropout: Share


class Library(_Section):
    """model=torchvision, timm."""

    library: Literal["torchvision", "timm"]
    name: Text
    weights: FilePath | None


class Compact(_Section):
    """model=compact."""

    name: Literal["compact"]
    run: FilePath


class Embedded(_Section):
    """dataset=digits, and what all data sets take."""

    name: Literal["digits"]
    image_size: Annotated[int, Field(ge=1, le=8192)] | None
    val_share: Annotated[float, Field(gt=0, lt=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    memory_limit: Annotated[int, Field(ge=0)]
    workers: Annotated[int, Field(ge=0, le=256)]
    pad: Annotated[int, Field(ge=0, le=1024)]
    flip: bool


class FromFiles(Embedded):
    """dataset=cifar10 and the others that torchvision downloads, and dataset=imagefolder."""

    name: Literal["cifar10", "cifar100", "svhn", "fashion_mnist", "imagefolder"]  # type: ignore[assignment]
    root: FilePath


class NoMethod(_Section):
    """method=none."""

    name: Literal["none"]


class _Leveled(_Section):
    """Methods whose product may run at several fidelity levels."""

    levels: list[Annotated[float, Field(gt=0, le=1)]]
    sandwich: bool
    level_statistics: Annotated[int, Field(ge=0)]


class Slimming(_Leveled):
    """method=slimming."""

    name: Literal["slimming"]
    sparsity_weight: NotNegative | None
    travel: NotNegative | None
    criterion: Literal["scale", "taylor"]
    passes: Annotated[int, Field(ge=1)]


class Prioritized(_Leveled):
    """method=prioritized."""

    name: Literal["prioritized"]
    sparsity_weight: NotNegative | None
    travel: NotNegative | None
    monotonicity_weight: NotNegative | None
    decreasing: bool


class IncompleteDotProducts(_Leveled):
    """method=idp."""

    name: Literal["idp"]
    profile: Literal["all_one", "linear", "harmonic", "half_exponential"]


class _Dynamic(_Section):
    """Methods that train part of the channels at each step."""

    every: Annotated[int, Field(ge=0)]
    freeze: Annotated[float, Field(ge=0, le=1)]
    floor: Annotated[float, Field(ge=0, le=1)]
    momentum: Literal["keep", "reset"]


class Cucb(_Dynamic):
    """method=cucb, final_random."""

    name: Literal["cucb", "final_random"]
    exploration: NotNegative | None
    explore: Annotated[int, Field(ge=0)] | None
    scope: Literal["global", "layer"]
    normalise: Literal["l2", "max", "rms", "none"]
    reduce: Literal["batch", "example"]
    statistic: Literal["mean", "ema"]


class RandomEveryStep(_Dynamic):
    """method=random_every_step."""

    name: Literal["random_every_step"]


class FixedRandom(_Section):
    """method=fixed_random."""

    name: Literal["fixed_random"]
    floor: Annotated[float, Field(ge=0, le=1)]


class LayerWise(_Section):
    """method=l1norm, random."""

    name: Literal["l1norm", "random"]
    shares: dict[str, Share]


class SelectiveConvolution(_Section):
    """method=selectconv."""

    name: Literal["selectconv"]
    realloc: bool
    threshold: Annotated[float, Field(ge=0, lt=1)]
    top: Annotated[int, Field(ge=1)]
    max_copies: Annotated[int, Field(ge=1)] | None
    until: Annotated[float, Field(ge=0, le=1)]
    shift: Literal["pre", "post"]
    scope: Literal["pointwise", "all"]
    order: Literal["largest", "l2"]
    moment: Literal["mean", "square"]
    taps: Literal["sum", "absolute"]
    padding: Literal["ignored", "counted"]
    shift_decay: NotNegative


class LearnedGroups(_Section):
    """method=lgc."""

    name: Literal["lgc"]
    group_lasso: NotNegative
    cut_classifier: bool


class Prune(_Section):
    """prune.*: which channels go."""

    rule: Literal["ratio", "elementwise", "prefix"]
    threshold: NotNegative
    ratio: Share
    absorb: Literal["none", "bias"]
    coupled: Literal["keep", "together"]
    order: bool
    min_channels: Annotated[int, Field(ge=0)]
    min_share: Annotated[float, Field(ge=0, le=1)]
    max_share: Annotated[float, Field(gt=0, le=1)]
    round_to: Annotated[int, Field(ge=1)]
    widths: FilePath | None
    recalibrate: Annotated[int, Field(ge=0)]


class Finetune(_Section):
    """finetune.*: how the pruned network is trained."""

    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Positive
    optimiser: Literal["sgd", "adam"]
    momentum: Share
    nesterov: bool
    weight_decay: NotNegative
    weight_decay_norm: NotNegative
    weight_decay_bias: NotNegative
    schedule: Literal["step", "cosine"]
    milestones: list[Annotated[float, Field(gt=0, lt=1)]]
    lr_factor: Annotated[float, Field(gt=0, le=1)]
    warmup: Share
    label_smoothing: Share
    precision: Literal["fp32", "bf16"]
    compile: bool
    save_every_minutes: Positive


class Train(Finetune):
    """train.*: how the whole network is trained."""

    epochs: Annotated[int, Field(ge=1)]


class _Scalars(_Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cpu", "cuda"]
    resume: FilePath | None
    control: Literal["scratch_e", "scratch_b", "random", "l1norm", "uniform"] | None
    control_of: FilePath | None


class _Format(_Section):
    format: Literal["table", "json"]


class DataNow(_Section):
    """evaluate's dataset.*: where a run's data is now."""

    root: FilePath | None


class Evaluation(_Format):
    """evaluate: which run, where, and how to print it."""

    run: FilePath
    fidelity: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    device: Literal["auto", "cpu", "cuda"]


SECTIONS: dict[str, list[type[_Section]]] = {
    "run": [RunSection],
    "cache": [CacheSection],
    "model": [
        Vgg,
        ResNet,
        PreResNet,
        PreResNet50,
        ResNeXt,
        DenseNet,
        CondenseNet,
        Compact,
        Library,
    ],
    "dataset": [Embedded, FromFiles],
    "method": [
        NoMethod,
        Slimming,
        Prioritized,
        IncompleteDotProducts,
        Cucb,
        RandomEveryStep,
        FixedRandom,
        LayerWise,
        SelectiveConvolution,
        LearnedGroups,
    ],
    "prune": [Prune],
    "train": [Train],
    "finetune": [Finetune],
}


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a composed configuration.

    Args:
        config: Nested plain values, as composed from configs/ and the command line.

    Returns:
        The same values, with integers turned to floats where a float is meant.

    Raises:
        UserError: The first thing that is wrong, in one line.
    """
    scalars = {key: value for key, value in config.items() if key not in SECTIONS}
    checked = _check(_Scalars, scalars, "", [*_Scalars.model_fields, *SECTIONS])
    for section, kinds in SECTIONS.items():
        values = config.get(section)
        if not isinstance(values, Mapping):
            raise not_a_section(section, values)
        kind = max(kinds, key=lambda kind: _likeness(kind, values))
        checked[section] = _check(kind, values, f"{section}.", list(kind.model_fields))
    _check_together(checked)
    return checked


def _likeness(kind: type[_Section], values: Mapping[str, Any]) -> tuple[bool, bool, int]:
    """Tell how well values fit a kind of section: networks of a library go by any name."""
    fields = kind.model_fields.keys()
    same_source = ("library" in fields) == ("library" in values)
    return same_source, values.get("name") in _names(kind), len(fields & values.keys())


def check_evaluate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of `evaluate`; raises as `validate` does."""
    options = {key: value for key, value in values.items() if key != "dataset"}
    dataset = values.get("dataset")
    if not isinstance(dataset, Mapping):
        raise not_a_section("dataset", dataset)
    known = [*Evaluation.model_fields, "dataset"]
    return {
        **_check(Evaluation, options, "", known),
        "dataset": _check(DataNow, dataset, "dataset.", list(DataNow.model_fields)),
    }


def check_format(value: Any) -> str:
    """Check the output format, "table" or "json"; raises as `validate` does."""
    form: str = _check(_Format, {"format": value}, "", ["format"])["format"]
    return form


def _check(
    kind: type[_Section], values: Mapping[str, Any], prefix: str, known: list[str]
) -> dict[str, Any]:
    try:
        return kind.model_validate(dict(values)).model_dump()
    except ValidationError as errors:
        error = errors.errors()[0]
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        listed = ", ".join(known)
        raise UserError(
            f"{prefix}{key}: unknown key; known here: {listed}{did_you_mean(key, known)}"
        )
    if error["type"] == "missing":
        raise UserError(f"{prefix}{key} is missing; it {_demand(kind.model_fields[key])}")
    value = values[key]
    choices = _choices(kind.model_fields[key])
    hint = did_you_mean(str(value), choices) if choices else ""
    raise UserError(f"{prefix}{key}={value}: {_demand(kind.model_fields[key])}{hint}")


def _check_together(config: Mapping[str, Any]) -> None:
    """Check what one option demands of another."""
    if (config["control"] is None) != (config["control_of"] is None):
        raise UserError("control=NAME and control_of=DIRECTORY go together")
    method = config["method"]
    if method.get("sparsity_weight") is not None and method.get("travel") is not None:
        raise UserError("give method.sparsity_weight or method.travel, not both")
    levels = method.get("levels", [1.0])
    if levels != sorted(set(levels)) or not levels:
        raise UserError(f"method.levels={levels}: must be ascending and distinct, at least one")
    if method.get("sandwich") and len(levels) < 2:
        raise UserError(f"method.sandwich=true needs several levels, not method.levels={levels}")
    is_ordered = config["prune"]["order"]
    if method["name"] == "slimming" and levels != [1.0] and not is_ordered:
        raise UserError(
            f"method.levels={levels} with method=slimming needs prune.order=true, so that the "
            "first channels are the important ones"
        )
    if is_ordered and method.get("passes", 1) > 1:
        raise UserError("prune.order=true goes with method.passes=1 only")
    for stage in ("train", "finetune"):
        milestones = config[stage]["milestones"]
        if milestones != sorted(set(milestones)):
            raise UserError(f"{stage}.milestones={milestones}: must be ascending")


def refuse_missing_data(config: Mapping[str, Any]) -> None:
    """Refuse an image folder that is not there; raises UserError."""
    dataset = config["dataset"]
    if dataset["name"] == "imagefolder" and not Path(dataset["root"]).exists():
        raise UserError(
            f"dataset.root={dataset['root']} does not exist; give the directory or zip archive"
        )


def not_a_section(section: str, value: Any) -> UserError:
    """Say that a whole section was replaced by a value."""
    return UserError(f"{section}={value}: must be a section with keys of its own")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _names(kind: type[_Section]) -> tuple[str, ...]:
    field = kind.model_fields.get("name")
    return _choices(field) if field else ()


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _demand(field: FieldInfo) -> str:
    """Say what a field must be, from its type and bounds."""
    annotation, bounds = field.annotation, list(field.metadata)
    optional = ""
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(a for a in get_args(annotation) if a is not type(None))
        optional = ", or null"
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        bounds += [b for m in more for b in (m.metadata if isinstance(m, FieldInfo) else [m])]
    if get_origin(annotation) is Literal:
        return f"must be one of {', '.join(get_args(annotation))}{optional}"
    if get_origin(annotation) is list:
        item = get_args(annotation)[0]
        bounds = [b for m in get_args(item)[1:] for b in m.metadata]
        return f"must be a list of numbers{_interval(bounds)}, such as [0.5,0.75]"
    nouns = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return f"must be {nouns[annotation]}{_interval(bounds)}{optional}"  # type: ignore[index]


def _interval(bounds: list[Any]) -> str:
    """Write bounds as " in [0, 1)" or " >= 1"."""
    low = next((b for b in bounds if isinstance(b, limits.Ge | limits.Gt)), None)
    high = next((b for b in bounds if isinstance(b, limits.Le | limits.Lt)), None)
    if low is None:
        return ""
    closed, least = isinstance(low, limits.Ge), getattr(low, "ge", getattr(low, "gt", None))
    if high is None:
        return f" >= {least}" if closed else f" > {least}"
    start = f"{'[' if closed else '('}{least}"
    end = f"{high.le}]" if isinstance(high, limits.Le) else f"{high.lt})"
    return f" in {start}, {end}"
