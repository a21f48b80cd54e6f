"""The last steps of a calibration: few looks at an expensive, decreasing cost; never below."""

from __future__ import annotations

import math
from collections.abc import Callable

TIGHT = 4e-5
"""`calibrate` returns at most this much (relative) more noise than is needed."""


def smallest_noise(
    cost: Callable[[float], float], epsilon: float, noise: float, slope: float
) -> float:
    """Return the smallest noise that costs at most `epsilon`, to `TIGHT`, starting close to it.

    Args:
        cost: Decreasing.
        epsilon: Target.
        noise: First guess.
        slope: d cost / d log noise there, < 0.
    """
    low, high = 0.0, math.inf  # cost(low) > epsilon >= cost(high)
    before: tuple[float, float] | None = None
    reach, looks = TIGHT, 0
    while high > low * (1 + TIGHT):
        found, looks = cost(noise), looks + 1
        low, high = (max(low, noise), high) if found > epsilon else (low, min(high, noise))
        if before is not None and (found - before[1]) * (noise - before[0]) < 0:
            slope = (found - before[1]) / math.log(noise / before[0])
        before = (noise, found)
        root = noise * math.exp(min(max((epsilon - found) / slope, -1.0), 1.0))
        # Look just past the root, on the side whose bound is farther away.
        upwards = low > 0 and (math.isinf(high) or high / root > root / low)
        aim = root * (1 + TIGHT / 4) if upwards else root / (1 + TIGHT / 4)
        if low < aim < high and looks < 8:
            noise = aim
        elif 0 < low and high < math.inf:
            noise = math.sqrt(low * high)
        else:
            reach *= 2
            noise = low * (1 + reach) if low > 0 else high / (1 + reach)
    return high
