"""Take channels out of a trained network, without training it: `python -m chanprune.prune`."""

from __future__ import annotations

from chanprune.config import cli
from chanprune.config.asked import place
from chanprune.train import train


def main() -> None:
    """Compose, validate, prune: a run whose train stage has no epochs."""
    cli.main("prune", train, place)


if __name__ == "__main__":
    main()
