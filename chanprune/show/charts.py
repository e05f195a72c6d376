"""Charts as data: what there is to see of a run. `chanprune.show.pictures` draws them.

A title names the run, a heading what of it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = Sequence[float]


@dataclass(frozen=True)
class Chart:
    """One picture.

    Attributes:
        name: Its file name, without the ending.
        heading: What it shows.
    """

    name: str
    heading: str

    @property
    def file(self) -> str:
        """Name of its file, whatever a method calls it."""
        return f"{re.sub('[^A-Za-z0-9_-]', '_', self.name)}.png"


@dataclass(frozen=True)
class KeptChannels(Chart):
    """How many channels each channel group kept.

    Attributes:
        widths: Group -> (kept, original).
    """

    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class SortedScores(Chart):
    """All scores in ascending order, the cut, and the cliff where one shows.

    Attributes:
        scores: Of every channel that could be pruned.
        removed: How many went.
        threshold: The largest that went; nan if none did.
        what: What the scores are.
    """

    scores: Values
    removed: int
    threshold: float
    what: str


@dataclass(frozen=True)
class Profiles(Chart):
    """A curve over the channels of each channel group, first to last.

    Attributes:
        panels: Title of a panel -> group -> values of its channels.
        what: What the values are.
        order: What the order of the channels means.
    """

    panels: Mapping[str, Mapping[str, Values]]
    what: str = "|batch-norm scale|"
    order: str = "channel, from first to last (%)"


@dataclass(frozen=True)
class Levels(Chart):
    """Accuracy over MACs, a curve through the fidelity levels of each network.

    Attributes:
        curves: Label -> its levels, each with "fidelity", "test_accuracy" in [0, 1] and "macs".
    """

    curves: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class AccuracyByShare(Chart):
    """Accuracy over the share of the channels, a curve for each method.

    Attributes:
        curves: Label -> share, in (0, 1] -> test accuracies, in [0, 1], of all seeds.
    """

    curves: Mapping[str, Mapping[float, Values]]


@dataclass(frozen=True)
class SharesByEpoch(Chart):
    """One share over the epochs, and below it another one of each channel group.

    Attributes:
        epochs: Their numbers.
        whole: What the share above is, and its values, in [0, 1].
        groups: Group -> its values, in [0, 1].
        of_groups: What the shares below are.
    """

    epochs: Sequence[int]
    whole: tuple[str, Values]
    groups: Mapping[str, Values]
    of_groups: str


@dataclass(frozen=True)
class NumbersByEpoch(Chart):
    """Numbers of channels, a panel for each kind, a line for each layer, a column for each epoch.

    Attributes:
        epochs: Their numbers.
        panels: Kind -> layer -> numbers.
        when: What the columns are.
    """

    epochs: Sequence[int]
    panels: Mapping[str, Mapping[str, Sequence[int]]]
    when: str


@dataclass(frozen=True)
class Kernels(Chart):
    """Where layers look: the middle of a field is a pixel's own channel, whose weight is told.

    Attributes:
        fields: Layer -> (2R + 1, 2R + 1) absolute weights.
    """

    fields: Mapping[str, npt.NDArray[np.float32]]


def sorted_profiles(what: str, values: Mapping[str, Any]) -> Profiles:
    """Show values of channels, group by group, the largest first.

    Args:
        what: What the values are; it names the picture.
        values: Group -> (C,) tensor or array.
    """
    groups = {name: sorted(own.tolist(), reverse=True) for name, own in values.items()}
    return Profiles(
        what.replace(" ", "_"), what, {"": groups}, what, "channels of a layer, sorted (%)"
    )


def of_kind(metrics: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[Any]]:
    """Gather the metrics "kind.name" of all epochs, 0 where there is none: name -> values."""
    keys = dict.fromkeys(key for line in metrics for key in line if key.startswith(f"{kind}."))
    return {key.removeprefix(f"{kind}."): [line.get(key, 0) for line in metrics] for key in keys}
