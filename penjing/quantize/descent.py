"""Rounding by coordinate descent: every weight's level in turn, the best one given all others.

Behdin et al. 2023, "QuantEase": ``E‖(Ŵ − W)x‖² = tr(E H Eᵀ)``, with ``E = Ŵ − W`` and the inputs' second
moments ``H``, is a parabola in each single level, so the best whole level is the one nearest to its lowest
point. The error never rises. It is what AdaRound (Nagel et al. 2020) relaxes and learns by gradient, solved
as it stands, and levels may go farther than to the neighbours of the float weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.weights import Guard, bounds_beside

_COLUMNS = 64


def descend(
    levels_GKO: NDArray[np.float64],
    rows_GKO: NDArray[np.float64],
    scale_GKO: NDArray[np.float64],
    h_GKK: NDArray[np.float64],
    *,
    guard: Guard,
    top: int,
    sweeps: int,
) -> None:
    """Improve ``levels`` in place.

    Args:
        levels_GKO: Whole levels of G groups, K inputs, O outputs; they keep the guard, and go on keeping it.
        rows_GKO: The float weights.
        scale_GKO: Step of each weight.
        h_GKK: Second moments of the inputs, positive definite.
        guard: ``"pairs"`` holds the sum of two neighbouring inputs' levels within `PAIR_MAX`.
        top: Largest magnitude of a level.
        sweeps: Times that all levels are visited; fewer where nothing moves any more.
    """
    error_GKO = levels_GKO * scale_GKO - rows_GKO
    slope_GKO = h_GKK @ error_GKO  # half the gradient
    size = h_GKK.shape[-1]
    for _ in range(sweeps):
        moved = False
        for first in range(0, size, _COLUMNS):
            last = min(first + _COLUMNS, size)
            before_GKO = error_GKO[:, first:last].copy()
            inside_GKK = h_GKK[:, first:last, first:last]
            slopes_GKO = slope_GKO[:, first:last].copy()
            for k in range(first, last):
                scale_GO = scale_GKO[:, k]
                value_GO = levels_GKO[:, k] * scale_GO - slopes_GKO[:, k - first] / h_GKK[:, k, k, None]
                low, high = bounds_beside(levels_GKO, k, guard, top)
                level_GO = np.clip(np.rint(value_GO / scale_GO), low, high)
                change_GO = (level_GO - levels_GKO[:, k]) * scale_GO
                if change_GO.any():
                    levels_GKO[:, k] = level_GO
                    error_GKO[:, k] += change_GO
                    slopes_GKO += inside_GKK[:, :, k - first, None] * change_GO[:, None]
                    moved = True
            # the columns of a block change one another at once, all others after it together
            slope_GKO += h_GKK[:, :, first:last] @ (error_GKO[:, first:last] - before_GKO)
        if not moved:
            break
