"""What of a network can be pruned, what it costs, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from penjing.graph import Coupling, Frozen, Graph, Group, couple, trace
from penjing.graph.branches import Branch, find_branches
from penjing.measure.count import Count, count, layer_of

if TYPE_CHECKING:
    from rich.console import Group as RichGroup


@dataclass(frozen=True)
class GroupRow:
    """A group of slots that go together.

    Attributes:
        id: Name of the group.
        kind: ``"channel"``, ``"head"``…
        size: Slots.
        num_params: Parameters that its slots own a share of; what removing all of them would take away.
        num_macs: Likewise, of the MACs of layers with weights (one sample).
        marks: What pruning it changes besides slicing.
        tensors: Names with dimension of the parameters and buffers it runs through.
    """

    id: str
    kind: str
    size: int
    num_params: int
    num_macs: int
    marks: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class BranchRow:
    """A residual branch that can go whole: the ``f`` of ``x + f(x)``.

    Attributes:
        name: What ``prune(branches=…)`` calls it.
        num_params: Parameters that go with it.
        num_macs: MACs of its layers with weights (one sample).
    """

    name: str
    num_params: int
    num_macs: int


@dataclass(frozen=True)
class LayerRow:
    """A layer that multiplies.

    Attributes:
        name: Dotted name.
        op: The ATen op.
        num_params: Its parameters.
        num_macs: Its MACs for one sample.
        outputs: Share of its output slots that a group holds, 0 to 1.
        inputs: Likewise of its input slots.
        reads: Names of the layers whose results it reads, with no other layer between.
        joined_by: Earlier layers whose results meet its output (a residual addition, a concatenation).
    """

    name: str
    op: str
    num_params: int
    num_macs: int
    outputs: float
    inputs: float
    reads: tuple[str, ...]
    joined_by: tuple[str, ...]

    @property
    def state(self) -> str:
        """``"prunable"``, ``"partly"``, ``"inputs"`` (only what it reads can shrink) or ``"fixed"``."""
        if self.outputs >= 1:
            return "prunable"
        if self.outputs > 0:
            return "partly"
        return "inputs" if self.inputs > 0 else "fixed"


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` found.

    Attributes:
        num_params: Elements of all parameters.
        num_macs: MACs of one sample.
        num_params_in_groups: Elements that at least one group could remove.
        groups: Largest first.
        branches: Residual branches, in order of computation.
        frozen: Axes that stay whole, with the reason, op and source line.
        layers: In order of execution.
        notes: What tracing had to say.
    """

    num_params: int
    num_macs: int
    num_params_in_groups: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...] = ()
    branches: tuple[BranchRow, ...] = ()

    @property
    def prunable_share(self) -> float:
        """Share of the parameters that at least one group could remove."""
        return self.num_params_in_groups / self.num_params if self.num_params else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "num_params": self.num_params,
            "num_macs": self.num_macs,
            "num_params_in_groups": self.num_params_in_groups,
            "prunable_share": self.prunable_share,
            "groups": [
                {**vars(row), "marks": list(row.marks), "tensors": list(row.tensors)} for row in self.groups
            ],
            "branches": [vars(row) for row in self.branches],
            "frozen": [row.to_dict() for row in self.frozen],
            "layers": [
                {**vars(row), "reads": list(row.reads), "joined_by": list(row.joined_by), "state": row.state}
                for row in self.layers
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [self._headline(), ""]
        lines += _columns(GROUP_HEADER, self.group_rows())
        if self.branches:
            lines += ["", *_columns(BRANCH_HEADER, self.branch_rows())]
        if self.frozen:
            lines += ["", *_columns(FROZEN_HEADER, self.frozen_rows())]
        return "\n".join([*lines, *self.notes])

    def __rich__(self) -> RichGroup:
        from rich.console import Group as RichGroup
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(self._headline(), style="bold")]
        for title, header, rows in (
            ("Groups", GROUP_HEADER, self.group_rows()),
            ("Residual branches", BRANCH_HEADER, self.branch_rows()),
            ("Frozen", FROZEN_HEADER, self.frozen_rows()),
        ):
            if rows:
                table = Table(title=title, title_justify="left")
                for name in header:
                    table.add_column(name, justify="right" if name in ("slots", "params", "MACs") else "left")
                for row in rows:
                    table.add_row(*(Text(cell) for cell in row))
                parts.append(table)
        return RichGroup(*parts, *(Text(note, style="yellow") for note in self.notes))

    def group_rows(self) -> list[tuple[str, ...]]:
        """Cells under `GROUP_HEADER`."""
        return [
            (
                row.id,
                row.kind,
                f"{row.size:,}",
                f"{row.num_params:,}",
                f"{row.num_macs:,}",
                ", ".join(row.marks),
            )
            for row in self.groups
        ]

    def branch_rows(self) -> list[tuple[str, ...]]:
        """Cells under `BRANCH_HEADER`."""
        return [(row.name, f"{row.num_params:,}", f"{row.num_macs:,}") for row in self.branches]

    def frozen_rows(self) -> list[tuple[str, ...]]:
        """Cells under `FROZEN_HEADER`."""
        return [(row.reason, row.op, row.source, _short(row.params)) for row in self.frozen]

    def svg(self) -> str:
        """A picture of the network, its layers coloured by what can be pruned."""
        from penjing.measure.picture import draw

        return draw(self)

    def html(self) -> str:
        """One self-contained page: the picture and both tables."""
        from penjing.measure.picture import page

        return page(self, self._headline())

    def _headline(self) -> str:
        from penjing.report.text import some

        return (
            f"{self.num_params:,} parameters, {self.num_macs:,} MACs; {self.prunable_share:.1%} of the "
            f"parameters are in {some(len(self.groups), 'group')}; "
            f"{some(len(self.frozen), 'reason')} why others stay whole; "
            f"{some(len(self.branches), 'residual branch', 'residual branches')}"
        )


