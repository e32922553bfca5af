"""Running two models on the same inputs and measuring how far apart they are."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from penjing.floats import autocast_off
from penjing.graph.inputs import bind_inputs, flat_inputs
from penjing.graph.remembered import own_copies, put_back
from penjing.graph.views import eval_view
from penjing.prune.lockstep import departure

TOLERANCE = 1e-5  # the same ops on the same numbers: only the order of sums may differ


class Reference:
    """A traced graph on inputs that several models are compared on; it is run whole once, if at all.

    Args:
        graph: The graph. It is not to change from then on.
        inputs: As the original is called with.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Any) -> None:
        self.graph, self.inputs = graph, inputs

    @cached_property
    def outputs(self) -> Any:
        """What it gives, flat."""
        return interpret(self.graph, self.inputs)


def compare(module: nn.Module, reference: Reference) -> str:
    """Run a model in eval mode and a traced graph on the same inputs; "" if they agree, else what differs.

    Where both make the very same calls on the same tensors, only one of them is computed; where they do but
    for a number, that number is what differs.
    """
    graph, inputs = reference.graph, reference.inputs
    with eval_view(module), put_back(graph):  # around all: what writes buffers back is no call of theirs
        both = own_copies(inputs)
        departed = departure(lambda: _forward(module, both), graph, flat_inputs(graph, both))
    if departed is None or departed:
        return departed or ""
    ours = run(module, inputs)
    error = relative_error(ours, reference.outputs)
    if not error <= TOLERANCE:
        apart = relative_error(run(module, inputs), ours)
        if apart > TOLERANCE:
            return f"its forward draws random numbers in eval mode: two runs differ by {apart:.1e} (relative)"
        return f"its output differs from the sliced graph's by {error:.1e} (relative)"
    return ""


def run(model: nn.Module, inputs: Any) -> Any:
    """One forward pass in eval mode without gradients; training flags and what it writes are as before
    afterwards."""
    with eval_view(model):
        return forward(model, inputs)


def interpret(graph: fx.GraphModule, inputs: Any) -> Any:
    """The flat outputs of one pass over a traced graph, op by op: no code is written for it.

    What the pass writes into buffers and constants is put back.
    """
    with torch.no_grad(), put_back(graph):
        return fx.Interpreter(graph).run(*flat_inputs(graph, own_copies(inputs)), enable_io_processing=False)


def forward(model: nn.Module, inputs: Any) -> Any:
    """One forward pass without gradients, in the mode the model is in."""
    return _forward(model, own_copies(inputs))


def _forward(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = bind_inputs(model, inputs)
    with torch.no_grad(), autocast_off():  # a traced graph has none of it
        return model(*args, **kwargs)


def relative_error(found: Any, expected: Any) -> float:
    """Largest |found − expected| over largest |expected|, the worst of all output tensors.

    The same infinity in both (a masked score) is no difference. Infinite if numbers or shapes of the outputs
    differ, or a value is infinite in one alone; NaN if one is NaN.
    """
    a, b = ([t for t in pytree.tree_leaves(x) if isinstance(t, Tensor)] for x in (found, expected))
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel() == 0:
            continue
        double = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        x64, y64 = x.detach().to(double), y.detach().to(double)
        scale = float(torch.where(y64.isfinite(), y64, 0.0).abs().max())
        most = float(difference(x64, y64).abs().max())
        error = most / scale if scale > 0 else most
        worst = error if not error <= worst else worst  # NaN counts as the worst
    return worst


def difference(a: Tensor, b: Tensor) -> Tensor:
    """``a − b``; 0 where both are the same infinity, as scores that are masked out are."""
    return torch.where(a == b, 0.0, a - b)


def spread(y: Tensor) -> float:
    """Sum of squared distances of the finite values from their mean over the samples."""
    finite = torch.where(y.isfinite(), y, torch.nan).double()
    return float((finite - finite.nanmean(0)).square().nansum())
