"""What a slot is worth: the damage its removal does for each unit of cost it saves.

Under a budget, slots whose damages add up go in the order of damage over saving: the greedy choice for the
knapsack (Dantzig 1957), which is how one layer's channels compare with another's.

Damages are estimated one at a time, on the original, and come out too high where a parameter serves many
positions: early in a network, where the refits behind repair most of what is done. So they are divided by a
power of the positions, too. Refitted, not trained, validation without and with the root of them: ResNet-20 at
2× fewer MACs 86.8 and 90.8%, at half the parameters 85.9 and 86.5%; ResNet-56 at 2.57× 95.9 and 96.6%
(`bench/cifar10.py`).

Under a ratio slots count, whatever they save: damages would empty the groups whose slots do little each,
which do much together. There each group's are relative to their mean. ResNet-20, 0.4 of all slots, refitted,
validation: damages 86.7% (at 0.66 of the MACs), by positions 89.4% (0.55), by what they save 88.0% (0.53),
relative to the mean **93.3%** (0.57); magnitude 92.5% (0.59), random 88.2% (0.61).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from penjing.graph import Coupling, Graph
from penjing.prune.budget import Budget
from penjing.prune.cost import Cost
from penjing.prune.criteria import Criterion, Material
from penjing.prune.criteria.base import normalise
from penjing.prune.slots import by_leaf

_COUNTED = {"params": "params", "macs": "macs", "bytes": "bytes", "latency": "macs"}
"""What stands for a bound; for latency the multiply-accumulates, which cost nothing to know."""

_POSITIONS = 0.6
"""Exponent of the positions: 0.5 to 0.75 are alike on the networks above, by validation."""


def weighed_scores(
    criterion: Criterion, material: Material, budget: Budget | None = None
) -> dict[str, NDArray[np.float64]]:
    """A criterion's scores as groups compare by them, where they are damages that add up.

    Args:
        criterion: Scores the slots.
        material: The network, its trace, groups and data.
        budget: What is to be saved; None where a ratio of the slots is to go.
    """
    scores = criterion.scores(material)
    if not criterion.adds_up or criterion.normalisation != "none":
        return scores
    if budget is None:
        return {name: normalise(row, "mean") for name, row in scores.items()}
    return per_cost(material.graph, material.coupling, scores, budget)


def per_cost(
    graph: Graph, coupling: Coupling, scores: Mapping[str, NDArray[np.float64]], budget: Budget
) -> dict[str, NDArray[np.float64]]:
    """Scores divided by what a slot of their group saves.

    Args:
        graph: The traced network.
        coupling: Its groups.
        scores: Damage of every slot by group id, in one unit for all groups.
        budget: Says what is to be saved; of several quantities the sum of the shares.

    Returns:
        The same, each group divided by the mean saving of its slots and by a power of the positions that its
        parameters serve; slots that save nothing go last.
    """
    cost = Cost(graph, coupling)
    bounded = sorted({_COUNTED[bound] for bound in budget.bounds})
    counts = {name: getattr(cost, name) for name in {*bounded, "params", "macs"}}
    whole = {name: count({}) for name, count in counts.items()}
    out = {}
    for group in coupling.groups:
        almost = by_leaf(coupling, {group.id: np.arange(1)})
        left = {name: count(almost) for name, count in counts.items()}
        saved = sum(1 - left[name] / max(whole[name], 1) for name in bounded) / max(group.size - 1, 1)
        positions = max(whole["macs"] - left["macs"], 1) / max(whole["params"] - left["params"], 1)
        out[group.id] = scores[group.id] / max(saved, 1e-12) / positions**_POSITIONS
    return out
