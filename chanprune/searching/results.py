"""What a search found, as table.md, trials.csv and pareto.png."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tabulate import tabulate

from chanprune.files.writing import write_text
from chanprune.show.pareto import accuracy_over_cost, pareto
from chanprune.show.pictures import save

if TYPE_CHECKING:
    import optuna

    Trial = optuna.trial.FrozenTrial
Cost = Literal["macs", "latency"]
Again = Mapping[int, tuple[float, float, float]]  # trial -> share of the time, and quartiles
NAMES: dict[Cost, str] = {"macs": "MACs", "latency": "latency"}
DOUBT = 1.5  # times as slow as one that is as accurate: beyond, that is no error of measurement


def may_be_best(trials: Sequence[Trial]) -> list[Trial]:
    """Return those that no other beats so clearly that measuring again is of no use."""
    return [
        own
        for own in trials
        if not any(
            other.values[0] >= own.values[0] and DOUBT * other.values[1] < own.values[1]
            for other in trials
        )
    ]


def best_of(trials: Sequence[Trial], again: Again) -> list[Trial]:
    """Return those that no other beats, by cost: as told, or measured again where that was done."""
    costs = {t.number: again[t.number][0] if again else t.values[1] for t in trials}
    front = pareto([(f"{t.number}", costs[t.number], t.values[0]) for t in trials])
    labels = [int(label) for label, _, _ in front]
    best = set(labels)
    for trial in trials:  # as good as one of them
        best |= {
            trial.number
            for _, cost, accuracy in front
            if (costs[trial.number], trial.values[0]) == (cost, accuracy)
        }
    return sorted((t for t in trials if t.number in best), key=lambda t: costs[t.number])


def written(folder: Path, trials: Sequence[Trial], cost: Cost, again: Again) -> str:
    """Write what was found; return the table of what no other trial beats in both.

    Args:
        folder: Where it goes.
        trials: All of the study.
        cost: What counts beside accuracy.
        again: The networks that were measured again.
    """
    done = [trial for trial in trials if trial.values is not None]
    best = best_of([t for t in done if not again or t.number in again], again)
    labels = {trial.number: "beaten by no other" for trial in best}
    points = [
        (
            labels.get(t.number, "beaten"),
            again[t.number][0] if t.number in again else t.values[1],
            t.values[0],
        )
        for t in done
    ]
    axis = (1e6, "million MACs of one image") if cost == "macs" else (0.01, "% of the whole's time")
    figure = accuracy_over_cost(points, "validation", f"{len(done)} trials", axis=axis)
    save(figure, folder / "pareto.png")
    rows = [_row(trial, again) for trial in best]
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    text = (
        f"Of {len(done)} trials that were done these are beaten by no other in both validation "
        f"accuracy and {NAMES[cost]}:\n\n{table}\n"
    )
    write_text(folder / "table.md", text)
    write_text(folder / "trials.csv", _as_csv(trials, cost))
    return f"{text}\nin {folder}: table.md, trials.csv, pareto.png"


def _as_csv(trials: Sequence[Trial], cost: Cost) -> str:
    """Return a CSV table with a row for each trial, those too that were given up."""
    text = io.StringIO()
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    heads = ["trial", "state", "val_accuracy", "test_accuracy", "macs"]
    heads += ["latency", "latency_low", "latency_high", "processor"] if cost == "latency" else []
    writer = csv.DictWriter(
        text, [*heads, *keys, "worker", "run"], lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for trial in trials:
        values = dict(zip(("val_accuracy", cost), trial.values or (), strict=False))
        number = {"trial": trial.number, "state": trial.state.name.lower()}
        writer.writerow({**number, **values, **trial.params, **trial.user_attrs})
    return text.getvalue()


def _row(trial: Trial, again: Again) -> dict[str, str]:
    """Return the line of a trial that is done."""
    timed = {}
    if again:
        share, low, high = (100 * part for part in again[trial.number])
        timed = {"latency % of whole": f"{share:.1f} ({low:.1f} to {high:.1f})"}
    return {
        "trial": f"{trial.number}",
        "val acc %": f"{100 * trial.values[0]:.2f}",
        "test acc %": f"{100 * trial.user_attrs['test_accuracy']:.2f}",
        **timed,
        "MACs": f"{trial.user_attrs.get('macs', trial.values[1]):,.0f}",
        **told(trial.params),
        "run": trial.user_attrs["run"],
    }


def told(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that a trial tries, as they are shown."""
    return {k: f"{v:.4g}" if isinstance(v, float) else f"{v}" for k, v in params.items()}
