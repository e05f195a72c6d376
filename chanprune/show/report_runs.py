"""The finished runs below some folders, put into rows that differ in their seeds alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from chanprune.processes.texts import printable, shortened
from chanprune.records.schemas import Summary, read_record, read_summary

REFERENCES = (("control", "of"), ("prune", "widths"), ("model", "run"))
NAMED = [".".join(place) for place in REFERENCES]
MOST_REFERENCES = 8  # of runs that name a run that names a run


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its configuration without the seed, and what it reached.

    Attributes:
        config: Another run that it names is named by its configuration without the seed. A control
            has "control", its name and the run that it is of.
        network: The options of the whole network.
        val_accuracy: On the held-out part of the training set, in [0, 1].
        test_accuracy: On the test set, in [0, 1].
        trained_macs: Multiply-accumulates of its training.
    """

    folder: Path
    config: Mapping[str, Any]
    network: Mapping[str, Any]
    seed: int
    val_accuracy: float
    test_accuracy: float
    params: int
    macs: int
    seconds: float
    trained_macs: float

    def reached(self) -> tuple[float, ...]:
        """Return what would be the same if the run were done again."""
        return self.val_accuracy, self.test_accuracy, self.params, self.macs


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone.

    Attributes:
        name: What tells the row from the others.
        runs: Seed -> run.
        control_of: The row that it is a control of, by name; "" if it is none.
    """

    name: str
    runs: Mapping[int, Run]
    control_of: str = ""

    @property
    def network(self) -> Mapping[str, Any]:
        """Return the options of the whole network."""
        return next(iter(self.runs.values())).network

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration without the seed."""
        return next(iter(self.runs.values())).config

    def mean(self, attribute: str) -> float:
        """Return the mean over seeds of one of a run's numbers."""
        return float(np.mean([getattr(run, attribute) for run in self.runs.values()]))


class _UnmeasuredError(Exception):
    """A run measured no accuracy."""


