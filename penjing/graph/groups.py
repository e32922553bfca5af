"""Groups: what can be pruned, once every equation of the graph is solved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from penjing.graph.axes import Axis, Index, Leaf, leaves, slot_index
from penjing.graph.batch import BATCH_PRIME
from penjing.graph.trace import Graph


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one parameter or buffer that a group's slots own parts of.

    Attributes:
        tensor: Name of the parameter or buffer, as in ``graph.params`` / ``graph.buffers``.
        dim: The dimension.
        axis: The resolved axis of that dimension.
        leaf: The group's leaf.
    """

    tensor: str
    dim: int
    axis: Axis
    leaf: Leaf

    @cached_property
    def index(self) -> Index:
        """int64 (size, k): slot i owns positions ``index[i]``; rows shorter than k are filled up with -1."""
        return slot_index(self.axis, self.leaf)


@dataclass(frozen=True, eq=False)
class Group:
    """One surviving leaf: slot i stands for every slice of every parameter that must go together.

    Attributes:
        id: Stable, readable name: the first parameter and dimension, e.g. ``"layer1.0.conv1.weight:0"``.
        leaf: The leaf's id in this coupling's axes; the key of the ``kept`` mapping for `positions`.
        size: Number of slots.
        kind: ``"channel"``, ``"head"``, ``"head_dim"``, ``"block"`` (outer factor of a split axis) or
            ``"within"`` (inner factor).
        members: The parameter and buffer slices.
        marks: What pruning it changes besides slicing: ``"normalised"`` (a norm's statistics run over it),
            ``"softmax"``, ``"mean"``, ``"reduced"`` (max, norm…), ``"index"`` (seen through an index map).
        cofactors: Ids of the groups it shares a dimension with as a product, or would share one with if a
            kernel's were not laid out apart (heads and their sizes): pruning both multiplies.
        parts: Sets of slots that make up a dimension somewhere by themselves (behind a channel shuffle, each
            half of a block): none may go altogether.
        step: Kept counts are multiples of this: a kernel takes no others.
    """

    id: str
    leaf: int
    size: int
    kind: str
    members: tuple[Member, ...]
    marks: frozenset[str] = frozenset()
    cofactors: tuple[str, ...] = ()
    parts: tuple[Index, ...] = ()
    step: int = 1


@dataclass(frozen=True)
class Frozen:
    """Axes that stay whole, and why.

    Attributes:
        kind: See `penjing.graph.axes.Reason`.
        reason: One sentence.
        op: The op concerned, or "".
        source: ``"file.py:line"``, or "".
        params: Names with dimension of the parameters affected, e.g. ``"head.weight:0"``.
    """

    kind: str
    reason: str
    op: str
    source: str
    params: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "kind": self.kind,
            "reason": self.reason,
            "op": self.op,
            "source": self.source,
            "params": list(self.params),
        }


@dataclass(frozen=True, eq=False)
class Coupling:
    """The solved axes of a graph.

    Attributes:
        groups: What can be pruned.
        frozen: What cannot, with reasons.
        tensors: Resolved axis of each dimension of each parameter, buffer and constant, by name.
        values: For every node with tensor outputs, by node name: one tuple of axes per output.
        batch: What a free batch counts as in the sizes of axes.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    tensors: Mapping[str, tuple[Axis, ...]]
    values: Mapping[str, tuple[tuple[Axis, ...], ...]] = field(repr=False)
    batch: int = BATCH_PRIME


def names_on(tensor: str, dim: int, axis: Axis, slots: Callable[[Leaf], int]) -> dict[int, str]:
    """What groups first met on this dimension are called, by leaf id: numbered where it has several leaves.

    What the caller alone keeps whole counts, too: the names do not depend on what is asked for.

    Args:
        tensor: Name of the parameter.
        dim: The dimension.
        axis: Its resolved axis.
        slots: How many slots a leaf has; one with a single slot is none.
    """
    found = {
        leaf.id: None
        for leaf in leaves(axis)
        if slots(leaf) > 1 and (leaf.reason is None or leaf.reason.kind in ("ignored", "output"))
    }
    return {
        leaf: f"{tensor}:{dim}" + (f"#{number}" if len(found) > 1 else "")
        for number, leaf in enumerate(found)
    }


def couple(graph: Graph, *, ignore: Sequence[str] = (), prune_outputs: bool = False) -> Coupling:
    """Solve the graph's axis equations and list what can be pruned.

    Args:
        graph: A traced network.
        ignore: Glob patterns on parameter names; the axes of matching parameters stay whole.
        prune_outputs: Whether the model's output dimensions may be pruned.

    Returns:
        Groups, frozen axes with reasons, and the axes of every tensor and node.
    """
    from penjing.graph.solve import solve

    return solve(graph, ignore=tuple(ignore), prune_outputs=prune_outputs)
