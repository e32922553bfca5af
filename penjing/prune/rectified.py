"""Fit a layer to what passes the ReLU behind it.

Where the original's value is cut off, any value that is cut off too does just as well. So the target of a
position is a set: one value inside the activation's range, a half-line outside. The squared distance to
these sets is convex in the weights, and alternating between the nearest point of each set and a
least-squares fit to these points lowers it step by step (projections between convex sets); every step has
the same normal equations. The idea of a fit that looks through the activation: Zhang et al., "Accelerating
Very Deep Convolutional Networks for Classification and Detection", 2016, section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from penjing.prune.least_squares import Fit
from penjing.prune.moments import EXACT_FEATURES, Moments

_STEPS = 12
_WORTH = 0.999  # a step must lower the held-back error by this factor
MAX_ROW_BYTES = 128_000_000
"""Rows are kept in memory while a layer is fitted; layers that need more get the plain fit."""


@dataclass(frozen=True)
class Range:
    """Where an activation passes values on; outside it is constant."""

    low: float = 0.0
    high: float = float("inf")

    def nearest(self, target: Tensor, value: Tensor) -> Tensor:
        """The value nearest to ``value`` that the activation turns into the same as ``target``."""
        inside = torch.where(target >= self.high, value.clamp_min(self.high), target)
        return torch.where(target <= self.low, value.clamp_max(self.low), inside)


@dataclass(frozen=True)
class Rows:
    """Rows of a layer, all of one type; ``g`` independent groups of channels.

    Attributes:
        x_GRF: Input.
        y_GRO: Output with the weights that the layer has.
        target_GRO: Output it should have.
        offset_GRO: What is added to ``scale`` times the output before the activation.
    """

    x_GRF: Tensor
    y_GRO: Tensor
    target_GRO: Tensor
    offset_GRO: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column, dim=1) for column in columns))


def fit_rectified(
    fit: Fit, learn: Rows, held: Rows, scale_GO: Tensor, bounds: Range, *, intercept: bool
) -> Fit:
    """Go on from a plain fit to one through the activation, as far as the held-back rows like it.

    Args:
        fit: The plain fit; its ridge is used.
        learn: Rows to fit on.
        held: Rows held back; they choose the number of steps, which are then made on all rows.
        scale_GO: Factor between output and activation (of a batch norm); outputs whose factor is zero are
            fitted as before.
        bounds: Of the activation.
        intercept: Whether the output may be shifted.

    Returns:
        The fit; ``before`` and ``after`` are squared distances to what the activation turns into the same,
        in the layer's own unit.
    """
    assert fit.ridge is not None
    trial = _Alternation(learn, scale_GO, bounds, fit.ridge, intercept)
    judge = _Judge(held, scale_GO, bounds)
    before, errors = judge(None), [judge(trial.change)]
    while len(errors) <= _STEPS and (len(errors) < 2 or errors[-1] < errors[-2] * _WORTH):
        trial.step()
        errors.append(judge(trial.change))
    steps = min(range(len(errors)), key=errors.__getitem__)
    whole = _Alternation(Rows.joined([learn, held]), scale_GO, bounds, fit.ridge, intercept)
    for _ in range(steps):
        whole.step()
    change_GOF, shift_GO = whole.change
    return replace(fit, change_GOF=change_GOF, shift_GO=shift_GO, before=before, after=errors[steps])


_Change = tuple[Tensor, Tensor]  # of the weights, [G, O, F], and of the output, [G, O]


class _Alternation:
    """A change of a layer, on its way; it begins with the plain fit."""

    def __init__(self, rows: Rows, scale_GO: Tensor, bounds: Range, ridge: float, intercept: bool) -> None:
        self.rows, self.scale_GO, self.bounds, self.intercept = rows, scale_GO, bounds, intercept
        groups, _, features = rows.x_GRF.shape
        moments = Moments(groups, features, 0, exact=features <= EXACT_FEATURES)
        moments.add(rows.x_GRF, rows.x_GRF[:, :, :0])
        centred = moments.centred(intercept)
        self.x_GF, self.factor_GFF = centred.x_GF, centred.factor(ridge)
        self.change = self._fitted(rows.target_GRO)

    def step(self) -> None:
        """Take the nearest points that do as well, and fit to them."""
        y_GRO = _changed(self.rows, self.change)
        self.change = self._fitted(_nearest(self.rows, y_GRO, self.scale_GO, self.bounds))

    def _fitted(self, points_GRO: Tensor) -> _Change:
        left_GRO = points_GRO - self.rows.y_GRO
        mean_GO = left_GRO.mean(1, dtype=torch.float64) * (1.0 if self.intercept else 0.0)
        even_GRO = left_GRO - mean_GO[:, None].to(left_GRO.dtype)
        cross_GFO = (self.rows.x_GRF.transpose(1, 2) @ even_GRO).double() / left_GRO.shape[1]
        change_GOF = torch.cholesky_solve(cross_GFO, self.factor_GFF).transpose(1, 2)
        return change_GOF, mean_GO - (change_GOF @ self.x_GF[:, :, None]).squeeze(2)


class _Judge:
    """Squared distance to what would do as well."""

    def __init__(self, rows: Rows, scale_GO: Tensor, bounds: Range) -> None:
        self.rows, self.scale_GO, self.bounds = rows, scale_GO, bounds
        self.weights_GO = scale_GO.square().clamp_min(1e-12)

    def __call__(self, change: _Change | None) -> float:
        y_GRO = self.rows.y_GRO if change is None else _changed(self.rows, change)
        left_GRO = _nearest(self.rows, y_GRO, self.scale_GO, self.bounds) - y_GRO
        return float((left_GRO.square().sum(1, dtype=torch.float64) * self.weights_GO).sum())


def _changed(rows: Rows, change: _Change) -> Tensor:
    """Outputs after a change, ``[G, R, O]``."""
    change_GOF, shift_GO = (part.to(rows.y_GRO.dtype) for part in change)
    return rows.y_GRO + rows.x_GRF @ change_GOF.transpose(1, 2) + shift_GO[:, None]


def _nearest(rows: Rows, y_GRO: Tensor, scale_GO: Tensor, bounds: Range) -> Tensor:
    """The outputs nearest to ``y_GRO`` that do as well as the targets, ``[G, R, O]``."""
    scale = scale_GO[:, None].to(y_GRO.dtype)
    live = scale != 0
    through = bounds.nearest(scale * rows.target_GRO + rows.offset_GRO, scale * y_GRO + rows.offset_GRO)
    return torch.where(
        live, (through - rows.offset_GRO) / torch.where(live, scale, torch.ones_like(scale)), rows.target_GRO
    )
