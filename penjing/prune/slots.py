"""Between a plan (positions of tensors, by name) and the slots of a coupling's groups (by leaf id)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from penjing.errors import PruneError
from penjing.graph import Coupling, Graph, count
from penjing.graph.groups import names_on
from penjing.prune.plan import GroupEdit, Plan
from penjing.prune.ranges import Positions
from penjing.prune.slicing.graph import kept_dims


def by_leaf(coupling: Coupling, kept: Mapping[str, Positions]) -> dict[int, Positions]:
    """Kept slots by leaf id, for the groups that lose some."""
    return {g.leaf: kept[g.id] for g in coupling.groups if g.id in kept and len(kept[g.id]) < g.size}


def by_group(coupling: Coupling, kept: Mapping[int, Positions]) -> dict[str, Positions]:
    """Kept slots by group id, for the groups that lose some: the inverse of `by_leaf`."""
    return {g.id: kept[g.leaf] for g in coupling.groups if g.leaf in kept}


def group_edits(coupling: Coupling, kept: Mapping[str, Positions]) -> dict[str, GroupEdit]:
    """The plan's entry of every group that loses slots."""
    return {
        g.id: GroupEdit(g.size, kept[g.id])
        for g in coupling.groups
        if g.id in kept and len(kept[g.id]) < g.size
    }


def renamed(coupling: Coupling, kept: Mapping[int, Positions]) -> dict[str, str]:
    """Id in the pruned network → id here, of the groups for which it changes."""
    found = {}
    for group in coupling.groups:
        first = group.members[0]
        names = names_on(first.tensor, first.dim, first.axis, lambda leaf: count(leaf, kept))
        name = names.get(group.leaf, group.id)
        if name != group.id:
            found[name] = group.id
    return found


def tensor_edits(
    graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]
) -> dict[str, dict[int, Positions]]:
    """``{dim: kept}`` of everything in the state dict that changes, by each of its names."""
    edits = {}
    for name in dict.fromkeys(graph.aliases.get(h.name, h.name) for h in graph.held() if h.persistent):
        dims = kept_dims(coupling, name, kept)
        if dims:
            edits[name] = dims
    for alias, first in graph.aliases.items():
        if first in edits:
            edits[alias] = edits[first]
    return edits


def index_values(graph: Graph, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """New contents of the state dict's index buffers, by each of their names."""
    names = [h.name for h in graph.held() if h.persistent]
    names += list(graph.aliases)
    found = {name: values.get(graph.aliases.get(name, name)) for name in names}
    return {name: value.tolist() for name, value in found.items() if value is not None}


def slots_of(plan: Plan, coupling: Coupling) -> dict[int, Positions]:
    """The slots a plan keeps of each leaf, found from what it keeps of the tensors.

    Raises:
        PruneError: if the plan's positions are not whole slots of this model's groups.
    """
    kept: dict[int, Positions] = {}
    for group in coupling.groups:
        mask = np.ones(group.size, dtype=bool)
        for member in group.members:
            positions = plan.tensors.get(member.tensor, {}).get(member.dim)
            if positions is None:  # whole, or not in the state dict
                continue
            alive = np.zeros(plan.shapes[member.tensor][member.dim] + 1, dtype=bool)
            alive[positions] = True  # the last entry, False, stands for the -1 that fills up rows
            mask &= alive[member.index].any(axis=1) | (member.index < 0).all(axis=1)
        if not mask.all():
            kept[group.leaf] = np.flatnonzero(mask).astype(np.int64)
    for name, dims in plan.tensors.items():
        if name not in coupling.tensors:
            continue
        found = kept_dims(coupling, name, kept)
        if found.keys() != dims.keys() or any(not np.array_equal(found[d], dims[d]) for d in dims):
            raise PruneError(
                "the plan keeps positions that do not go together in this model",
                layer=name,
                remedy="Make the plan again: the model's forward has changed since",
            )
    return kept
