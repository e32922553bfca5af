"""Network slimming (Liu et al. 2017, "Learning efficient convolutional networks", arXiv:1708.06519)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import fx, nn

from penjing.errors import RecoverError
from penjing.recover.regularize.base import Params, Regularizer, regularizer


@regularizer("slimming")
class Slimming(Regularizer):
    """Penalty ``λ Σ |γ|`` over the scales of batch norms, by its subgradient (their equation 1).

    Attributes:
        strength: λ.
    """

    strength: float = Field(default=1e-4, ge=0)

    def begin(self, model: nn.Module, inputs: Any, start: Params) -> Any:
        """Names of the scales.

        Raises:
            RecoverError: when there is no batch norm with a scale.
        """
        params = dict(model.named_parameters())
        names = [f"{name}.{scale}".lstrip(".") for name, m in model.named_modules() for scale in _scales(m)]
        names = [name for name in dict.fromkeys(names) if name in params]
        if not names:
            raise RecoverError(
                "slimming needs batch norms with a scale and the network has none",
                remedy="Use 'group_lasso', which needs none; in training for int8, where they are folded, "
                "regularize the float network before",
            )
        return names

    @torch.no_grad()
    def gradient_(self, params: Params, state: Any, done: float) -> None:
        """Add λ sign(γ)."""
        for name in state:
            scale_C = params[name]
            if scale_C.grad is not None:
                scale_C.grad.add_(scale_C.sign(), alpha=self.strength)


def _scales(module: nn.Module) -> list[str]:
    """Names of the scales of a batch norm, or of those that a traced graph computes."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return ["weight"]
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    norms = [node for node in nodes if node.op == "call_function" and "batch_norm" in str(node.target)]
    read = [node.args[1] for node in norms if len(node.args) > 1]
    return [str(scale.target) for scale in read if isinstance(scale, fx.Node) and scale.op == "get_attr"]
