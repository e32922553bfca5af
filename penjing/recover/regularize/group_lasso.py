"""Group lasso over coupled slots (Yuan & Lin 2006; Wen et al. 2016, "Learning structured sparsity")."""

from __future__ import annotations

from pydantic import Field

from penjing.recover.regularize.base import GroupRegularizer, Params, State, regularizer


@regularizer("group_lasso")
class GroupLasso(GroupRegularizer):
    """Penalty ``λ Σ_s √m_s ‖w_s‖`` over slots s of m_s weights, by its proximal step.

    After each optimizer step, ``w_s ← max(0, 1 - lr λ √m_s / ‖w_s‖) w_s``: slots that the loss does not hold
    on to become exactly zero, where a subgradient would only come near.

    Attributes:
        strength: λ.
    """

    strength: float = Field(default=1e-3, ge=0)

    def step_(self, params: Params, state: State, lr: float) -> None:
        """Shrink every slot."""
        for group in state:
            threshold_S = lr * self.strength * group.weights_S.sqrt()
            factor_S = 1 - threshold_S / group.norms(params).clamp_min(1e-30)
            group.scale_(factor_S.clamp_min(0), params)
