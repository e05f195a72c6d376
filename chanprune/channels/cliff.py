"""Where scores fall from channels that are in use to channels that are not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def find_cliff(ascending: npt.NDArray[np.float64], factor: float = 10.0) -> int | None:
    """Find where the unused scales end and the used ones begin.

    That is the largest step within the twentieth of the channels over which the scales rise most,
    if they rise by `factor` there. Beyond the 90th percentile, and below a thousandth of it, scales
    count as alike.

    Returns:
        The index below the step, or None.
    """
    width = max(1, len(ascending) // 20)
    used = np.quantile(ascending, 0.9) if len(ascending) > width else 0.0
    if used <= 0:
        return None
    values = np.clip(ascending, used / 1000, used)
    rises = values[width:] / values[:-width]
    steepest = int(rises.argmax())
    if rises[steepest] < factor:
        return None
    steps = values[steepest + 1 : steepest + width + 1] / values[steepest : steepest + width]
    return steepest + int(steps.argmax())
