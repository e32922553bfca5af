"""Walk the graph once, let each op's rule state its equations, and read off the groups."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor, fx

from penjing.graph.axes import Axis, Index, Leaf, Product, Reason, Sum, is_fixed, leaves
from penjing.graph.batch import batch_standin, concrete
from penjing.graph.constants import Constants
from penjing.graph.groups import Coupling, Frozen, Group, Member, names_on
from penjing.graph.rules import Axes, Notebook, Op, find_rule
from penjing.graph.trace import Graph
from penjing.graph.unify import freeze, resolve, unify
from penjing.graph.unread import unread
from penjing.graph.unused import companions

Result = Axes | list[Axes]


def solve(graph: Graph, *, ignore: Sequence[str], prune_outputs: bool) -> Coupling:
    """See `penjing.graph.groups.couple`."""
    parts = [graph, *([graph.training] if graph.training is not None else [])]
    standin = batch_standin(part.module.graph for part in parts)
    solver = _Solver(graph, ignore, standin)
    for part in parts:
        for node in part.module.graph.nodes:
            solver.visit(node, prune_outputs)
    for equation in solver.notebook.last:
        equation()
    for leaf, node in unread(solver.env).items():
        text = "cut off with these inputs; others may read it"
        freeze(leaf, Reason("unused", text, str(node.target), graph.source(node)))
    why = Reason("unused", "the forward does not use this parameter")
    idle = {name: solver.tensors[name] for name in graph.params if name not in solver.read}
    for axis, companion in list(companions(idle, solver.env)) if graph.is_training_unknown else ():
        unify(companion, axis, why)
    for axis in (axis for axes in idle.values() for axis in axes if resolve(axis) is axis):
        freeze(axis, why)
    tensors = {name: tuple(resolve(axis) for axis in axes) for name, axes in solver.tensors.items()}
    values = {
        node.name: tuple(tuple(resolve(axis) for axis in axes) for axes in outputs)
        for node, outputs in solver.env.items()
        if node.graph is graph.module.graph
    }
    marks: dict[int, set[str]] = {}
    for axis, mark in solver.notebook.marks:
        for leaf in leaves(resolve(axis)):
            marks.setdefault(leaf.id, set()).add(mark)
    steps: dict[int, int] = {}
    for axis, step in solver.notebook.steps:
        for leaf in leaves(resolve(axis)):
            steps[leaf.id] = math.lcm(steps.get(leaf.id, 1), step)
    read = [name for name in (*graph.params, *graph.buffers) if name not in idle]
    groups = _groups(graph, read, tensors, marks, steps, solver.notebook.together)
    return Coupling(groups, _frozen(graph, tensors), tensors, values, standin)


class _Solver:
    """The state of one walk: axes of every tensor and value."""

    def __init__(self, graph: Graph, ignore: Sequence[str], standin: int) -> None:
        self.graph = graph
        self.standin = standin
        self.notebook = Notebook()
        self.env: dict[fx.Node, list[Axes]] = {}
        self.read: set[str] = set()
        self.tensors: dict[str, Axes] = {}
        self.constants = Constants(graph)
        extra = graph.training.buffers if graph.training is not None else {}
        for name, tensor in {**graph.params, **graph.buffers, **extra}.items():
            names = [name, *(alias for alias, first in graph.aliases.items() if first == name)]
            pattern = next((p for p in ignore if any(matches(n, p) for n in names)), None)
            reason = (
                Reason("ignored", f"matches the ignore pattern {pattern!r}") if pattern is not None else None
            )
            self.tensors[name] = tuple(
                Leaf(size, f"{name}:{dim}", reason) for dim, size in enumerate(tensor.shape)
            )

    def visit(self, node: fx.Node, prune_outputs: bool) -> None:
        if node.op == "get_attr":
            if node.target in self.tensors:
                self.read.add(str(node.target))
                self.env[node] = [self.tensors[str(node.target)]]
        elif node.op == "placeholder":
            self.env[node] = [
                tuple(_input_axis(node, dim, size) for dim, size in enumerate(shape))
                for shape in shapes_of(node, self.standin)
            ]
        elif node.op == "output":
            if not prune_outputs:
                reason = Reason("output", "a dimension of the model's output")
                for source in node.all_input_nodes:
                    for axes in self.env.get(source, []):
                        for axis in axes:
                            freeze(axis, reason)
        elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            outputs = self.env.get(node.args[0], [])
            place = node.args[1]
            if isinstance(place, int) and outputs:
                self.env[node] = [outputs[place]]
        elif node.op == "call_function":
            shapes = shapes_of(node, self.standin)
            if shapes:
                self.env[node] = self.apply_rule(node, shapes)

    def apply_rule(self, node: fx.Node, shapes: list[tuple[int, ...]]) -> list[Axes]:
        name, source = str(node.target), self.graph.source(node)
        at = f" at {source}" if source else ""
        why = Reason("unsolved", f"{name}{at} fits no common structure", name, source)
        op = Op(node, bind(node), shapes, self.env, why, self.notebook, self.constants)
        function = find_rule(name)
        if function is None:
            return op.give_up(f"no rule for {name}{at}")
        try:
            result = function(op)
        except (ValueError, IndexError, KeyError, TypeError, StopIteration) as error:
            return op.give_up(f"the rule for {name}{at} does not cover this use ({error})")
        outputs = result if isinstance(result, list) else [result]
        sizes = [tuple(axis.size for axis in axes) for axes in outputs]
        if sizes != shapes:
            return op.give_up(f"the rule for {name}{at} expects {sizes}, found {shapes}")
        for axes, value in zip(outputs, tensors_of(node), strict=True):
            for axis, size in zip(axes, value.shape, strict=True):
                if not _is_number(size) and isinstance(axis, Leaf) and axis.bound is None:
                    freeze(axis, Reason("input", "the batch"))
        return outputs


def _is_number(size: Any) -> bool:
    return isinstance(size, int)


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a parameter name or a module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _input_axis(node: fx.Node, dim: int, size: int) -> Leaf:
    return Leaf(
        size, f"{node.name}:{dim}", Reason("input", f"dimension {dim} of the model's input {node.name}")
    )


def tensors_of(node: fx.Node) -> list[Tensor]:
    """The (fake) tensor outputs of a node, in order."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list) and value and all(isinstance(item, Tensor) for item in value):
        return list(value)
    return []


