"""Weights to signed 8 bits, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penjing.quantize.scheme import WEIGHT_MAX

PAIR_MAX = 128
"""``255 · 128 = 32640`` is the most two same-signed weights may weigh together in a 16-bit sum."""

_ROWS_AT_ONCE = 1 << 22
_BELOW = (1.0, 0.95, 0.9, 0.83, 0.75, 0.66)
_ABOVE = (1.08, 1.17, 1.28, 1.4, 1.55, 1.75, 2.0)
_FEW_LEVELS = tuple(np.linspace(1.0, 0.4, 16))
_FINE = (0.98, 1.02)

_FEW_TOP = 15
_SQUARES = 40
"""Steps of 2 to this power, up or down, have squared errors that float32 holds."""

Guard = Literal["off", "pairs", "full"]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in 8 bits.

    Attributes:
        q: int8, in the shape of the float weight.
        scale_O: Step of each output channel, float32.
        axis: The output channel axis.
    """

    q: NDArray[np.int8]
    scale_O: NDArray[np.float32]
    axis: int

    def without_last(self, channels: int) -> QuantizedWeight:
        """Less the last input channels."""
        kept = self.q[:, : self.q.shape[1] - channels]
        return QuantizedWeight(np.ascontiguousarray(kept), self.scale_O, self.axis)

    def dequantized(self) -> NDArray[np.float32]:
        """The float32 weight the runtime computes with."""
        shape = [1] * self.q.ndim
        shape[self.axis] = -1
        return self.q.astype(np.float32) * self.scale_O.reshape(shape)


