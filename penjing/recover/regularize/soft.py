"""Soft pruning (He et al. 2018, "Soft filter pruning for accelerating deep CNNs", arXiv:1808.06866)."""

from __future__ import annotations

import torch
from pydantic import Field

from penjing.recover.regularize.base import GroupRegularizer, Params, State, regularizer


@regularizer("soft")
class Soft(GroupRegularizer):
    """After every epoch the smallest slots of each group are set to zero, and may grow again in the next.

    The paper zeroes filters. Here the weights that read the slot are zeroed instead, which silences it just
    the same, lets its gradient live (a filter of zeros before a batch norm has none worth having), and makes
    its removal exact.

    Attributes:
        ratio: Fraction of each group's slots.
    """

    ratio: float = Field(default=0.3, gt=0, lt=1)

    def epoch_(self, params: Params, state: State) -> None:
        """Zero them."""
        for group in state:
            keep_S = torch.ones(group.size, dtype=torch.float64)
            keep_S[group.norms(params).argsort(stable=True)[: int(self.ratio * group.size)]] = 0
            group.scale_(keep_S, params, readers_only=True)
