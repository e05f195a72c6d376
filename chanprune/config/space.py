"""What a search may vary, as sweeps of Hydra's say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from chanprune.processes.errors import UserError


class Draw(Protocol):
    """A trial of Optuna's, as far as it is asked here."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number in between."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Return one of the choices."""


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

    def draw(self, trial: Draw) -> list[str]:
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
