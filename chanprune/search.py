"""Search options for accuracy against MACs or latency, with Optuna: `python -m chanprune.search`.

Every trial is a run, in the directory that it would have by itself, and trials that train alike
train once. The same command goes on, and a trial that was stopped first of all; started several
times, here or on hosts that share the files, its processes work on one search. Accuracy is that on
the held-out images; the test set chooses nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.config import cli, workers
from chanprune.config.asked import place
from chanprune.config.composing import refuse_what_runs_code
from chanprune.config.space import Space
from chanprune.files.digest import digest
from chanprune.processes.errors import RunError, UserError, one_line
from chanprune.processes.texts import as_called
from chanprune.searching.trials import Work, measured_together
from chanprune.train import train

if TYPE_CHECKING:
    from chanprune.searching.results import Cost

EXAMPLES = """
  python -m chanprune.search --trials 30 dataset=cifar10 model=vgg16 \\
      'prune.ratio=interval(0.3,0.8)' method.sparsity_weight=1e-4,3e-4,1e-3
  python -m chanprune.search --cost latency prune.latency.runtime=ort --workers 2 \\
      hydra/launcher=joblib hydra.launcher.n_jobs=2 'prune.ratio=interval(0.3,0.8)'

what may vary: KEY=A,B,C (one of these), KEY=range(1,10,2) (one of these),
'KEY=interval(A,B)' and 'KEY=tag(log,interval(A,B))' (any number in between)
"""


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
    parser.add_argument(
        "--cost",
        choices=("macs", "latency"),
        default="macs",
        help="beside accuracy (macs); latency is measured as prune.latency.* says",
    )
    parser.add_argument("--config-dir", type=Path, help="adds configuration files of your own")
    parser.add_argument("--dir", type=Path, help="default: outputs/search/<hash of the arguments>")
    parser.add_argument("--storage", metavar="URL", help="a database, instead of a file in --dir")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, which hydra/launcher=... starts (1)"
    )
    options = parser.parse_intermixed_args()
    with one_line():
        search(
            options.arguments,
            options.trials,
            options.dir,
            options.config_dir,
            cost=options.cost,
            storage=options.storage,
            processes=options.workers,
        )


def search(
    arguments: Sequence[str],
    trials: int,
    folder: Path | None,
    config_dir: Path | None = None,
    *,
    cost: Cost = "macs",
    storage: str | None = None,
    processes: int = 1,
) -> None:
    """Do so many trials, or what is left of them, and write table.md, trials.csv and pareto.png.

    Args:
        arguments: KEY=VALUE as `train` takes them; some leave a choice.
        trials: How many, with those that are done, by all processes together.
        folder: Where the search is kept; None: the same for the same arguments.
        config_dir: Has configuration files of the user's own.
        cost: What is to be small: MACs, or the share of the whole network's time.
        storage: The address of a database; None: the study is a file in the folder.
        processes: How many work here, started by the launcher that the arguments name.

    Raises:
        UserError: The arguments cannot be, or the folder has another search.
        RunError: No trial succeeded.
    """
    launcher, own = workers.split(arguments)
    if processes < 1 or (launcher and processes == 1):
        raise UserError(f"--workers={processes}: must be at least {2 if launcher else 1}")
    if processes > 1 and not launcher:
        raise UserError(f"--workers={processes}: what starts them? Give hydra/launcher=joblib, say")
    folders = cli.config_folders([] if config_dir is None else [f"--config-dir={config_dir}"])
    cli.checked(launcher, folders=folders)
    checked = tuple(cli.checked(own, folders=folders))
    _refuse(checked, folders, cost)
    asked = digest([sorted(own), cost] if cost != "macs" else sorted(own), 8)
    folder = folder or Path("outputs", "search", asked)
    work = Work(train, checked, tuple(folders), trials, folder, cost, storage or None, asked)
    if processes > 1:
        work.place()
        workers.launch(work, processes, launcher, folder)
    else:
        work()
    _tell(work)


def _refuse(arguments: Sequence[str], folders: Sequence[Path], cost: Cost) -> None:
    """Refuse what some trial could not be, or could not be compared by; raises UserError."""
    alike: dict[str, Any] = {}
    for corner in Space(arguments).corners():
        refuse_what_runs_code("config", folders, corner)
        composed = cli.composed("config", corner, folders)
        place(composed)
        parts = {key: composed[key] for key in ("dataset", "model", "device")}
        for key, value in {**parts, "prune.latency": composed["prune"]["latency"]}.items():
            if cost == "latency" and alike.setdefault(key, value) != value:
                raise UserError(
                    f"--cost=latency: {key} must be the same in all trials, as they are compared "
                    "by the share of the whole network's time"
                )


def _tell(work: Work) -> None:
    """Write what was found, and print the table; raises RunError."""
    from chanprune.searching.results import written

    workplace = work.place()
    with workplace.alone() as study:
        done = [trial for trial in study.trials if trial.values is not None]
        if not done:
            raise RunError("no trial succeeded; see what each said above")
        again = measured_together(work, workplace, done) if work.cost == "latency" else {}
        print(f"\n{written(work.folder, study.trials, work.cost, again)}")


if __name__ == "__main__":
    main()
