"""Which weights of one layer become zero, by what the layer reads: Wanda and SparseGPT."""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.prune.moments import Moments

NM = tuple[int, int]

_BLOCK = 128  # columns between two choices of SparseGPT (their appendix A)
_DAMP = 0.01  # added to the second moments, relative to their mean


def wanda(w_GOF: Tensor, moments: Moments, ratio: float, nm: NM | None) -> Tensor:
    """The weights with the least ``|w_ij| ‖x_j‖`` of each output row set to zero.

    Sun et al. 2023, "A simple and effective pruning approach for large language models", eq. 1.

    Args:
        w_GOF: Weights by group of channels, float64.
        moments: Second moments of the inputs.
        ratio: Fraction of each row that goes (rounded down); unused with ``nm``.
        nm: Keep n of every m inputs of a row instead.

    Returns:
        The new weights; the others stay as they are.
    """
    score = w_GOF.abs() * moments.xx_GFF.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()[:, None, :]
    return w_GOF * _kept(score, ratio, nm)


def sparsegpt(w_GOF: Tensor, moments: Moments, ratio: float, nm: NM | None) -> Tensor:
    """Optimal brain surgeon column by column: what goes is made up for by the columns to its right.

    Frantar & Alistarh 2023, "SparseGPT", algorithm 1. Arguments and result as for `wanda`, but that the
    others change too, and that ``ratio`` holds for the layer as a whole.
    """
    found = torch.empty_like(w_GOF)
    for group, w_OF in enumerate(w_GOF):
        hessian = moments.xx_GFF[group] / max(moments.count, 1)
        scale = float(hessian.diagonal().mean())
        hessian.diagonal().add_(_DAMP * scale if scale > 0 else 1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor = torch.linalg.cholesky(inverse, upper=True)
        found[group] = _sweep(w_OF.clone(), factor, ratio, nm)
    return found


def _sweep(w_OF: Tensor, factor_FF: Tensor, ratio: float, nm: NM | None) -> Tensor:
    outputs, features = w_OF.shape
    keep = torch.ones_like(w_OF, dtype=torch.bool)
    step = nm[1] if nm else _BLOCK
    for start in range(0, features, step):
        end = min(start + step, features)
        score = (w_OF[:, start:end] / factor_FF.diagonal()[start:end]).square()
        if nm:
            keep[:, start:end] = _kept(score[None], ratio, nm)[0]
        else:
            # whole numbers that add up exactly: what has been given by the end less what was by the start
            count = int(ratio * outputs * end + 1e-9) - int(ratio * outputs * start + 1e-9)
            flat = torch.ones(score.numel(), dtype=torch.bool)
            flat[score.flatten().argsort(stable=True)[:count]] = False
            keep[:, start:end] = flat.reshape(score.shape)
        for column in range(start, end):
            gone = torch.where(keep[:, column], 0.0, w_OF[:, column])
            w_OF[:, column:] -= torch.outer(gone / factor_FF[column, column], factor_FF[column, column:])
    return w_OF * keep


def _kept(score_GOF: Tensor, ratio: float, nm: NM | None) -> Tensor:
    """True for the highest scores of each row, or of every m consecutive ones of it."""
    if nm:
        blocks = score_GOF.reshape(*score_GOF.shape[:2], -1, nm[1])
        order = blocks.argsort(dim=-1, descending=True, stable=True)[..., : nm[0]]
        return torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order, True).flatten(2)
    count = int(ratio * score_GOF.shape[2] + 1e-9)
    gone = score_GOF.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(score_GOF, dtype=torch.bool).scatter_(-1, gone, False)
