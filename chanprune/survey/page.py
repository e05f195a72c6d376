"""The results of a survey as Markdown: a summary, then a table of the networks of each library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from chanprune.processes.texts import printable
from chanprune.survey.attempt import OUTCOMES

HEADS = (
    *("network", "file", "params", "may go %", "MACs", "MACs left %", "error"),
    *("trace s", "compact s", "outcome"),
)
RIGHT = {"params", "may go %", "MACs", "MACs left %", "error", "trace s", "compact s"}


def as_markdown(rows: Iterable[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Format results.

    Args:
        rows: What `attempt` found, all at the same ratio.
        versions: Library -> its version.
    """
    libraries: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        libraries.setdefault(library_of(row["network"]), []).append(row)
    ratio = next(row["ratio"] for found in libraries.values() for row in found)
    counted = [[_titled(library, versions), *_counts(libraries[library])] for library in libraries]
    parts = [
        "# Atlas: what becomes of networks that nobody here chose",
        f"Random weights; {100 * ratio:g} % of the channels that may go are taken away by the L1 "
        "norm of their filters, coupled ones together.",
        "*Proven*: the compact network equals the masked one in float64 to the error shown. "
        "*Refused*: by name, with the reason. *Fault*: anything else, a bug. *Timeout*, *memory*: "
        "more than a network was allowed. *May go*: the share of the channels, the image's apart, "
        "that are in groups which may lose some. MACs are those of one image. Compaction is timed "
        "with its self-check.",
        _table(("library", "networks", *OUTCOMES), counted, {"networks", *OUTCOMES}),
    ]
    for library, found in libraries.items():
        ordered = sorted(found, key=lambda row: str(row["network"]))
        reasons = [_reason(row) for row in ordered if row["said"]]
        parts += [f"## {_titled(library, versions)}", _table(HEADS, map(_cells, ordered), RIGHT)]
        parts += ["Not proven:", "\n".join(reasons)] if reasons else []
    return "\n\n".join(parts) + "\n"


def library_of(network: str) -> str:
    """Return a network's library, or the module of a user's own."""
    return network.partition(":" if ":" in network else "/")[0]


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    """Say in a few words how many networks had which outcome."""
    numbers = dict(zip(OUTCOMES, _counts(list(rows))[1:], strict=True))
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number != "0")


def _counts(rows: list[Mapping[str, Any]]) -> list[str]:
    outcomes = [row["outcome"] for row in rows]
    return [f"{len(rows)}", *(f"{outcomes.count(outcome)}" for outcome in OUTCOMES)]


def _titled(library: str, versions: Mapping[str, str]) -> str:
    return f"{library} {versions.get(library, '')}".strip()


def _bare(row: Mapping[str, Any]) -> str:
    name: str = row["network"]
    return name[len(library_of(name)) + 1 :]


def _reason(row: Mapping[str, Any]) -> str:
    return printable(f"- {_bare(row)}: {row['outcome']}: {row['said']}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        _bare(row),
        row.get("family", ""),
        f"{row['params'] / 1e6:,.2f} M" if "params" in row else "",
        _percent(row, "prunable", "channels"),
        f"{row['macs'] / 1e6:,.0f} M" if "macs" in row else "",
        _percent(row, "macs_left", "macs"),
        f"{row['error']:.0e}" if "error" in row else "",
        f"{row['trace_seconds']:.2f}" if "trace_seconds" in row else "",
        f"{row['compact_seconds']:.1f}" if "compact_seconds" in row else "",
        row["outcome"],
    ]


def _percent(row: Mapping[str, Any], part: str, whole: str) -> str:
    return f"{100 * row[part] / row[whole]:.1f}" if row.get(whole) else ""


def _table(heads: tuple[str, ...], cells: Iterable[list[str]], right: set[str]) -> str:
    escaped = [[printable(text).replace("|", "\\|") for text in line] for line in cells]
    align = ["right" if head in right else "left" for head in heads]
    return tabulate(escaped, heads, tablefmt="github", colalign=align, disable_numparse=True)
