"""The stages of a run. Each takes a network and returns the next one, and what is to be said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from chanprune import rewiring
from chanprune.channels import (
    CompactionError,
    Fidelity,
    Plan,
    Selection,
    compact,
    count,
    order_by,
    prefix_plan,
    recalibrate,
    refit,
    scale_scores,
    trace,
)
from chanprune.criteria import Subject
from chanprune.files.digest import digest
from chanprune.methods import Method, select
from chanprune.pipeline.conversion import convert as converted
from chanprune.pipeline.job import Job
from chanprune.pipeline.latency import Latency, terms_of
from chanprune.pipeline.loop import Stage
from chanprune.pipeline.loop import train as train_epochs
from chanprune.pipeline.network import Facts, Network
from chanprune.pipeline.optimiser import TrainOptions
from chanprune.pipeline.prepare import channels_last, make_criterion
from chanprune.pipeline.pruning import PruneReport, told_of, with_budget
from chanprune.processes.errors import RunError, UserError
from chanprune.processes.parallel import agree
from chanprune.show.charts import Chart, Profiles, SortedScores

Outcome = tuple[Network, Facts]


def train(network: Network, job: Job, method: Method, name: str) -> Outcome:
    """Train or fine-tune, in place; without a penalty the best epoch on validation is kept.

    Args:
        network: The network.
        job: The run.
        method: What is done while training.
        name: "train" or "finetune", or one of these with the number of a pass.
    """
    options = TrainOptions(**job.config[name.partition("-")[0]])
    stage = Stage(
        name,
        job.run_dir / name,
        "last" if method.prunes else "best",
        job.config["seed"],
        job.select,
        digest(network.plan.to_json(), 16),
        job.interruption,
        _watcher(network, job, method, name),
    )
    epoch, cost = train_epochs(
        network.model,
        network.graph,
        job.train_batches(options.batch_size),
        job.split("val"),
        options,
        method,
        stage,
        job.record,
    )
    chose = f" (epoch {epoch}, best on val)" if stage.keep == "best" else ""
    label = name.replace("train", "trained").replace("finetune", "fine-tuned")
    product = replace(network, model=method.product(network.model))
    row = job.measured(product, f"{label}{chose}", cost.seconds)
    return network, Facts(rows=(row,), costs={name: cost})


def given(network: Network, job: Job) -> Outcome:
    """Measure the network with the weights that it was given."""
    began = time.perf_counter()
    row = job.measured(network, "as given", 0.0)
    return network, Facts(rows=(replace(row, seconds=round(time.perf_counter() - began, 2)),))


def _watcher(
    network: Network, job: Job, method: Method, name: str
) -> Callable[[int, Mapping[str, float]], None]:
    """Return what is called after each epoch of a stage."""
    watch = job.watch
    if watch is None or not name.startswith("finetune"):
        return lambda epoch, metrics: None
    macs = count(method.product(network.model), job.input_shape).macs

    def tell(epoch: int, metrics: Mapping[str, float]) -> None:
        if "val_accuracy" in metrics:
            watch(epoch, metrics["val_accuracy"], macs)

    return tell


def settle(network: Network, job: Job, method: Method, number: str) -> Outcome:
    """Let the channel graph take in what training rewired, and show what the method has to show.

    Args:
        network: The trained network.
        job: The run.
        method: What was done while training.
        number: Of the pass, as it is appended to names; "" if there is one.
    """
    form = rewiring.settle(network.model)
    if any(form.values()):
        before = network.graph.groups
        graph = trace(network.model, job.input_shape)
        group_of = {norm: group.name for group in graph.groups.values() for norm in group.norms}
        widths = {
            name if name in graph.groups else group_of[before[name].norms[0]]: width
            for name, width in network.widths.items()
        }
        network = replace(network, graph=graph, widths=widths, form=form)
    metrics = job.record.metrics_of(f"train{number}")
    charts = method.charts(network.model, network.graph, metrics)
    return network, Facts(charts=_numbered(charts, number))


def prune(network: Network, job: Job, method: Method, number: str) -> Outcome:
    """Select channels, compact, check, and measure with and without absorbed constants.

    Raises:
        UserError: So many channels cannot go, or the scores are not those of the channels.
        RunError: The compact network is not what the masked one is.
    """
    began = time.perf_counter()
    model, graph = network.model, network.graph
    try:
        selection, scores, what = _selected(network, job, method)
    except ValueError as error:
        raise UserError(str(error)) from error
    for name, score in scores.items():
        if name not in graph.groups or len(score) != graph.groups[name].size:
            size = graph.groups[name].size if name in graph.groups else 0
            raise UserError(f"the method scores {len(score)} channels of {name}, which has {size}")
    try:
        plan = graph.cut(Plan(selection.kept)).complete
    except ValueError as error:
        raise UserError(f"prune.min_channels=0 empties too much: {error}") from error
    agree(plan)
    try:
        dropped = compact(model, graph, plan)
    except CompactionError as error:
        raise RunError(str(error)) from error
    absorbed = compact(model, graph, plan, absorb="bias", check=False)
    pruned = replace(network, graph=dropped.graph, plan=network.plan.then(plan))
    implied = network.channels - pruned.channels - selection.removed
    narrow = [n for n, s in scores.items() if 1 < len(s) <= job.select.round_to]
    checked = dropped.max_error
    report = PruneReport(selection, scores, implied, checked, absorbed.absorbed, narrow)
    seconds = time.perf_counter() - began
    rows = []
    results = [(dropped, "pruned"), (absorbed, "pruned, constants absorbed")]
    for result, label in results if job.config["prune"]["absorb"] == "bias" else results[::-1]:
        channels_last(result.model)
        pruned = replace(pruned, model=result.model)
        rows.append(job.measured(pruned, f"{label}{number}", seconds))
    return pruned, Facts(
        rows=tuple(rows),
        charts=_numbered(_of_scores(report, what), number),
        lines=(*report.lines(), *method.remarks),
        prunings=(report,),
    )


def _selected(
    network: Network, job: Job, method: Method
) -> tuple[Selection, Mapping[str, Tensor], str]:
    """Return which channels stay, the scores (C,) that this rests on, and what these are.

    Raises:
        ValueError: So many cannot go, or what ranks them needs what is not there.
    """
    model, graph = network.model, network.graph
    options = with_budget(job.select, job.config["prune"], model, graph)
    if terms := terms_of(job.config["prune"]):
        measured = job.cache_dir / "latency" if job.cache_dir else None
        path = job.run_dir / "latency.json"
        target = Latency(model, graph, job.input_shape, terms, measured, path, job.record.say)
        options = replace(options, budget=target)
    criterion = make_criterion(job.config)
    if criterion.is_own:
        method.before_pruning(model, graph, job.training_images)
        return *method.select_channels(model, graph, options), method.score
    subject = Subject(model, graph, job.training_images, job.config["seed"])
    scores = criterion.scores(subject, graph.prunable(options.coupled))
    return select(scores, graph, options), scores, criterion.what


def _of_scores(report: PruneReport, what: str) -> list[Chart]:
    """Show the scores that a pruning rests on, sorted and by channel."""
    scores, selection = report.all_scores(), report.selection
    by_channel = {"": {name: score.tolist() for name, score in report.scores.items()}}
    return [
        SortedScores(
            "scales", "before pruning", scores, selection.removed, selection.threshold, what
        ),
        Profiles("order", "channel by channel", by_channel, what),
    ]


def refitted(
    network: Network, job: Job, whole: Network, pruning: PruneReport, number: str
) -> Outcome:
    """Solve the weights of what is left on training images, in place, if asked for.

    Args:
        network: The pruned network.
        job: The run.
        whole: The network before it was pruned.
        pruning: What went.
        number: Of the pass, as it is appended to names; "" if there is one.
    """
    number_of_images = job.config["prune"]["least_squares"]
    if not number_of_images:
        return network, Facts()
    began = time.perf_counter()
    images = job.training_images(number_of_images)
    cut = whole.graph.cut(whole.graph.cut(Plan(pruning.selection.kept)).complete)
    refits = refit(whole.model, network.model, cut, images)
    row = job.measured(network, f"pruned, least squares{number}", time.perf_counter() - began)
    return network, Facts(rows=(row,), lines=told_of(refits))


def recalibrated(network: Network, job: Job, number: str) -> Outcome:
    """Estimate the batch-norm statistics anew on training images, in place, if asked for."""
    number_of_images = job.config["prune"]["recalibrate"]
    if not number_of_images:
        return network, Facts()
    began = time.perf_counter()
    images = job.training_images(number_of_images)
    recalibrate(network.model, images, job.device)
    seconds = time.perf_counter() - began
    return network, Facts(
        rows=(job.measured(network, f"pruned, statistics anew{number}", seconds),)
    )


def convert(network: Network, job: Job, method: Method) -> Outcome:
    """Turn the network into other forms of its architecture, and measure each."""
    facts = Facts()
    for conversion in method.conversions(network.model):
        began = time.perf_counter()
        options = {**network.options, **conversion.options}
        model, error = converted(network.model, {**job.architecture, **options}, conversion)
        graph = trace(model, job.input_shape)
        network = replace(network, model=model, graph=graph, options=options)
        row = job.measured(network, conversion.label, time.perf_counter() - began)
        exact = f"{conversion.label}: logits as before to {error:.1g}"
        facts += Facts(rows=(row,), lines=(exact,) if conversion.exact else ())
    return network, facts


def order(network: Network, job: Job) -> Outcome:
    """Put the channels with the largest scales first, if that is asked for."""
    if not job.config["prune"]["order"]:
        return network, Facts()
    groups = [network.graph.groups[name] for name in network.widths]
    groups = [group for group in groups if group.norms]
    scores = scale_scores(network.model, network.graph, groups)
    model, places = order_by(network.model, network.graph, scores)
    original = {
        name: network.order.get(name) or network.plan.kept.get(name) or range(len(own))
        for name, own in places.items()
    }
    now = {name: [original[name][place] for place in own] for name, own in places.items()}
    return replace(network, model=model, order={**network.order, **now}), Facts()


def levels(network: Network, job: Job, method: Method, stage: str) -> Outcome:
    """Measure each fidelity level below the whole network, if there are any.

    Args:
        network: The network as it is measured.
        job: The run.
        method: Which levels there are.
        stage: What the table calls the network.
    """
    lower = sorted((level for level in method.levels if level < 1), reverse=True)
    if not lower:
        return network, Facts()
    fidelity = Fidelity(network.model, network.graph)
    rows = []
    for level in lower:
        began = time.perf_counter()
        if method.level_statistics:
            images = job.training_images(method.level_statistics)
            fidelity.estimate(level, images, job.device)
        graph = network.graph.cut(prefix_plan(network.graph, level)).after
        small = replace(network, model=fidelity.extract(level), graph=graph)
        rows.append(job.measured(small, stage, time.perf_counter() - began, level))
    return replace(network, fidelity=fidelity), Facts(rows=tuple(rows))


def _numbered(charts: Sequence[Chart], number: str) -> tuple[Chart, ...]:
    """Append the number of a pass to names and headings."""
    return tuple(
        replace(chart, name=f"{chart.name}{number}", heading=f"{chart.heading}{number}")
        for chart in charts
    )