def quantize_weight(
    w: NDArray[np.float32],
    axis: int,
    *,
    method: Literal["absmax", "mse"] = "mse",
    guard: Guard = "off",
    least_O: NDArray[np.float64] | None = None,
    top: int = WEIGHT_MAX,
) -> QuantizedWeight:
    """Choose scales and round.

    ``absmax`` takes the smallest step that clips nothing; ``mse`` the step with the least squared error,
    between 0.6 (0.4 where levels are few) and 2 times that. With ``guard="pairs"`` the weights are also
    changed, as little as possible, so that no two neighbours that a 16-bit sum adds can overflow it. The
    neighbours are ``(2j, 2j+1)`` in the order kernel height, width, input channel, as the runtime packs them
    (an odd number of channels is made even before, see `penjing.quantize.encode.lone_channels`).

    Args:
        w: The weight: OIHW…, or 2-D with ``axis`` telling the output channels.
        axis: The output channel axis.
        method: ``"absmax"`` or ``"mse"``.
        guard: What protects 16-bit sums.
        least_O: Smallest allowed step per channel (so that a bias fits its 32 bits).
        top: Largest level: 127 of 8 bits, 7 of 4 bits.
    """
    rows_OK = as_rows(w, axis)
    scale_O = np.empty(len(rows_OK), np.float32)
    q_OK = np.empty(rows_OK.shape, np.int8)
    step = max(1, _ROWS_AT_ONCE // max(rows_OK.shape[1], 1))
    for start in range(0, len(rows_OK), step):
        part = slice(start, start + step)
        least = None if least_O is None else least_O[part]
        scale_O[part] = choose_scale(rows_OK[part], method, guard, least, top)
        q_OK[part] = round_rows(rows_OK[part], scale_O[part], guard, top)
    return QuantizedWeight(from_rows(q_OK, w.shape, axis), scale_O, axis)


def highest(guard: Guard, top: int = WEIGHT_MAX) -> int:
    """The largest level that the guard leaves of ``top``."""
    return min(top, PAIR_MAX // 2) if guard == "full" else top


def bounds_beside(
    levels_GKO: NDArray[np.float64], k: int, guard: Guard, top: int
) -> tuple[NDArray[np.float64] | float, NDArray[np.float64] | float]:
    """Least and largest level of input ``k`` that the guard allows beside its neighbour's present level."""
    neighbour = k + 1 if k % 2 == 0 else k - 1
    if guard != "pairs" or neighbour >= levels_GKO.shape[1]:
        return -float(top), float(top)
    beside_GO = levels_GKO[:, neighbour]
    return np.maximum(-PAIR_MAX - beside_GO, -float(top)), np.minimum(PAIR_MAX - beside_GO, float(top))


def choose_scale(
    rows_OK: NDArray[np.float32],
    method: str,
    guard: Guard,
    least_O: NDArray[np.float64] | None = None,
    top: int = WEIGHT_MAX,
) -> NDArray[np.float32]:
    """The step of each row; rows of zeros get 1 (or what ``least_O`` asks for)."""
    top = highest(guard, top)
    absmax_O = np.abs(rows_OK).max(axis=1, initial=0.0).astype(np.float64)
    base_O = absmax_O / top
    if guard == "pairs" and method == "absmax":
        base_O = np.maximum(base_O, _pair_sums(rows_OK).max(axis=1, initial=0.0) / PAIR_MAX)
    base_O = np.where(base_O < np.finfo(np.float32).tiny, 1.0, base_O)
    if least_O is not None:
        base_O = np.maximum(base_O, least_O)
    scale_O = base_O.astype(np.float32)
    # A step that float32 rounded down would send the largest weight past the top level.
    if method == "absmax":
        return scale_O
    exponent_O = np.where(np.isfinite(scale_O), np.frexp(scale_O)[1] - 1, 0)
    if np.abs(exponent_O).max(initial=0) > _SQUARES:
        unit_OK = np.ldexp(rows_OK, -exponent_O[:, None])
        unit_O = None if least_O is None else np.ldexp(least_O, -exponent_O)
        unit_steps_O = choose_scale(unit_OK, method, guard, unit_O, top)
        return np.asarray(np.ldexp(unit_steps_O, exponent_O), np.float32)
    best_O = np.full(len(rows_OK), np.inf)
    chosen_O = scale_O.copy()

    def offer(trial_O: NDArray[np.float32]) -> None:
        if least_O is not None:
            trial_O = np.maximum(trial_O, least_O.astype(np.float32))
        error_OK = _levels(rows_OK, trial_O, guard, top)
        error_OK *= trial_O[:, None]
        error_OK -= rows_OK
        error_O = np.einsum("ok,ok->o", error_OK, error_OK)
        better_O = error_O < best_O
        best_O[better_O], chosen_O[better_O] = error_O[better_O], trial_O[better_O]

    coarse = _FEW_LEVELS if top <= _FEW_TOP else (*_BELOW, *(_ABOVE if guard == "pairs" else ()))
    for ratio in coarse:
        offer(scale_O * np.float32(ratio))
    middle_O = chosen_O.copy()
    for ratio in _FINE:
        offer(middle_O * np.float32(ratio))
    return chosen_O


def round_rows(
    rows_OK: NDArray[np.floating], scale_O: NDArray[np.float32], guard: Guard, top: int = WEIGHT_MAX
) -> NDArray[np.int8]:
    """Nearest levels within what the guard allows."""
    return _levels(rows_OK, scale_O, guard, top).astype(np.int8)


def _levels(
    rows_OK: NDArray[np.floating], scale_O: NDArray[np.float32], guard: Guard, top: int
) -> NDArray[np.floating]:
    top = highest(guard, top)
    levels_OK = rows_OK / scale_O[:, None]
    np.rint(levels_OK, out=levels_OK)
    np.clip(levels_OK, -top, top, out=levels_OK)
    return shrink_pairs(levels_OK) if guard == "pairs" else levels_OK


def shrink_pairs(levels_OK: NDArray[np.floating]) -> NDArray[np.floating]:
    """Bring each neighbouring pair's sum within ±128, taking equally from both (the nearest that fits)."""
    last = levels_OK.shape[1] - levels_OK.shape[1] % 2
    total = levels_OK[:, 0:last:2] + levels_OK[:, 1:last:2]
    row, pair = np.nonzero(np.abs(total) > PAIR_MAX)
    if not len(row):
        return levels_OK
    first, second = levels_OK[row, 2 * pair], levels_OK[row, 2 * pair + 1]
    sign, excess = np.sign(total[row, pair]), np.abs(total[row, pair]) - PAIR_MAX
    larger_first = np.abs(first) >= np.abs(second)
    more, less = sign * np.ceil(excess / 2), sign * np.floor(excess / 2)
    out = levels_OK.copy()
    out[row, 2 * pair] = first - np.where(larger_first, more, less)
    out[row, 2 * pair + 1] = second - np.where(larger_first, less, more)
    return out


def _pair_sums(rows_OK: NDArray[np.floating]) -> NDArray[np.float64]:
    odd = rows_OK.shape[1] % 2
    padded = np.pad(rows_OK, ((0, 0), (0, odd))).astype(np.float64)
    return np.abs(padded[:, 0::2] + padded[:, 1::2])


def as_rows(w: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Output channels as rows, in the runtime's order: kernel positions, then input channels."""
    if w.ndim == 2:
        return np.ascontiguousarray(w if axis == 0 else w.T)
    return np.ascontiguousarray(np.moveaxis(w, 1, -1)).reshape(w.shape[0], -1)


def from_rows(q_OK: NDArray[np.int8], shape: tuple[int, ...], axis: int) -> NDArray[np.int8]:
    """Undo `as_rows`."""
    if len(shape) == 2:
        return np.ascontiguousarray(q_OK if axis == 0 else q_OK.T)
    return np.ascontiguousarray(np.moveaxis(q_OK.reshape(shape[0], *shape[2:], shape[1]), -1, 1))


def pad_channels(w: NDArray[np.float32], extra: int) -> NDArray[np.float32]:
    """An OI… weight with input channels of zeros behind its own."""
    return np.pad(w, [(0, extra if dim == 1 else 0) for dim in range(w.ndim)]) if extra else w
