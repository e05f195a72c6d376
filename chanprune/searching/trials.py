"""What each process of a search does: trials, which are runs, and their cost."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.config import cli
from chanprune.config.asked import place
from chanprune.config.space import Space
from chanprune.processes.errors import Interrupted, RunError, UserError
from chanprune.records.schemas import read_summary
from chanprune.searching.storage import the_optuna
from chanprune.searching.workplace import Claim, Workplace

if TYPE_CHECKING:
    import optuna

    from chanprune.searching.latency import Terms
    from chanprune.searching.results import Again, Cost

MARGIN = 0.02  # a trial is hopeless that is so far below one that has no more MACs
THREADS, TOGETHER = "threads", "measured together"  # of a study
Train = Callable[..., Mapping[str, str]]


@dataclass(frozen=True)
class Work:
    """What each process of a search does; picklable.

    Attributes:
        train: Does a run, see `chanprune.train.train`.
        arguments: KEY=VALUE, of which some leave a choice.
        folders: Have the configuration files.
        trials: How many there are to be.
        folder: Where the search is kept.
        cost: What is weighed against accuracy.
        storage: The address of a database, if any.
        asked: A digest of what is searched.
    """

    train: Train
    arguments: tuple[str, ...]
    folders: tuple[Path, ...]
    trials: int
    folder: Path
    cost: Cost
    storage: str | None
    asked: str

    def place(self) -> Workplace:
        """Open the search; raises UserError."""
        return Workplace(self.folder, self.storage, self.asked)

    def __call__(self) -> None:
        """Do trials until all are done."""
        workplace, space = self.place(), Space(self.arguments)
        terms = partial(_terms, self, workplace) if self.cost == "latency" else None
        objective = Objective(self.train, workplace, self.folders, terms)
        while (claim := workplace.claim(self.trials, space.draw)) is not None:
            try:
                _do_trial(workplace, objective, claim)
            finally:
                claim.lock.release()


def _do_trial(workplace: Workplace, objective: Objective, claim: Claim) -> None:
    """Do a trial; one that a signal stops is taken up when the search goes on."""
    optuna = the_optuna()
    states, trial = optuna.trial.TrialState, claim.trial
    try:
        workplace.tell(trial, objective(trial, claim.arguments))
    except Interrupted:
        raise
    except optuna.TrialPruned as reason:
        print(f"trial {trial.number} given up: {reason}")
        workplace.tell(trial, state=states.PRUNED)
    except (UserError, RunError) as error:
        print(f"trial {trial.number} failed: {error}")
        workplace.tell(trial, state=states.FAIL)
    except Exception as error:
        traceback.print_exc()
        print(f"trial {trial.number} failed: {type(error).__name__}: {error} (a bug; see above)")
        workplace.tell(trial, state=states.FAIL)


class Objective:
    """A trial: a run; its validation accuracy and its cost.

    Where the cost is MACs, a trial ends early if, from the middle of fine-tuning on, one that has
    no more MACs was more accurate by a margin after the same epoch. What time a network takes is
    not known before it is done.

    Args:
        train: Does a run.
        workplace: Holds the trials that are done.
        folders: Have the configuration files.
        terms: Returns for a configuration how time is measured; None: the cost is MACs.
    """

    def __init__(
        self,
        train: Train,
        workplace: Workplace,
        folders: Sequence[Path],
        terms: Callable[[Mapping[str, Any]], Terms] | None,
    ):
        self.train = train
        self.workplace = workplace
        self.folders = folders
        self.terms = terms

    def __call__(self, trial: optuna.Trial, arguments: Sequence[str]) -> tuple[float, float]:
        """Run; return validation accuracy in [0, 1] and the cost."""
        from chanprune.searching.results import told

        shown = " ".join(f"{key}={value}" for key, value in told(trial.params).items())
        print(f"\ntrial {trial.number}: {shown}", flush=True)
        composed = cli.composed("config", arguments, self.folders)
        epochs = composed["finetune"]["epochs"]

        def watch(epoch: int, accuracy: float, macs: int) -> None:
            self.workplace.note(trial, {f"after {epoch}": accuracy})
            if self.terms is None and epoch < epochs and 2 * epoch >= epochs:
                self._give_up_if_hopeless(epoch, accuracy, macs)

        run_dir = place(composed)
        self.workplace.note(trial, {"run": str(run_dir)})
        with self.workplace.only_one(run_dir):
            run = Path(self.train(composed, watch)["run"])
            last = read_summary(run).final
            found = {"test_accuracy": last.test_accuracy, "macs": last.macs}
            cost = float(last.macs)
            if self.terms is not None:
                timed = _timed(run, self.terms(composed))
                cost = timed["latency"]
                found |= timed
        self.workplace.note(trial, found)
        assert last.val_accuracy is not None
        return last.val_accuracy, cost

    def _give_up_if_hopeless(self, epoch: int, accuracy: float, macs: int) -> None:
        optuna = the_optuna()
        for other in self.workplace.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
            theirs = other.user_attrs.get(f"after {epoch}", 0.0)
            if other.values[1] <= macs and theirs >= accuracy + MARGIN:
                raise optuna.TrialPruned(
                    f"trial {other.number}, with no more MACs, was better by then"
                )


def _terms(work: Work, workplace: Workplace, composed: Mapping[str, Any]) -> Terms:
    """Return how time is measured: with as many threads in all processes as in the first."""
    import torch

    from chanprune.searching.latency import Terms

    with workplace.alone() as study:
        if THREADS not in study.user_attrs:
            study.set_user_attr(THREADS, torch.get_num_threads())
        return Terms.of(composed, study.user_attrs[THREADS])


def _timed(run: Path, terms: Terms) -> dict[str, Any]:
    from chanprune.searching.latency import processor, shares

    (share,) = shares([run], terms)
    print(
        f"latency: {share.median:.1%} of the whole network's ({share.low:.1%} to {share.high:.1%})"
    )
    return {
        "latency": share.median,
        "latency_low": share.low,
        "latency_high": share.high,
        "processor": processor(terms),
    }


def measured_together(
    work: Work, workplace: Workplace, done: Sequence[optuna.trial.FrozenTrial]
) -> Again:
    """Measure again, all in turns, what may be best; once for the same trials."""
    from chanprune.searching.latency import shares
    from chanprune.searching.results import may_be_best

    study = workplace.study
    those = may_be_best(done)
    known = study.user_attrs.get(TOGETHER, {})
    if known.keys() != {f"{trial.number}" for trial in those}:
        (corner, *_) = Space(work.arguments).corners()
        terms = _terms(work, workplace, cli.composed("config", corner, work.folders))
        timed = shares([Path(trial.user_attrs["run"]) for trial in those], terms)
        known = {
            f"{trial.number}": [share.median, share.low, share.high]
            for trial, share in zip(those, timed, strict=True)
        }
        study.set_user_attr(TOGETHER, known)
    return {int(number): (m, low, high) for number, (m, low, high) in known.items()}
