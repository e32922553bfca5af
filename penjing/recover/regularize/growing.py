"""Growing regularization (Wang et al. 2021, "Neural pruning via growing regularization", GReg-1)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from penjing.recover.regularize.base import GroupRegularizer, Params, regularizer


@regularizer("growing")
class Growing(GroupRegularizer):
    """Weight decay on the slots chosen to go, growing from 0 to ``strength`` over the run.

    The smallest slots of each group, by norm when the run begins, are chosen. The others get used to doing
    without them, little by little.

    Attributes:
        ratio: Fraction of each group's slots that is to go.
        strength: The last weight decay.
    """

    ratio: float = Field(default=0.5, gt=0, lt=1)
    strength: float = Field(default=1.0, ge=0)

    def begin(self, model: nn.Module, inputs: Any, start: Params) -> Any:
        """The groups, each with 1 for its chosen slots and 0 for the others."""
        chosen = []
        for group in super().begin(model, inputs, start):
            mark_S = torch.zeros(group.size, dtype=torch.float64)
            mark_S[group.norms(start).argsort(stable=True)[: int(self.ratio * group.size)]] = 1
            chosen.append((group, mark_S))
        return chosen

    def gradient_(self, params: Params, state: Any, done: float) -> None:
        """Add the decay of now."""
        for group, mark_S in state:
            group.decay_(self.strength * done * mark_S, params)
