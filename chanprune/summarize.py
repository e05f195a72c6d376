"""Count a network layer by layer, without data or training: `python -m chanprune.summarize`.

Where a budget is given (prune.target_macs=0.5), it shows what that would leave of each layer.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from chanprune.config import cli
from chanprune.config.finished import check_format
from chanprune.config.schema import validate, vouch_for_code

if TYPE_CHECKING:
    from chanprune.channels import ChannelGraph, Counts
    from chanprune.pipeline.preview import Preview

MOST_REASONS = 8
ALIGN = ("left", "left", "right", "right", "right", "right", "right")


def main() -> None:
    """Compose, validate, count."""
    cli.main("summarize", summarize)


def summarize(composed: dict[str, Any]) -> None:
    """Print what a model has and does on a data set's images, and which channels may go."""
    form = check_format(composed.pop("format"))
    vouch_for_code(composed)
    config = validate(composed)
    from chanprune import data
    from chanprune.channels import UnsupportedNetwork, compact, count, trace
    from chanprune.models import architecture, build_skeleton
    from chanprune.pipeline.model_file import original
    from chanprune.pipeline.preview import preview
    from chanprune.processes.errors import UserError

    info = data.describe(**config["dataset"])
    options, plan = original(config["model"])
    built_from = architecture(options, info.input_shape, len(info.class_names))
    model = build_skeleton(**built_from)
    try:
        graph = trace(model, info.input_shape)
        if plan.kept:
            small = compact(model, graph, plan, check=False)
            model, graph = small.model, small.graph
    except UnsupportedNetwork as error:
        raise UserError(str(error)) from error
    counts = count(model, info.input_shape)
    left = preview(config, model, graph, None if plan.kept else built_from)
    if form == "json":
        print(json.dumps(_as_json(counts, graph) | _left_as_json(left)))
        return
    shape = " x ".join(str(size) for size in info.input_shape)
    print(f"{config['model']['name']} on {config['dataset']['name']} ({shape})\n")
    lines = _lines(counts, graph, config["prune"]["coupled"])
    print("\n".join([*lines, *(_left_lines(left, counts) if left else [])]))


def _as_json(counts: Counts, graph: ChannelGraph) -> dict[str, Any]:
    assert counts.tally is not None
    return {
        "params": counts.params,
        "macs": counts.macs,
        "activations": counts.activations,
        "peak_activation_bytes": counts.tally.peak_bytes,
        "conventions": counts.conventions(),
        "layers": [asdict(layer) for layer in counts.layers],
        "groups": [asdict(group) for group in graph.groups.values()],
    }


def _lines(counts: Counts, graph: ChannelGraph, coupled: Any) -> list[str]:
    from chanprune.channels import CONVENTIONS

    assert counts.tally is not None
    rows = [
        [x.name, x.kind, x.input, x.output, f"{x.params:,}", f"{x.macs:,}", f"{x.activations:,}"]
        for x in counts.layers
    ]
    totals = (counts.params, counts.macs, counts.activations)
    rows.append(["total", "", "", "", *(f"{total:,}" for total in totals)])
    heads = ["layer", "kind", "in", "out", "params", "MACs", "activations"]
    table = tabulate(rows, heads, tablefmt="simple", colalign=ALIGN, disable_numparse=True)
    operations = [
        (name, f"{value:,}", CONVENTIONS[name]) for name, value in counts.conventions().items()
    ]
    named = tabulate(operations, tablefmt="plain", colalign=("left", "right", "left"))
    return [
        table,
        "",
        "params: weights, biases, batch-norm scales and shifts. activations: elements that",
        "convolutions and linear layers put out. Held at once for one image, without parameters: "
        f"{counts.tally.peak_bytes / 2**20:.2f} MiB.",
        "",
        "Operations for one image, as papers count them:",
        *(f"  {line}" for line in named.splitlines()),
        "",
        *_channel_lines(graph, coupled),
    ]


def _channel_lines(graph: ChannelGraph, coupled: Any) -> list[str]:
    """Say how many channels may go, and why the others stay."""
    prunable = graph.prunable(coupled)
    whole = [group for group in graph.groups.values() if group not in prunable]
    reasons = Counter(group.whole_because for group in whole)
    size = sum(group.size for group in prunable)
    lines = [f"Channels that may go: {size:,} in {len(prunable)} groups. Groups that stay whole:"]
    examples = {group.whole_because: group for group in whole}
    for reason, number in reasons.most_common(MOST_REASONS):
        group = examples[reason]
        others = f" and {number - 1} more" if number > 1 else ""
        lines.append(f"  {group.name} ({group.size} channels){others}: {reason}")
    left = len(reasons) - MOST_REASONS
    return (
        [*lines, f"  and {left} more reasons (format=json lists all groups)"] if left > 0 else lines
    )


def _left_as_json(left: Preview | None) -> dict[str, Any]:
    if left is None:
        return {}
    widths = {name: after for name, (_, after) in left.widths.items()}
    told = {"params": left.counts.params, "macs": left.counts.macs, "widths": widths}
    return {"left": {**told, "ranked_by": left.how}}


def _left_lines(left: Preview, counts: Counts) -> list[str]:
    """Say what the budget, or the criterion, would leave of each group."""
    rows = [[name, before, after] for name, (before, after) in left.widths.items()]
    total = [sum(row[place] for row in rows) for place in (1, 2)]  # type: ignore[misc]
    table = tabulate([*rows, ["total", *total]], ["group", "channels", "left"], tablefmt="simple")
    params, macs = left.counts.params, left.counts.macs
    return [
        "",
        f"What would be left, ranked by {left.how}:",
        "",
        table,
        "",
        f"params {counts.params:,} -> {params:,} ({100 * (params / counts.params - 1):+.1f} %), "
        f"MACs {counts.macs:,} -> {macs:,} ({100 * (macs / counts.macs - 1):+.1f} %)",
    ]


if __name__ == "__main__":
    main()