GROUP_HEADER = ("group", "kind", "slots", "params", "MACs", "marks")
BRANCH_HEADER = ("branch", "params", "MACs")
FROZEN_HEADER = ("reason", "op", "source", "parameters")


def inspect(
    model: nn.Module, example_inputs: Any, *, ignore: Sequence[str] = (), prune_outputs: bool = False
) -> Inspection:
    """Find what can be pruned in a model and what each part costs.

    Args:
        model: Any module; it is left as it was.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        ignore: Glob patterns on parameter names whose dimensions shall stay whole.
        prune_outputs: Whether the model's output dimensions may shrink too.

    Raises:
        TraceError: if the model cannot be traced.
        MeasureError: if its forward refuses the inputs.
    """
    graph = trace(model, example_inputs, by_example=True)
    coupling = couple(graph, ignore=ignore, prune_outputs=prune_outputs)
    counted = count(model, example_inputs)
    return describe(graph, coupling, counted)


def describe(graph: Graph, coupling: Coupling, counted: Count) -> Inspection:
    """Put together what was traced, solved and counted."""
    macs = {layer.name: layer.num_macs for layer in counted.layers}
    weights = _weights_by_layer(graph.params)
    rows = [_group_row(group, graph.params, weights, macs) for group in coupling.groups]
    covered = _covered(coupling.groups, graph.params)
    inside = sum(_union(tensor, covered.get(name, {})) for name, tensor in graph.params.items())
    reads, joins = _edges(
        graph, {layer.name for layer in counted.layers if layer.num_macs and layer.name in weights}
    )
    layers = tuple(
        LayerRow(
            name=layer.name,
            op=layer.op,
            num_params=layer.num_params,
            num_macs=layer.num_macs,
            outputs=_share(graph.params, weights[layer.name], covered, first=True),
            inputs=_share(graph.params, weights[layer.name], covered, first=False),
            reads=reads.get(layer.name, ()),
            joined_by=joins.get(layer.name, ()),
        )
        for layer in counted.layers
        if layer.num_macs and layer.name in weights
    )
    return Inspection(
        num_params=counted.num_params,
        num_macs=counted.num_macs,
        num_params_in_groups=inside,
        groups=tuple(sorted(rows, key=lambda row: (-row.num_params, row.id))),
        frozen=coupling.frozen,
        layers=layers,
        notes=graph.notes,
        branches=tuple(_branch_row(branch, graph.params, macs) for branch in find_branches(graph)),
    )


