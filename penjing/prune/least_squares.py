"""Ridge least squares with the ridge chosen on samples that were held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.prune.moments import Moments, error

# a change must lower the held-back error by this factor, or the layer stays as it is
_WORTH = 0.999


@dataclass(frozen=True)
class Fit:
    """A change of one layer.

    Attributes:
        change_GOF: What is added to the weights, float64; None when they stay.
        shift_GO: What is added to the output, float64.
        before, after: Sum of squared residuals on the held-back rows without and with the change.
        ridge: The chosen ridge, relative to the mean variance of the inputs; None when the weights stay.
    """

    change_GOF: Tensor | None
    shift_GO: Tensor
    before: float
    after: float
    ridge: float | None


def fit_moments(
    fit: Moments, held: Moments, ridges: Sequence[float], weights_GO: Tensor, intercept: bool
) -> Fit:
    """Fit from second moments (normal equations).

    Candidates are: no change, a shift alone, and each ridge; the best on the held-back rows wins and is
    then fitted on all rows.

    Args:
        fit: Rows to fit on.
        held: Rows held back.
        ridges: Ridges to try, relative to the mean variance of the inputs.
        weights_GO: What a squared error of each output counts.
        intercept: Whether the output may be shifted.
    """
    groups, outputs, features = fit.rx_GOF.shape
    still = torch.zeros(groups, outputs, features, dtype=torch.float64)
    centred = fit.centred(intercept)

    def judge(change_GOF: Tensor) -> float:
        shift_GO = centred.r_GO - (change_GOF @ centred.x_GF[:, :, None]).squeeze(2)
        return float((error(held, change_GOF, shift_GO) * weights_GO).sum())

    before = float((held.rr_GO * weights_GO).sum())
    ridge, shifts, after = _best(before, judge(still), ridges, lambda one: judge(centred.solve(one)))
    everything = (fit + held).centred(intercept)
    if ridge is None:
        shift_GO = everything.r_GO if shifts else torch.zeros_like(everything.r_GO)
        return Fit(None, shift_GO, before, after, None)
    change_GOF = everything.solve(ridge)
    shift_GO = everything.r_GO - (change_GOF @ everything.x_GF[:, :, None]).squeeze(2)
    return Fit(change_GOF, shift_GO, before, after, ridge)


def fit_samples(
    x_RF: Tensor, r_RO: Tensor, held: Tensor, ridges: Sequence[float], weights_O: Tensor, intercept: bool
) -> Fit:
    """The same for layers with more inputs than there are rows: by the kernel matrix of the rows.

    The smallest change of weights is a combination of the input rows, so the system has the size of the
    number of rows.

    Args:
        x_RF: Input rows.
        r_RO: Residual rows.
        held: Boolean ``[rows]``, which rows are held back.
        ridges: As in `fit_moments`.
        weights_O: As in `fit_moments`.
        intercept: As in `fit_moments`.
    """
    x_RF, r_RO = x_RF.double(), r_RO.double()

    def solve(rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        x, r = x_RF[rows], r_RO[rows]
        x_F = x.mean(0) if intercept else torch.zeros(x.shape[1], dtype=x.dtype)
        r_O = r.mean(0) if intercept else torch.zeros(r.shape[1], dtype=r.dtype)
        x = x - x_F
        kernel = x @ x.T
        kernel.diagonal().add_(max(ridge, 1e-9) * float(kernel.trace()) / x.shape[1] + 1e-30)
        change_OF = torch.cholesky_solve(r - r_O, torch.linalg.cholesky(kernel)).T @ x
        return change_OF, r_O - change_OF @ x_F

    def judge(change_OF: Tensor, shift_O: Tensor) -> float:
        left = r_RO[held] - x_RF[held] @ change_OF.T - shift_O
        return float((left.square().sum(0) * weights_O).sum())

    still = torch.zeros(r_RO.shape[1], x_RF.shape[1], dtype=torch.float64)
    mean_O = r_RO[~held].mean(0) if intercept else torch.zeros(r_RO.shape[1], dtype=torch.float64)
    before = float((r_RO[held].square().sum(0) * weights_O).sum())
    ridge, shifts, after = _best(before, judge(still, mean_O), ridges, lambda one: judge(*solve(~held, one)))
    if ridge is None:
        shift_O = r_RO.mean(0) if intercept and shifts else torch.zeros_like(mean_O)
        return Fit(None, shift_O[None], before, after, None)
    change_OF, shift_O = solve(torch.ones_like(held), ridge)
    return Fit(change_OF[None], shift_O[None], before, after, ridge)


def _best(
    before: float, shifted: float, ridges: Sequence[float], judge: Callable[[float], float]
) -> tuple[float | None, bool, float]:
    """The ridge with the least error, None where the weights do better as they are; whether a shift alone
    helps; and the error left.
    """
    shifts = shifted < before * _WORTH
    best, least = None, shifted if shifts else before * _WORTH
    for ridge in ridges:
        if (judged := judge(ridge)) < least:
            best, least = ridge, judged
    return best, shifts, before if best is None and not shifts else least
