"""Masks inside tensors: unstructured and N:M magnitude sparsity, and exact counts of zeros.

These do not make a model smaller by themselves; sparse formats and kernels do. Structural pruning is
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import PruneError


@dataclass(frozen=True)
class SparsityResult:
    """What was masked.

    Attributes:
        model: A copy with zeros in place.
        masks: True where a weight stays, by parameter name.
        zeros: Exact number of zeros of each masked parameter.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    zeros: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: zeros and sizes by parameter."""
        return {name: {"zeros": n, "size": self.masks[name].numel()} for name, n in self.zeros.items()}


def unstructured_mask(weight: Tensor, ratio: float) -> Tensor:
    """True for the largest magnitudes; exactly ``floor(ratio · numel)`` entries are False (ties: the later
    goes).
    """
    if not 0 <= ratio < 1:
        raise PruneError(f"ratio {ratio} is not in [0, 1)", remedy="A ratio is the fraction removed")
    count = int(ratio * weight.numel() + 1e-9)
    flat = weight.detach().abs().reshape(-1).flip(0)
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[:count]] = False
    return mask.flip(0).reshape(weight.shape)


def nm_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """True for the n largest of every m consecutive inputs (dim 1, then the kernel) of each output.

    Raises:
        PruneError: if the fan-in is not a multiple of m, or not 0 < n <= m.
    """
    if not 0 < n <= m:
        raise PruneError(f"{n}:{m} sparsity", remedy="Give 0 < n <= m, such as 2:4")
    w_OI = weight.detach().flatten(1)
    if w_OI.shape[1] % m:
        raise PruneError(f"{w_OI.shape[1]} inputs are not a multiple of {m}", remedy="Leave this layer out")
    blocks = w_OI.abs().reshape(w_OI.shape[0], -1, m)
    kept = blocks.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, kept, True)
    return mask.reshape(weight.shape)


def sparsify(model: nn.Module, ratio: float = 0.5, *, nm: tuple[int, int] | None = None) -> SparsityResult:
    """Zero the smallest weights of every tensor of two or more dims, in a copy.

    Args:
        model: The model.
        ratio: Fraction of each weight tensor to zero; unused with ``nm``.
        nm: ``(n, m)``: keep n of every m instead; tensors whose fan-in is not a multiple of m are left out.
    """
    import copy

    model = copy.deepcopy(model)
    masks: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2 or (nm and weight[0].numel() % nm[1]):
                continue
            masks[name] = nm_mask(weight, *nm) if nm else unstructured_mask(weight, ratio)
            weight.mul_(masks[name])
    params = dict(model.named_parameters())
    return SparsityResult(model, masks, {n: int((params[n] == 0).sum()) for n in masks})
