"""Recovery of a network with masked weights: what is zero stays zero."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from penjing.recover.regularize.base import Params, Regularizer, regularizer


@regularizer("keep_zeros")
class KeepZeros(Regularizer):
    """Weights of two or more dims that are exactly zero when the run begins are zero after every step."""

    aims_elsewhere: ClassVar[bool] = False

    def begin(self, model: nn.Module, inputs: Any, start: Params) -> Any:
        """Masks by name, of the parameters that have zeros."""
        masks = {name: weight.detach() != 0 for name, weight in start.items() if weight.dim() > 1}
        return {name: mask for name, mask in masks.items() if not bool(mask.all())}

    @torch.no_grad()
    def step_(self, params: Params, state: Any, lr: float) -> None:
        """Put the zeros back."""
        for name, mask in state.items():
            params[name].mul_(mask.to(params[name]))
