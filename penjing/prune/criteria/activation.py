"""A slot that is hardly ever active can go: mean size of its values on data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from penjing.batches import ask, take_apart
from penjing.errors import DataError
from penjing.events import Event
from penjing.graph import Axis, leaves
from penjing.graph.axes import slot_index
from penjing.graph.inputs import flat_inputs
from penjing.graph.remembered import own_copies
from penjing.prune.criteria.base import Criterion, Material, Scores, criterion

_READS_WEIGHT = ("conv", "linear", "matmul", "addmm", "lstm", "einsum")


@criterion("activation")
@dataclass(frozen=True)
class Activation(Criterion):
    """Mean |a| of a slot's values where a weight reads them (Hu et al. 2016, "Network trimming", with size
    for rate).

    Groups that no weight reads directly are scored where they are made.
    """

    needs_data: ClassVar[bool] = True

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Run the traced graph over the data and sum |values| slot by slot."""
        sites = _sites(material)
        meter = _ActivationSums(material.graph.module, sites)
        batches = 0
        for batch in material.batches:
            inputs, *_ = take_apart(batch, material.graph.input_names)
            flat = flat_inputs(material.graph.module, own_copies(inputs))
            with torch.no_grad():
                ask(lambda _: meter.run(*flat), inputs, "model")  # noqa: B023
            batches += 1
            material.listen(Event("prune", "progress", step=batches, unit="batch", message="activations"))
        if not batches:
            raise DataError("no batches", remedy="Give at least one batch of training data")
        return [meter.mean(group.leaf, group.size) for group in material.coupling.groups]


_Sites = dict[str, list[tuple[int, Axis]]]  # node name → (dim, axis) to measure


def _sites(material: Material) -> _Sites:
    """For each group the values to measure: those that a weight reads, else all that show it."""
    read: dict[int, list[tuple[str, int, Axis]]] = {g.leaf: [] for g in material.coupling.groups}
    shown: dict[int, list[tuple[str, int, Axis]]] = {g.leaf: [] for g in material.coupling.groups}
    for node in material.graph.module.graph.nodes:
        outputs = material.coupling.values.get(node.name, ())
        if node.op != "call_function" or len(outputs) != 1:
            continue
        is_read = any(
            user.args and user.args[0] is node and any(word in str(user.target) for word in _READS_WEIGHT)
            for user in node.users
        )
        for dim, axis in enumerate(outputs[0]):
            for leaf in {leaf.id for leaf in leaves(axis)} & shown.keys():
                shown[leaf].append((node.name, dim, axis))
                if is_read:
                    read[leaf].append((node.name, dim, axis))
    sites: _Sites = {}
    for leaf, places in shown.items():
        for name, dim, axis in read[leaf] or places[:1]:
            sites.setdefault(name, []).append((dim, axis))
    return sites


class _ActivationSums(fx.Interpreter):
    """Sums |values| over everything but the slots."""

    def __init__(self, module: fx.GraphModule, sites: _Sites) -> None:
        super().__init__(module)
        self.sites = sites
        self.sums: dict[int, Any] = {}
        self.counts: dict[int, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Measure what the node gave, if it is a site."""
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.is_floating_point():
            for dim, axis in self.sites.get(node.name, ()):
                if value.shape[dim] != axis.size:  # a dim that holds the batch too
                    continue
                others = [d for d in range(value.ndim) if d != dim]
                means = value.abs().to(torch.float64).mean(dim=others) if others else value.abs()
                for leaf, row in _by_slot(axis, means.cpu().numpy()):
                    self.sums[leaf] = self.sums.get(leaf, 0.0) + row
                    self.counts[leaf] = self.counts.get(leaf, 0) + 1
        return value

    def mean(self, leaf: int, size: int) -> Scores:
        """Mean over sites and batches; without any, all slots weigh the same."""
        if leaf not in self.sums:
            return np.ones(size)
        return np.asarray(self.sums[leaf] / self.counts[leaf], dtype=np.float64)


def _by_slot(axis: Axis, values: Any) -> Iterable[tuple[int, Any]]:
    """Mean of a value per position, for the slots of every leaf of the axis."""
    for leaf in {leaf.id: leaf for leaf in leaves(axis)}.values():
        index = slot_index(axis, leaf)
        owned = np.where(index >= 0, values[index], 0.0)
        yield leaf.id, owned.sum(axis=1) / np.maximum((index >= 0).sum(axis=1), 1)