def shapes_of(node: fx.Node, standin: int) -> list[tuple[int, ...]]:
    """Shapes of a node's tensor outputs with every symbolic size replaced by the stand-in."""
    return [tuple(concrete(size, standin) for size in tensor.shape) for tensor in tensors_of(node)]


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments by schema name, with the schema's defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(place): value for place, value in enumerate(node.args)}, **node.kwargs}
    bound: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args):
            bound[argument.name] = node.args[place]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def _groups(
    graph: Graph,
    read: Sequence[str],  # what no node reads follows, but says nothing of what its slots are worth
    tensors: dict[str, Axes],
    marks: dict[int, set[str]],
    steps: dict[int, int],
    together: Sequence[Axes],
) -> tuple[Group, ...]:
    members: dict[int, list[tuple[str, int]]] = {}
    found: dict[int, Leaf] = {}
    named: dict[int, str] = {}
    cofactors: dict[int, dict[int, None]] = {}
    kinds: dict[int, str] = {}
    for name in read:
        for dim, axis in enumerate(tensors[name]):
            free = list(
                {leaf.id: leaf for leaf in leaves(axis) if leaf.reason is None and leaf.size > 1}.values()
            )
            names = names_on(name, dim, axis, lambda leaf: leaf.size)
            for leaf in free:
                members.setdefault(leaf.id, []).append((name, dim))
                if name in graph.params and leaf.id not in found:
                    found[leaf.id] = leaf
                    named[leaf.id] = names[leaf.id]
                    kinds[leaf.id] = _kind(axis, leaf)
            _note_cofactors(axis, cofactors)
    for axes in together:
        _note_factors([resolve(axis) for axis in axes], cofactors)
    groups: list[Group] = []
    for number, leaf in found.items():
        own = frozenset(marks.get(number, set()) | ({"index"} if leaf.views else set()))
        kind = next((tag for tag in ("head", "head_dim") if tag in own), kinds[number])
        groups.append(
            Group(
                id=named[number],
                leaf=number,
                size=leaf.size,
                kind=kind,
                members=tuple(Member(name, dim, tensors[name][dim], leaf) for name, dim in members[number]),
                marks=own - {"head", "head_dim"},
                cofactors=tuple(named[other] for other in cofactors.get(number, {}) if other in named),
                parts=_parts(leaf),
                step=steps.get(number, 1),
            )
        )
    return tuple(groups)


def _parts(leaf: Leaf) -> tuple[Index, ...]:
    shown = {part.tobytes(): part for part in map(np.unique, leaf.views) if 0 < len(part) < leaf.size}
    return tuple(shown.values())


def _kind(axis: Axis, leaf: Leaf) -> str:
    for piece in axis.parts if isinstance(axis, Sum) else (axis,):
        if isinstance(piece, Product):
            inside = [any(own is leaf for own in leaves(factor)) for factor in piece.factors]
            others = any(own.reason is None and own is not leaf for own in leaves(piece))
            if any(inside) and others:
                return "block" if inside[0] else "within"
    return "channel"


def _note_cofactors(axis: Axis, cofactors: dict[int, dict[int, None]]) -> None:
    if isinstance(axis, Sum):
        for part in axis.parts:
            _note_cofactors(part, cofactors)
    elif isinstance(axis, Product):
        _note_factors(axis.factors, cofactors)


def _note_factors(factors: Sequence[Axis], cofactors: dict[int, dict[int, None]]) -> None:
    free = [
        [leaf.id for leaf in leaves(factor) if leaf.reason is None and leaf.size > 1] for factor in factors
    ]
    for place, here in enumerate(free):
        for other in [*free[:place], *free[place + 1 :]]:
            for leaf in here:
                cofactors.setdefault(leaf, {}).update(dict.fromkeys(other))


def _frozen(graph: Graph, tensors: dict[str, Axes]) -> tuple[Frozen, ...]:
    affected: dict[Reason, dict[str, None]] = {}
    for name in graph.params:
        for dim, axis in enumerate(tensors[name]):
            hidden = {"kernel"} if is_fixed(axis) else {"kernel", "spatial"}
            for leaf in leaves(axis):
                if leaf.reason is not None and leaf.size > 1 and leaf.reason.kind not in hidden:
                    affected.setdefault(leaf.reason, {})[f"{name}:{dim}"] = None
    return tuple(
        Frozen(reason.kind, reason.text, reason.op, reason.source, tuple(params))
        for reason, params in affected.items()
    )
