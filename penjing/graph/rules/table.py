"""The registry of op rules and what a rule is given.

A rule states an op's axis equations and returns the axes of its outputs. It is registered under
``"aten.conv2d"`` (every overload, in-place too) or a full name, and found by name; an op without a rule has
its axes frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from penjing.graph.axes import Axis, Leaf, Reason, leaves
from penjing.graph.unify import factor, freeze, resolve, segment, through, unify
from penjing.table import adder

Axes = tuple[Axis, ...]
Result = Axes | list[Axes]
RuleFunction = Callable[["Op"], Result]

RULES: dict[str, RuleFunction] = {}


rule = adder(RULES)
"""Decorator: register a rule under op names such as ``"aten.conv2d"`` or
``"aten.repeat_interleave.self_int"``."""


def find_rule(op_name: str) -> RuleFunction | None:
    """The rule for ``"aten.add_.Tensor"``: by full name, without overload, without the in-place mark."""
    packet = op_name.rsplit(".", 1)[0] if op_name.count(".") > 1 else op_name
    for name in (op_name, packet, packet.rstrip("_")):
        if name in RULES:
            return RULES[name]
    return None


@dataclass(eq=False)
class Notebook:
    """What rules leave for the end: marks on axes, steps of their sizes, axes that belong together, equations
    to settle last."""

    marks: list[tuple[Axis, str]] = field(default_factory=list)
    steps: list[tuple[Axis, int]] = field(default_factory=list)
    together: list[Axes] = field(default_factory=list)
    last: list[Callable[[], None]] = field(default_factory=list)


@dataclass(eq=False)
class Op:
    """One op of the graph, as a rule sees it.

    Attributes:
        node: The fx node.
        args: Arguments by schema name, defaults filled in; tensors are fx nodes.
        outputs: Shape of each tensor output; symbolic sizes are replaced by a large prime.
        env: Axes of every value so far.
        why: Reason given when an equation cannot be solved.
        notebook: Marks, steps, axes that belong together and late equations.
        constants: Gives the value of a constant tensor node, or None.
    """

    node: fx.Node
    args: dict[str, Any]
    outputs: list[tuple[int, ...]]
    env: dict[fx.Node, list[Axes]]
    why: Reason
    notebook: Notebook
    constants: Callable[[fx.Node], torch.Tensor | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.outputs[0]

    def axes(self, value: Any) -> Axes:
        """Axes of a tensor argument (of its first output); () for anything else."""
        if isinstance(value, fx.Node) and value in self.env and self.env[value]:
            return tuple(resolve(axis) for axis in self.env[value][0])
        return ()

    def is_tensor(self, value: Any) -> bool:
        """Whether an argument is a tensor value."""
        return isinstance(value, fx.Node) and value in self.env and bool(self.env[value])

    def tensors(self) -> list[Axes]:
        """Axes of every tensor argument, those inside lists too."""
        found: list[Axes] = []
        for value in self.args.values():
            for item in value if isinstance(value, list | tuple) else (value,):
                if self.is_tensor(item):
                    found.append(self.axes(item))
        return found

    def dim(self, value: Any, rank: int) -> int:
        """A dimension argument as a non-negative number."""
        return int(value) % max(rank, 1)

    def unify(self, a: Axis, b: Axis) -> None:
        """State that two axes are equal."""
        unify(a, b, self.why)

    def freeze(self, axis: Axis, text: str, kind: str = "structure") -> None:
        """Keep every slot of an axis, saying why."""
        freeze(axis, Reason(kind, text, self.why.op, self.why.source))

    def fixed(
        self, size: int, text: str = "follows a size that cannot change", kind: str = "structure"
    ) -> Leaf:
        """A new axis that cannot be pruned."""
        return Leaf(size, "", Reason(kind, text, self.why.op, self.why.source))

    def spatial(self, size: int) -> Leaf:
        """A new axis of image rows, columns or time."""
        return self.fixed(size, "a spatial axis", "spatial")

    def free(self, size: int) -> Leaf:
        """A new axis of constant slots, which go when what they meet goes."""
        return Leaf(size, "")

    def split(self, axis: Axis, *sizes: int) -> list[Axis]:
        """``axis`` as a product of the given sizes; frozen when it cannot be one."""
        parts: list[Axis] = []
        rest = resolve(axis)
        for size in sizes[:-1]:
            halves = factor(rest, size, self.why) if rest.size % size == 0 else None
            if halves is None:
                self.freeze(axis, self.why.text, self.why.kind)
                return [self.fixed(size, self.why.text, self.why.kind) for size in sizes]
            parts.append(halves[0])
            rest = halves[1]
        return [resolve(part) for part in [*parts, rest]]

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """``axis`` as consecutive segments of the given sizes; frozen when it cannot be cut so."""
        pieces = segment(axis, sizes, self.why)
        if pieces is None:
            self.freeze(axis, self.why.text, self.why.kind)
            return [self.fixed(size, self.why.text, self.why.kind) for size in sizes]
        return pieces

    def through(self, axis: Axis, index: Any) -> Axis:
        """``axis`` seen through a constant index map."""
        return through(axis, np.asarray(index, dtype=np.int64), self.why)

    def mark(self, axis: Axis, name: str) -> None:
        """Note what pruning this axis changes besides slices; see `Group.marks`."""
        self.notebook.marks.append((axis, name))

    def in_steps(self, axis: Axis, step: int) -> None:
        """Note that the op takes sizes of this axis that are multiples of ``step`` only; see `Group.step`."""
        self.notebook.steps.append((axis, step))

    def together(self, axes: Iterable[Axis]) -> None:
        """Note that to the op these are one dimension laid out in several: all of them at once would be
        summed over, or made."""
        self.notebook.together.append(tuple(axes))

    def later(self, equation: Callable[[], None]) -> None:
        """Settle an equation after all the others."""
        self.notebook.last.append(equation)

    def constant(self, node: Any) -> torch.Tensor | None:
        """The value of a tensor that depends on no input or parameter, or None."""
        return self.constants(node) if isinstance(node, fx.Node) else None

    def broadcast(self, *operands: Axes) -> Axes:
        """Align from the right and equate; axes of size 1 stretch."""
        rank = max((len(axes) for axes in operands), default=0)
        result: list[Axis] = []
        for back in range(rank, 0, -1):
            here = [axes[-back] for axes in operands if len(axes) >= back]
            wide = [axis for axis in here if axis.size != 1] or here[:1]
            for other in wide[1:]:
                self.unify(wide[0], other)
            result.append(wide[0])
        return tuple(result)

    def give_up(self, text: str, kind: str = "unsolved") -> list[Axes]:
        """Freeze every tensor argument and output."""
        for axes in self.tensors():
            for axis in axes:
                self.freeze(axis, text, kind)
        return [tuple(self.fixed(size, text, kind) for size in shape) for shape in self.outputs]


def has_free(axis: Axis) -> bool:
    """Whether some slot of the axis may still go."""
    return any(leaf.reason is None and leaf.size > 1 for leaf in leaves(resolve(axis)))