def gather(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read all runs below some folders; return them, and a line for each that cannot be read."""
    found, unread = [], []
    paths = (path.parent for folder in folders for path in sorted(folder.rglob("config.yaml")))
    for path in {path.resolve(): path for path in paths}.values():
        try:
            if not (path / "summary.json").exists():
                if _record(path) is not None:
                    unread.append(printable(f"unfinished: {path}"))
                continue
            found.append(_run(path))
        except _UnmeasuredError:
            unread.append(printable(f"without accuracy, left out: {path} (its data has no labels)"))
        except (OSError, ValueError) as error:
            unread.append(printable(f"damaged, left out: {path} ({shortened(f'{error}', 200)})"))
    return found, unread


def _run(folder: Path) -> Run:
    """Read a run; raises OSError or ValueError."""
    record, summary = read_record(folder), read_summary(folder)
    config = record.config.model_dump()
    rest, network = _without_seed(config, record.control, folder)
    costs = [cost for name, cost in summary.cost.items() if name != "whole_network_step"]
    seconds, macs = sum(cost.seconds for cost in costs), sum(cost.macs for cost in costs)
    return Run(folder, rest, network, config["seed"], *_reached(summary), seconds, macs)


def _reached(summary: Summary) -> tuple[float, float, int, int]:
    val_accuracy = summary.final.val_accuracy
    if val_accuracy is None or summary.accuracy is None:
        raise _UnmeasuredError
    return val_accuracy, summary.accuracy, summary.params, summary.macs


def _without_seed(
    config: Mapping[str, Any], control: Mapping[str, str], folder: Path, depth: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's configuration without what differs by seed, and its whole network's options.

    Controls name a run, which is another one for each seed: they are told apart by its `_label`.
    """
    if depth > MOST_REFERENCES:
        raise ValueError("the run that it names is named by itself, or by too many others")
    rest: dict[str, Any] = {key: value for key, value in config.items() if key != "seed"}
    if control.get("name") == "uniform":  # its ratio follows from the run's compute
        rest["prune"] = {key: value for key, value in rest["prune"].items() if key != "ratio"}
        rest["control"] = dict(control)
    network = config["model"]
    for section, key in REFERENCES:
        named = rest.get(section, {}).get(key)
        if named is None:
            continue
        places = [Path(named), *(parent / named for parent in folder.resolve().parents)]
        place = next((place for place in places if _record(place)), None)
        if place is not None:
            record = _record(place)
            theirs, whole = _without_seed(
                record.config.model_dump(), record.control, place, depth + 1
            )
            rest[section] = {**rest[section], key: _label(theirs)}
            network = whole if section == "model" else network
    return rest, network


@cache
def _record(folder: Path) -> Any:
    """Return what a run's config.yaml holds; None if no run is there."""
    try:
        return read_record(folder)
    except (OSError, ValueError):
        return None


def _label(config: Mapping[str, Any]) -> str:
    """Name a configuration without a seed in a few characters."""
    digest = hashlib.sha256(_as_key(config).encode()).hexdigest()[:6]
    return f"{config['method']['name']}-{digest}"


def _as_key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def group(found: Sequence[Run]) -> tuple[list[Row], list[str]]:
    """Put runs into rows, named by what differs between them and in order of their names.

    Returns:
        The rows, and a line for each run whose place another one has, of the same configuration and
        seed and with other results.
    """
    by_config: dict[str, dict[int, Run]] = {}
    doubles = []
    for run in found:
        first = by_config.setdefault(_as_key(run.config), {}).setdefault(run.seed, run)
        if first.reached() != run.reached():
            doubles.append(_told_apart(run, first))
    flat = {key: dict(_flat(json.loads(key))) for key in by_config}
    names = _row_names(flat)
    rows = []
    for key, runs in by_config.items():
        whole = next(iter(runs.values())).network["name"]
        name, of = names[key]
        dataset, model, *rest = name
        network = model if model == whole else f"{model}-{whole}"
        rows.append(Row(printable(" ".join([dataset, network, *rest])), runs, printable(of)))
    return sorted(rows, key=lambda row: row.name), doubles


def _told_apart(run: Run, first: Run) -> str:
    seen = [
        f"{each.folder} ({100 * each.val_accuracy:.2f} % on val, {100 * each.test_accuracy:.2f} % "
        f"on test)"
        for each in (run, first)
    ]
    return printable(
        f"not in the table: {seen[0]}, with the configuration and seed of {seen[1]} and other "
        "results"
    )


def _row_names(flat: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[list[str], str]]:
    """Return the parts of each configuration's name, and the name of what it is a control of."""
    telling = {}
    for key, own in flat.items():
        alike = [other for other in flat.values() if _kind(other) == _kind(own)]
        differing = (k for k in own if any(k in o and o[k] != own[k] for o in alike))
        telling[key] = [k for k in differing if k not in NAMED]
    values = {key: [f"{k}={_as_given(own[k])}" for k in telling[key]] for key, own in flat.items()}
    said = {
        _label(json.loads(key)): " ".join([_names(own)[2], *values[key]])
        for key, own in flat.items()
    }
    names = {}
    for key, own in flat.items():
        labels = [f"{own[k]}" for k in NAMED if own.get(k)]
        of = [said.get(label, label) for label in labels]
        dataset, model, method = _names(own)
        method = f"{own.get('control.name', method)}"
        names[key] = [dataset, model, method, *(f"of [{x}]" for x in of), *values[key]], "".join(of)
    return names


def _as_given(value: Any) -> str:
    """Write a value as the command line takes it."""
    return shortened(value if isinstance(value, str) else json.dumps(value))


def method_of(config: Mapping[str, Any]) -> str:
    """Name a run's method, and the criterion that chose channels in its place, if one did."""
    method, criterion = config["method"]["name"], config.get("criterion", {}).get("name", "own")
    return f"{method}" if criterion == "own" else f"{method}+{criterion}"


def _names(flat: Mapping[str, Any]) -> list[str]:
    dataset, model, method = (flat[f"{section}.name"] for section in ("dataset", "model", "method"))
    sections = {
        "method": {"name": method},
        "criterion": {"name": flat.get("criterion.name", "own")},
    }
    return [str(dataset), str(model), method_of(sections)]


def _kind(flat: Mapping[str, Any]) -> list[str]:
    """Return what rows have in common that are told apart by their options."""
    return [*_names(flat), *(str(flat.get(key)) for key in NAMED)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
