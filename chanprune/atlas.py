"""Prune networks that nobody here chose, and table what comes of it: `python -m chanprune.atlas`.

python -m chanprune.atlas torchvision timm                all of the one, one of each file of timm
python -m chanprune.atlas resnet50 timm/resnet10t my:net  these; net() of my.py builds your own
python -m chanprune.atlas --page docs/atlas.md            the table of what was found

Every network has a process of its own. What is done is in --out, and not done again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chanprune.processes.errors import UserError, one_line
from chanprune.processes.texts import as_called, printable, shortened

if TYPE_CHECKING:
    from chanprune.survey.results import Results


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=as_called("python -m chanprune.atlas"),
        description=as_called(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="or torchvision, or timm")
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the channels that goes")
    parser.add_argument("--out", type=Path, default=Path("outputs/atlas.jsonl"), metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the table of --out")
    parser.add_argument("--slice", default="1/1", metavar="I/N", help="every N-th from the I-th on")
    parser.add_argument("--seconds", type=float, default=600.0, help="most that a network may take")
    parser.add_argument("--memory", type=float, default=16.0, metavar="GIB", help="likewise")
    parser.add_argument("--image-size", type=int, help="of all networks; default: each one's own")
    options = parser.parse_intermixed_args()
    with one_line():
        _check(options)
        from chanprune.survey.results import Results

        results = Results(options.out)
        if any(row["ratio"] != options.ratio for row in results.rows.values()):
            raise UserError(f"--out={options.out} holds results of another ratio; give another")
        survey(options, results)
        if options.page:
            write_page(options.page, results)


def survey(options: argparse.Namespace, results: Results) -> None:
    """Try every network that is not in the results, and say how each fares."""
    from chanprune.survey.attempt import Terms, attempt
    from chanprune.survey.page import summary

    terms = Terms(options.ratio, options.seconds, options.memory, options.image_size)
    first, step = (int(number) for number in options.slice.split("/"))
    names = _names(options.networks, results)[first - 1 :: step]
    for number, name in enumerate(names, start=1):
        if name not in results.rows:
            row = attempt(name, terms)
            results.add(row)
            print(_line(row, f"{number}/{len(names)}"), flush=True)
    if names:
        print(f"{len(names)} networks: {summary(results.rows[name] for name in names)}")


def write_page(path: Path, results: Results) -> None:
    """Write the results as Markdown."""
    from chanprune.files.writing import write_text
    from chanprune.survey.page import as_markdown

    if not results.rows:
        raise UserError(f"--page={path}: {results.path} holds no results yet; name networks")
    write_text(path, as_markdown(results.rows.values(), dict(list(results.lists))))


def _check(options: argparse.Namespace) -> None:
    if not options.networks and not options.page:
        raise UserError("name networks: torchvision, timm, or single ones; or give --page")
    if not 0 < options.ratio < 1:
        raise UserError(f"--ratio={options.ratio:g}: a share between 0 and 1")
    first, slash, step = options.slice.partition("/")
    if not (slash and first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise UserError(f"--slice={options.slice}: I/N, as 1/4, with I from 1 to N")
    for name in ("seconds", "memory", "image_size"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')}={value:g}: more than 0")


def _names(words: list[str], results: Results) -> list[str]:
    from chanprune.survey.networks import LIBRARIES, full_name, imported, population

    names: dict[str, None] = {}
    for word in words:
        if word not in LIBRARIES:
            names[full_name(word)] = None
            continue
        imported(word)
        version = importlib.metadata.version(word)
        if (word, version) not in results.lists:
            results.add({"library": word, "version": version, "networks": population(word)})
        names |= dict.fromkeys(results.lists[word, version])
    return list(names)


def _line(row: dict[str, Any], number: str) -> str:
    said = row["said"]
    if row["outcome"] == "proven":
        share = row["macs_left"] / row["macs"]
        said = f"error {row['error']:.0e}, {100 * share:.1f} % of the MACs left"
    return shortened(printable(f"{number} {row['network']}: {row['outcome']}: {said}"), 160)


if __name__ == "__main__":
    main()