def _branch_row(branch: Branch, params: Mapping[str, Tensor], macs: Mapping[str, int]) -> BranchRow:
    names = [name for name in branch.tensors if name in params]
    layers = {layer_of(name) for name in names}
    return BranchRow(
        name=branch.name,
        num_params=sum(params[name].numel() for name in names),
        num_macs=sum(macs.get(layer, 0) for layer in layers),
    )


Covered = dict[str, dict[int, NDArray[np.bool_]]]  # tensor → dim → which positions a group holds


def _covered(groups: Sequence[Group], params: Mapping[str, Tensor]) -> Covered:
    covered: Covered = {}
    for group in groups:
        for member in group.members:
            if member.tensor in params:
                size = params[member.tensor].shape[member.dim]
                held = covered.setdefault(member.tensor, {}).setdefault(
                    member.dim, np.zeros(size, dtype=bool)
                )
                held[member.index[member.index >= 0]] = True
    return covered


def _union(tensor: Tensor, dims: Mapping[int, NDArray[np.bool_]]) -> int:
    """Elements with a covered position in at least one dimension, exactly."""
    outside = 1
    for dim, size in enumerate(tensor.shape):
        outside *= size - int(dims[dim].sum()) if dim in dims else size
    return tensor.numel() - outside


def _group_row(
    group: Group, params: Mapping[str, Tensor], weights: Mapping[str, list[str]], macs: Mapping[str, int]
) -> GroupRow:
    covered = _covered([group], params)
    taken = {name: _union(params[name], dims) for name, dims in covered.items()}
    num_macs = 0
    for layer, names in weights.items():
        total = sum(params[name].numel() for name in names)
        num_macs += macs.get(layer, 0) * sum(taken.get(name, 0) for name in names) // total
    return GroupRow(
        id=group.id,
        kind=group.kind,
        size=group.size,
        num_params=sum(taken.values()),
        num_macs=num_macs,
        marks=tuple(sorted(group.marks)),
        tensors=tuple(f"{member.tensor}:{member.dim}" for member in group.members),
    )


def _weights_by_layer(params: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Parameters of two dimensions or more (those that are multiplied), by layer."""
    weights: dict[str, list[str]] = {}
    for name, tensor in params.items():
        if tensor.dim() >= 2 and tensor.numel():
            weights.setdefault(layer_of(name), []).append(name)
    return weights


def _share(params: Mapping[str, Tensor], names: list[str], covered: Covered, *, first: bool) -> float:
    shares = []
    for name in names:
        dims = range(1) if first else range(1, params[name].dim())
        held = [float(covered[name][dim].mean()) for dim in dims if dim in covered.get(name, {})]
        shares.append(max(held, default=0.0))
    return sum(shares) / len(shares)


def _edges(graph: Graph, layers: set[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """For each layer, what it reads; and what joins its output downstream (added, concatenated, multiplied).

    A join is booked under its latest layer and stands for it from there on: a residual block is then one arc.
    """
    order: dict[str, int] = {}
    reads: dict[str, dict[str, None]] = {}
    joins: dict[str, dict[str, None]] = {}
    upstream: dict[fx.Node, str] = {}
    for node in graph.module.graph.nodes:
        sources = {upstream[each]: None for each in node.all_input_nodes if each in upstream}
        latest = max(sources, key=order.__getitem__, default=None)
        names = [layer_of(str(each.target)) for each in node.all_input_nodes if each.op == "get_attr"]
        mine = next((name for name in names if name in layers), None)
        if mine is not None:
            order.setdefault(mine, len(order))
            reads.setdefault(mine, {}).update({name: None for name in sources if name != mine})
            upstream[node] = mine
        elif latest is not None:
            joins.setdefault(latest, {}).update({name: None for name in sources if name != latest})
            upstream[node] = latest
    return {name: tuple(found) for name, found in reads.items()}, {
        name: tuple(found) for name, found in joins.items()
    }


def _short(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _columns(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
