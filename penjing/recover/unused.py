"""Whether processes that train together must look, in every step, for parameters without a gradient.

Gradients are exchanged as they come; where some may not come, the graph of every step has to be searched for
them first, which costs time.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from penjing.batches import Inputs, call_model, logits_of
from penjing.errors import PenjingError
from penjing.recover import chance


def may_leave_out(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a step may leave parameters without a gradient.

    It may where the scores do not reach all of them, and where the forward pass draws (other than in dropout
    layers), as it may draw which layers run.

    Args:
        model: The network; a copy of it is run in train mode, forwards and backwards.
        inputs: Two samples or more, where the model is.
    """
    probe = copy.deepcopy(model).train()
    for module in probe.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    device = next((p.device for p in probe.parameters()), torch.device("cpu"))
    with chance.private_globals():
        chance.seed_globals(0)
        untouched = _next_draws(device)
        chance.seed_globals(0)
        try:
            torch.autograd.backward(logits_of(call_model(probe, inputs)).sum())
        except (RuntimeError, TypeError, ValueError, PenjingError):  # what is wrong is said in the first step
            return True
        drew = _next_draws(device) != untouched
    return drew or any(p.grad is None for p in probe.parameters() if p.requires_grad)


def _next_draws(device: torch.device) -> tuple[float, ...]:
    """What each of the global generators gives next."""
    drawn = float(torch.rand(())), float(torch.rand((), device=device))
    return (*drawn, random.random(), float(np.random.random()))  # noqa: NPY002 (what a network may draw from)
