"""Shrinkage that grows for slots that are small already (Fang et al. 2023, "DepGraph", section 3.4)."""

from __future__ import annotations

from pydantic import Field

from penjing.recover.regularize.base import GroupRegularizer, Params, State, regularizer


@regularizer("group_norm")
class GroupNorm(GroupRegularizer):
    """Penalty ``½ λ Σ_s γ_s ‖w_s‖²`` with ``γ_s = 2^(α (max - n_s) / (max - min))``, n_s the slots' norms.

    The smallest slots of each group shrink 2^α times as fast as the largest.

    Attributes:
        strength: λ.
        alpha: α.
    """

    strength: float = Field(default=5e-4, ge=0)
    alpha: float = Field(default=4.0, ge=0)

    def gradient_(self, params: Params, state: State, done: float) -> None:
        """Add λ γ w."""
        for group in state:
            norm_S = group.norms(params)
            span = (norm_S.max() - norm_S.min()).clamp_min(1e-12)
            group.decay_(self.strength * 2 ** (self.alpha * (norm_S.max() - norm_S) / span), params)
