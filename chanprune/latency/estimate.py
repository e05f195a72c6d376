"""How long a network of some widths will take, from the times of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from chanprune.latency.layers import Floats, Workload
from chanprune.latency.tables import Table


@dataclass(frozen=True, eq=False)
class Estimate:
    """A network's time: its layers' times, what its other operations take, and a constant.

    Other operations (norms, activations, sums) read and write memory, so that they take as long as
    there are elements; that a call takes time at all is in the constant. The three factors are
    fitted to whole networks that were timed.

    Attributes:
        work: The network.
        tables: The seconds of each of its layers.
        layer: What a layer's seconds are multiplied by.
        element: Seconds for an element that layers and norms put out.
        constant: Seconds, whatever the widths.
    """

    work: Workload
    tables: Sequence[Table]
    layer: float = 1.0
    element: float = 0.0
    constant: float = 0.0

    def fitted(self, networks: Sequence[tuple[Floats, float]]) -> Estimate:
        """Return the estimate that is nearest to networks whose widths (G,) were timed."""
        rows = [(self._layers(w), float(self.work.elements.of(w)), 1.0) for w, _ in networks]
        took = np.array([seconds for _, seconds in networks])
        matrix = np.array(rows) / took[:, None]
        size = matrix.max(axis=0)
        layer, element, constant = nnls(matrix / size, np.ones(len(took)))[0] / size
        return replace(self, layer=layer, element=element, constant=constant)

    def seconds(self, widths: Floats) -> float:
        """Return the time of the network with these widths (G,) of its groups."""
        elements = float(self.work.elements.of(widths))
        return self.layer * self._layers(widths) + self.element * elements + self.constant

    def row(self, widths: Floats, group: int, others: Floats) -> Floats:
        """Return the times (W,) with other widths (W,) of one group, up to a common number."""
        tried = np.repeat(widths[None], len(others), axis=0)
        tried[:, group] = others
        found = np.zeros(len(others))
        for layer, table in zip(self.work.layers, self.tables, strict=True):
            if layer.reads.times[group] or layer.writes.times[group]:
                found += table.seconds(layer.reads.of(tried), layer.writes.of(tried))
        return self.layer * found + self.element * self.work.elements.of(tried)

    def _layers(self, widths: Floats) -> float:
        pairs = zip(self.work.layers, self.tables, strict=True)
        return float(
            sum(table.seconds(own.reads.of(widths), own.writes.of(widths)) for own, table in pairs)
        )
