"""The files of a run that are read again, each with its one schema.

What is read is a plain value of the right type and size, or a ValueError that says where it is not.
Nothing here imports PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from chanprune.files.reading import json_if_any, json_of, yaml_of
from chanprune.processes.errors import UserError

FORMAT = 1
MOST_CHANNELS, MOST_PIXELS, MOST_TEXT = 2**20, 8192, 1000

Index = Annotated[int, Field(ge=0, lt=MOST_CHANNELS)]
Size = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Amount = Annotated[float, Field(ge=0)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=MOST_TEXT)]
Kind = TypeVar("Kind", bound=BaseModel)
Indices = Annotated[list[Index], Field(max_length=MOST_CHANNELS)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Architecture(_Record, extra="allow"):
    """Arguments of `models.build`: what all networks take, and options of this one."""

    __pydantic_extra__: dict[
        str, bool | Annotated[int | float, Field(ge=0, le=2**20)] | Name | dict[str, JsonValue]
    ]
    name: Name
    num_classes: Size
    in_channels: Size
    image_size: Pixels
    library: Name | None = None


class Wiring(_Record):
    """Copies in a layer: slots, and the channels that they read."""

    slots: Annotated[Indices, Field(min_length=1)]
    sources: Annotated[Indices, Field(min_length=1)]


class Kernels(_Record):
    """A 1x1 convolution that was made one of larger kernels: see `rewiring.expanded`."""

    own: Indices
    copied: Annotated[Indices, Field(min_length=1)]
    radius: Pixels


class Statistics(_Record):
    """Mean and deviation of each channel of the image."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Counts(_Record):
    """What a network costs."""

    params: Number
    macs: Number


class Model(_Record):
    """model.json."""

    format: int
    architecture: Architecture
    expanded: dict[str, Kernels] = {}
    copies: dict[str, Wiring] = {}
    plan: dict[str, Indices]
    input_shape: tuple[Size, Pixels, Pixels] = Field(strict=False)
    class_names: Annotated[list[str], Field(min_length=1, max_length=MOST_CHANNELS)]
    preprocess: Statistics
    counts: Counts
    components: Name | None = None

    @property
    def form(self) -> dict[str, dict[str, Any]]:
        """Return what training made of the architecture, as `rewiring.restore` takes it."""
        return self.model_dump(include={"expanded", "copies"})

    @model_validator(mode="after")
    def _agree(self) -> Model:
        architecture = self.architecture
        if len(self.class_names) != architecture.num_classes:
            raise ValueError(
                f"it has {len(self.class_names)} class names for {architecture.num_classes} classes"
            )
        size = architecture.image_size
        if self.input_shape != (architecture.in_channels, size, size):
            raise ValueError("input_shape is not what the architecture takes")
        statistics = self.preprocess
        if not len(statistics.mean) == len(statistics.std) == architecture.in_channels:
            raise ValueError("preprocess has not one mean and one std for each image channel")
        return self


class Made(_Record, extra="forbid"):
    """model.json of a network of one's own that `chanprune.save` wrote."""

    format: int
    target: Name
    options: dict[str, JsonValue]
    plan: dict[str, Indices]
    example: JsonValue
    counts: Counts
    tensors: Annotated[str, Field(max_length=64)]


class Cost(_Record):
    """What a stage cost."""

    macs: Amount
    images: Amount
    seconds: Amount


class Stage(_Record):
    """A row of a run's table."""

    val_accuracy: Share | None
    test_accuracy: Share | None
    macs: Number
    fidelity: Share = 1.0


class Summary(_Record):
    """summary.json."""

    accuracy: Share | None
    params: Number
    macs: Positive
    cost: dict[str, Cost]
    stages: Annotated[list[Stage], Field(min_length=1)]

    @property
    def final(self) -> Stage:
        """Return the last row of the whole compact network."""
        return [stage for stage in self.stages if stage.fidelity == 1][-1]

    @model_validator(mode="after")
    def _has_final(self) -> Summary:
        if not any(stage.fidelity == 1 for stage in self.stages):
            raise ValueError("no stage is of the whole network")
        return self


class Pass(_Record):
    """What the channels were chosen by: channel group -> scores."""

    scores: dict[str, Annotated[list[float], Field(min_length=1)]]


class Pruned(_Record):
    """plan.json."""

    kept: dict[str, Indices]
    passes: list[Pass] = []


class Timed(_Record):
    """latency.json: the widths that were chosen for a time, by what, and what to say of them."""

    key: Annotated[str, Field(max_length=64)]
    said: Name
    widths: dict[str, Size]


class Named(_Record, extra="allow"):
    """A section of a configuration that has a name."""

    __pydantic_extra__: dict[str, JsonValue]
    name: Name


class Prune(_Record, extra="allow"):
    """The options of pruning that a report knows."""

    __pydantic_extra__: dict[str, JsonValue]
    ratio: Share
    widths: Name | None = None


class Configuration(_Record, extra="allow"):
    """The configuration in config.yaml, of this version of the program or another."""

    __pydantic_extra__: dict[str, JsonValue]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    dataset: Named
    model: Named
    method: Named
    prune: Prune


class Recorded(_Record):
    """config.yaml."""

    config: Configuration
    environment: dict[str, Any]

    @property
    def control(self) -> dict[str, str]:
        """Return "name" of a control and the run that it is "of"; nothing of another run."""
        match self.environment.get("control"):
            case {"name": str(name), "of": str(of)}:
                return {"name": name, "of": of}
        return {}


def read_model(run_dir: Path) -> Model:
    """Read model.json.

    Raises:
        UserError: It is missing or damaged.
    """
    path = run_dir / "model.json"
    try:
        values = json_of(path)
        found = values.get("format", "none") if isinstance(values, dict) else "none"
        if isinstance(found, int) and found != FORMAT:
            raise UserError(f"{path} has format {found}; this version reads format {FORMAT}")
        return _checked(Model, values)
    except FileNotFoundError as error:
        raise UserError(f"there is no model in {run_dir}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_made(folder: Path) -> Made | None:
    """Read model.json of a network that `chanprune.save` wrote; None if it is a run's, or missing.

    Raises:
        UserError: It is damaged.
    """
    path = folder / "model.json"
    try:
        values = json_of(path)
        if isinstance(values, dict) and "target" in values and values.get("format") == FORMAT:
            return _checked(Made, values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return None


def read_summary(run_dir: Path) -> Summary:
    """Read summary.json; raises OSError, or ValueError if it is damaged."""
    return _checked(Summary, json_of(run_dir / "summary.json"))


def read_plan(run_dir: Path) -> Pruned:
    """Read plan.json; raises OSError, or ValueError if it is damaged."""
    return _checked(Pruned, json_of(run_dir / "plan.json"))


def read_certificate(path: Path) -> Timed | None:
    """Read latency.json; None if it is missing or damaged, so that it is measured anew."""
    values = json_if_any(path)
    try:
        return None if values is None else _checked(Timed, values)
    except ValueError:
        return None


def read_record(run_dir: Path) -> Recorded:
    """Read config.yaml; raises OSError, or ValueError if it is damaged."""
    return _checked(Recorded, yaml_of(run_dir / "config.yaml"))


def _checked(kind: type[Kind], values: Any) -> Kind:
    """Return what a file holds, as its schema has it; raises ValueError with the first fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as errors:
        error = errors.errors()[0]
    place = ".".join(map(str, error["loc"]))
    reason = error["msg"].removeprefix("Value error, ")
    raise ValueError(f"{place}: {reason}" if place else reason)
