"""Search options for accuracy against MACs, with Optuna: `python -m chanprune.search`.

Every trial is a run, in the directory that it would have by itself, and trials that train alike
train once. The search is kept in an SQLite file: the same command goes on, and a trial that was
stopped first of all. Accuracy is that on the held-out images; the test set chooses nothing.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from tabulate import tabulate

from chanprune.config import cli
from chanprune.config.asked import place
from chanprune.config.composing import refuse_what_runs_code
from chanprune.files.digest import digest
from chanprune.files.writing import write_text
from chanprune.processes.errors import RunError, UserError, one_line
from chanprune.processes.texts import as_called
from chanprune.records.schemas import read_summary
from chanprune.train import train

if TYPE_CHECKING:
    import optuna

EXAMPLES = """
  python -m chanprune.search --trials 30 dataset=cifar10 model=vgg16 \\
      'prune.ratio=interval(0.3,0.8)' method.sparsity_weight=1e-4,3e-4,1e-3

what may vary: KEY=A,B,C (one of these), KEY=range(1,10,2) (one of these),
'KEY=interval(A,B)' and 'KEY=tag(log,interval(A,B))' (any number in between)
"""
AGAIN = "again"  # on a trial: the number of the one, left behind, that it repeats
MARGIN = 0.02  # a trial is hopeless that is so far below one that has no more MACs


def main() -> None:
    """Search, and show what is best."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m chanprune.search"),
        description=as_called(__doc__.split("\n\n")[0]),
        epilog=as_called(f"examples:{EXAMPLES}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="+", metavar="KEY=VALUE", help="as train takes them")
    parser.add_argument("--trials", type=int, default=30, help="of the whole search (30)")
    parser.add_argument("--config-dir", type=Path, help="adds configuration files of your own")
    parser.add_argument("--dir", type=Path, help="default: outputs/search/<hash of the arguments>")
    options = parser.parse_intermixed_args()
    with one_line():
        search(options.arguments, options.trials, options.dir, options.config_dir)


def search(
    arguments: Sequence[str], trials: int, folder: Path | None, config_dir: Path | None = None
) -> None:
    """Do so many trials, or what is left of them, and write table.md, trials.csv and pareto.png.

    Args:
        arguments: KEY=VALUE as `train` takes them; some leave a choice.
        trials: How many, with those that are done.
        folder: Where the search is kept; None: the same for the same arguments.
        config_dir: Has configuration files of the user's own.

    Raises:
        UserError: The arguments cannot be, or another process searches there.
        RunError: No trial succeeded.
    """
    folders = cli.config_folders([] if config_dir is None else [f"--config-dir={config_dir}"])
    space = Space(cli.checked(arguments, folders=folders))
    for corner in space.corners():
        refuse_what_runs_code("config", folders, corner)
        place(cli.composed("config", corner, folders))
    if folder is None:
        folder = Path("outputs", "search", digest(sorted(arguments), 8))
    optuna = _optuna()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process searches in {folder}; wait for it") from error
    except OSError as error:
        raise UserError(f"--dir={folder} cannot be written: {error.strerror}") from error
    with lock:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name="chanprune",
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        stopped = _take_up(study)
        ended = [trial for trial in study.trials if trial.state.is_finished()]
        objective = Objective(space, study, folders)
        for _ in range(trials - len(ended) + len(stopped)):
            drawn = len(study.trials) - len(stopped)
            study.sampler = optuna.samplers.TPESampler(seed=drawn)  # one that a restart knows
            _do_trial(study, objective)
        if not study.best_trials:
            raise RunError("no trial succeeded; see what each said above")
        print(f"\n{_written(folder, study)}")


def _do_trial(study: optuna.Study, objective: Objective) -> None:
    """Do a trial; one that a signal stops is taken up when the search goes on."""
    optuna = _optuna()
    states, trial = optuna.trial.TrialState, study.ask()
    try:
        study.tell(trial, objective(trial))
    except optuna.TrialPruned as reason:
        print(f"trial {trial.number} given up: {reason}")
        study.tell(trial, state=states.PRUNED)
    except (UserError, RunError) as error:
        print(f"trial {trial.number} failed: {error}")
        study.tell(trial, state=states.FAIL)


class Space:
    """What may vary.

    Args:
        arguments: KEY=VALUE; sweeps of Hydra's are what varies.

    Raises:
        UserError: Nothing varies.
    """

    def __init__(self, arguments: Sequence[str]):
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        self.fixed = [
            a for a, p in zip(arguments, parsed, strict=True) if not p.is_sweep_override()
        ]
        self.free = [p for p in parsed if p.is_sweep_override()]
        if not self.free:
            raise UserError("nothing varies; give 'prune.ratio=interval(0.3,0.8)', say")

    def corners(self) -> list[list[str]]:
        """Return the arguments of some trials: every choice once, every interval's two ends."""
        ends = [(p.get_key_element(), _values(p)) for p in self.free]
        most = max(len(values) for _, values in ends)
        return [
            [*self.fixed, *(f"{key}={values[min(i, len(values) - 1)]}" for key, values in ends)]
            for i in range(most)
        ]

    def draw(self, trial: optuna.Trial) -> list[str]:
        """Return the arguments of a trial."""
        drawn = []
        for parsed in self.free:
            key, name = parsed.get_key_element(), parsed.get_key_element().lstrip("+")
            value = parsed.value()
            choice: Any
            if isinstance(value, IntervalSweep):
                ends = float(value.start or 0), float(value.end or 0)
                choice = trial.suggest_float(name, *ends, log="log" in value.tags)
            else:
                choice = trial.suggest_categorical(name, _values(parsed))
            drawn.append(f"{key}={choice}")
        return [*self.fixed, *drawn]


def _values(parsed: Override) -> list[str]:
    value = parsed.value()
    if isinstance(value, IntervalSweep):
        return [f"{value.start}", f"{value.end}"]
    return list(parsed.sweep_string_iterator())


class Objective:
    """A trial: a run; its validation accuracy and MACs.

    A trial ends early if, from the middle of fine-tuning on, one that has no more MACs was more
    accurate by a margin after the same epoch.

    Args:
        space: What may vary.
        study: Holds the trials that are done.
        folders: Have the configuration files.
    """

    def __init__(self, space: Space, study: optuna.Study, folders: Sequence[Path]):
        self.space = space
        self.folders = folders
        self.study = study

    def __call__(self, trial: optuna.Trial) -> tuple[float, int]:
        """Run; return validation accuracy in [0, 1] and MACs of one image."""
        overrides = self.space.draw(trial)
        told = " ".join(f"{key}={value}" for key, value in _told(trial.params).items())
        print(f"\ntrial {trial.number}: {told}", flush=True)
        composed = cli.composed("config", overrides, self.folders)
        epochs = composed["finetune"]["epochs"]

        def watch(epoch: int, accuracy: float, macs: int) -> None:
            trial.set_user_attr(f"after {epoch}", accuracy)
            if epoch < epochs and 2 * epoch >= epochs:
                self._give_up_if_hopeless(epoch, accuracy, macs)

        trial.set_user_attr("run", str(place(composed)))
        line = train(composed, watch)
        last = read_summary(Path(line["run"])).final
        trial.set_user_attr("test_accuracy", last.test_accuracy)
        assert last.val_accuracy is not None
        return last.val_accuracy, last.macs

    def _give_up_if_hopeless(self, epoch: int, accuracy: float, macs: int) -> None:
        optuna = _optuna()
        for other in self.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
            theirs = other.user_attrs.get(f"after {epoch}", 0.0)
            if other.values[1] <= macs and theirs >= accuracy + MARGIN:
                raise optuna.TrialPruned(
                    f"trial {other.number}, with no more MACs, was better by then"
                )


def _take_up(study: optuna.Study) -> set[int]:
    """Let trials that a process left behind come first; return all that ever were."""
    states = _optuna().trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        study.tell(trial.number, state=states.FAIL)
    return {trial.user_attrs[AGAIN] for trial in study.trials if AGAIN in trial.user_attrs}


def _written(folder: Path, study: optuna.Study) -> str:
    """Write what was found; return the table of what no other trial beats in both."""
    from chanprune.show.pareto import accuracy_over_macs
    from chanprune.show.pictures import save

    best = sorted(study.best_trials, key=lambda trial: trial.values[1])
    done = [trial for trial in study.trials if trial.values is not None]
    labels = {trial.number: "beaten by no other" for trial in best}
    points = [(labels.get(t.number, "beaten"), t.values[1], t.values[0]) for t in done]
    figure = accuracy_over_macs(points, "validation", f"{len(done)} trials")
    save(figure, folder / "pareto.png")
    table = tabulate(map(_row, best), headers="keys", tablefmt="github", disable_numparse=True)
    text = (
        f"Of {len(done)} trials that were done these are beaten by no other in both validation "
        f"accuracy and MACs:\n\n{table}\n"
    )
    write_text(folder / "table.md", text)
    write_text(folder / "trials.csv", _as_csv(study.trials))
    return f"{text}\nin {folder}: table.md, trials.csv, pareto.png, study.db"


def _as_csv(trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    """Return a CSV table with a row for each trial, those too that were given up."""
    text = io.StringIO()
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    heads = ["trial", "state", "val_accuracy", "test_accuracy", "macs", *keys, "run"]
    writer = csv.DictWriter(text, heads, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for trial in trials:
        values = dict(zip(("val_accuracy", "macs"), trial.values or (), strict=False))
        number = {"trial": trial.number, "state": trial.state.name.lower()}
        writer.writerow({**number, **values, **trial.params, **trial.user_attrs})
    return text.getvalue()


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, str]:
    """Return the line of a trial that is done."""
    return {
        "trial": f"{trial.number}",
        "val acc %": f"{100 * trial.values[0]:.2f}",
        "test acc %": f"{100 * trial.user_attrs['test_accuracy']:.2f}",
        "MACs": f"{trial.values[1]:,.0f}",
        **_told(trial.params),
        "run": trial.user_attrs["run"],
    }


def _told(params: Mapping[str, Any]) -> dict[str, str]:
    return {k: f"{v:.4g}" if isinstance(v, float) else f"{v}" for k, v in params.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'chanprune[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


if __name__ == "__main__":
    main()
