"""Losses inside a forward, as of a network that computes its own when it is given labels."""

from __future__ import annotations

from penjing.graph.rules.table import Axes, Op, rule

ELEMENTWISE = """mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy
binary_cross_entropy_with_logits kl_div poisson_nll_loss"""


@rule(*(f"aten.{name}" for name in ELEMENTWISE.split()))
def elementwise(op: Op) -> Axes:
    """Of each element by itself, then averaged or summed."""
    return _reduced(op, op.broadcast(*op.tensors()))


@rule("aten.cross_entropy_loss", "aten.nll_loss", "aten.nll_loss_nd", "aten.nll_loss2d")
def of_classes(op: Op) -> Axes:
    """Targets name the slots of dim 1 (or give a probability for each), so these stay."""
    x, target = op.axes(op.args["self"]), op.axes(op.args["target"])
    classes = 1 if len(x) > 1 else 0
    samples = (*x[:classes], *x[classes + 1 :])
    op.freeze(x[classes], "its slots are the classes of a loss")
    for mine, theirs in zip(x if len(target) == len(x) else samples, target, strict=True):
        op.unify(mine, theirs)
    for axis in op.axes(op.args.get("weight")):
        op.unify(x[classes], axis)
    return _reduced(op, samples)


def _reduced(op: Op, axes: Axes) -> Axes:
    """What torch's number for ``"none"``, ``"mean"`` or ``"sum"`` makes of losses along these axes."""
    kind = int(op.args["reduction"])
    for axis in axes if kind else ():
        op.mark(axis, "mean" if kind == 1 else "sum")
    return () if kind else axes
