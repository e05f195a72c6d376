"""A plan: which channels of the original network are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Channel group -> kept channel indices of the original network, ascending.

    A group that is not named keeps all its channels; one with an empty list keeps none, which only
    works where something else reaches what it fed (a shortcut, other dense layers). A plan knows
    nothing of weights, so that one plan serves the parameters, the optimiser's state and a network
    that has yet to be loaded.

    Attributes:
        kept: Group name -> kept indices.
    """

    kept: dict[str, tuple[int, ...]]

    def __init__(self, kept: Mapping[str, Iterable[int]]):
        """Check and store the kept indices.

        Raises:
            ValueError: The indices of a group are negative, repeated or unsorted.
        """
        checked = {name: tuple(int(i) for i in indices) for name, indices in kept.items()}
        for name, indices in checked.items():
            if (indices and indices[0] < 0) or any(
                a >= b for a, b in zip(indices, indices[1:], strict=False)
            ):
                raise ValueError(
                    f"the kept channels of {name!r} must be ascending, distinct and not negative"
                )
        object.__setattr__(self, "kept", checked)

    def then(self, later: Plan) -> Plan:
        """Compose two rounds: `later` counts the channels that this plan kept.

        Raises:
            ValueError: `later` keeps a channel that this plan dropped already.
        """
        kept: dict[str, Sequence[int]] = dict(self.kept)
        for name, indices in later.kept.items():
            earlier = self.kept.get(name)
            if earlier is None:
                kept[name] = indices
                continue
            if indices and indices[-1] >= len(earlier):
                raise ValueError(
                    f"{name!r} keeps {len(earlier)} channels; no. {indices[-1]} is gone"
                )
            kept[name] = [earlier[i] for i in indices]
        return Plan(kept)

    def to_json(self) -> dict[str, list[int]]:
        """Return the plan as JSON values."""
        return {name: list(indices) for name, indices in self.kept.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            ValueError: See the constructor.
        """
        return cls(values)
