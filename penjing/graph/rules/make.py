"""Tensors made inside the forward: constants are free to shrink, positions are not."""

from __future__ import annotations

from penjing.graph.rules.table import Axes, Op, Result, rule


@rule(
    *(
        f"aten.{name}"
        for name in [
            "zeros",
            "ones",
            "full",
            "empty",
            "rand",
            "randn",
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "empty_strided",
            "randint",
            "empty_permuted",
            "new_empty_strided",
            "scalar_tensor",
        ]
    )
)
def constant(op: Op) -> Axes:
    """Every slot alike: it goes with what it meets."""
    return tuple(op.free(size) for size in op.shape)


@rule(
    "aten.arange",
    "aten.linspace",
    "aten.logspace",
    "aten.range",
    "aten.randperm",
    "aten.hann_window",
    "aten.tril_indices",
    "aten.triu_indices",
    "aten.tensor",
)
def positions(op: Op) -> Axes:
    """Slot i holds a value that depends on i."""
    return tuple(op.fixed(size, "positions made in the forward") for size in op.shape)


@rule("aten.eye")
def eye(op: Op) -> Result:
    """The same slots on both sides: what stays of a unit matrix is one."""
    rows, columns = op.shape
    if rows != columns:
        return positions(op)
    slots = op.free(rows)
    return slots, slots
