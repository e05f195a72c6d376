"""A run: train -> prune -> finetune, straight down, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from chanprune.pipeline import stages
from chanprune.pipeline.job import Job, Watch
from chanprune.pipeline.network import Facts, Network
from chanprune.pipeline.prepare import Prepared, make_method
from chanprune.pipeline.products import write_products
from chanprune.pipeline.record import Record, quiet_writers
from chanprune.pipeline.reuse import StageCache, training_depends_on
from chanprune.processes import ranks
from chanprune.processes.errors import RunError
from chanprune.processes.interruption import Interruption

ALONE = nullcontext()


def run(
    config: Mapping[str, Any],
    prepared: Prepared,
    run_dir: Path,
    cache_dir: Path | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Do one experiment.

    Args:
        config: The configuration that was prepared.
        prepared: Its data and network; the network is used up.
        run_dir: An existing directory; everything is written there.
        cache_dir: Where runs that train alike find each other's train stage; None: nowhere.
        watch: Called after each epoch of fine-tuning; what it raises ends the run, which the same
            call goes on with.

    Returns:
        What summary.json holds; nothing in the processes that do not write it.

    Raises:
        UserError: So many channels cannot go.
        RunError: Training failed, or a file could not be written.
        Interrupted: A signal came; the same call goes on.
    """
    cache = None
    if cache_dir and ranks.is_first() and config["train"]["epochs"]:
        cache = StageCache(cache_dir, training_depends_on(config, prepared), run_dir)
    try:
        with Interruption() as interruption, quiet_writers():
            job = Job(
                config,
                prepared.dataset,
                prepared.device,
                prepared.architecture,
                prepared.prune,
                run_dir,
                Record(run_dir),
                interruption,
                watch,
                cache_dir,
            )
            job.introduce(prepared.network)
            for note in prepared.notes:
                job.record.say(note)
            return _run(job, prepared.network, cache)
    except OSError as error:
        raise RunError(
            f"{error.filename or run_dir}: {error.strerror or error}; what was saved stays, and "
            "the same command goes on"
        ) from error


def _run(job: Job, network: Network, cache: StageCache | None) -> dict[str, Any]:
    """Do one stage after the other."""
    facts = Facts()

    def do(stage: Callable[..., stages.Outcome], *arguments: Any) -> None:
        nonlocal network, facts
        network, said = stage(network, job, *arguments)
        for line in said.lines:
            job.record.say(line)
        facts += said

    trains = job.config["train"]["epochs"] or job.config["finetune"]["epochs"]
    cost = job.cost_of_a_step(network) if trains else None
    passes = make_method(job.config).passes
    for turn in range(1, passes + 1):
        number = f"-{turn}" if passes > 1 else ""
        method = make_method(job.config)
        shared = cache.claim(f"train{number}", job.record, job.interruption) if cache else ALONE
        if job.config["train"]["epochs"]:
            with shared if turn == 1 else ALONE:
                do(stages.train, method, f"train{number}")
        else:
            do(stages.given)
        if method.prunes:
            do(stages.settle, method, number)
        if method.converts:
            do(stages.convert, method)
        elif method.prunes:
            whole = network
            do(stages.prune, method, number)
            do(stages.refitted, whole, facts.prunings[-1], number)
            do(stages.recalibrated, number)
        do(stages.order)
        hooks = method.finetune_hooks(network.graph)
        if hooks is not None and job.config["finetune"]["epochs"] > 0:
            product = replace(network, model=method.product(network.model))
            facts += stages.levels(product, job, method, facts.rows[-1].stage)[1]
            do(stages.train, hooks, f"finetune{number}")
            do(stages.order)
        network = replace(network, model=method.product(network.model))
        do(stages.levels, method, facts.rows[-1].stage)
    return write_products(network, facts, cost, job) if ranks.is_first() else {}
