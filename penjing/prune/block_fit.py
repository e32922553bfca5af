"""Fit whole blocks: the layers of a block together, to what the original's block gives.

A layer's least-squares fit takes the layers around it as they are. Where channels are missing, a block's
layers do better together: the first ones then make other features than the original's, if the last ones can
do more with them. Li et al. 2021, "BRECQ", do the same for rounding; blocks are small enough that some
thousand unlabelled samples do not overfit them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from penjing.graph import Coupling, Graph, couple
from penjing.graph.axes import count
from penjing.graph.batch import batch_unit, is_batched
from penjing.graph.sections import Section, find_sections
from penjing.improve import improved
from penjing.muon import Muon, size_of
from penjing.prune.nodes import only_reader, shape_of
from penjing.prune.places import Place
from penjing.prune.plan import Plan
from penjing.prune.ranges import Positions
from penjing.prune.reconstruct import BlockFit
from penjing.prune.slicing.graph import cut_dims
from penjing.prune.slots import slots_of
from penjing.prune.walk import attribute, called

_BATCH = 64
_LAYERS = 2  # a single layer has its least-squares fit already
_RATES = {"weights": 0.03, "vectors": 0.005}
"""Rates of `Muon`, relative to the size of a tensor's values."""


class Counterpart:
    """The original's values as the student has them: without the positions that are gone."""

    def __init__(self, teacher: Graph, twin: Mapping[fx.Node, fx.Node], plan: Plan | None) -> None:
        self.teacher, self.twin, self.plan = teacher, twin, plan

    @cached_property
    def coupling(self) -> Coupling:
        """The original's axes."""
        return couple(self.teacher)

    @cached_property
    def kept(self) -> Mapping[int, Positions]:
        """The slots that the student has of each leaf; a leaf that is missing it has whole."""
        return {} if self.plan is None else slots_of(self.plan, self.coupling)

    def fits(self, node: fx.Node) -> bool:
        """Whether a value holds sample after sample, and positions of the original's that are known."""
        twin = self.twin.get(node)
        axes = () if twin is None else self.coupling.values.get(twin.name, ())
        shape = shape_of(node) if isinstance(node.meta.get("val"), Tensor) else ()
        return (
            is_batched(node)
            and len(axes) == 1
            and len(axes[0]) == len(shape)
            and all(
                count(axis, self.kept) == size
                for axis, size in zip(axes[0], shape, strict=True)
                if isinstance(size, int)
            )
        )

    def of(self, node: fx.Node, theirs: Tensor) -> Tensor:
        """A value of the original's counterpart of this node, cut to what the node holds."""
        axes = self.coupling.values[self.twin[node].name][0]
        for dim, kept in cut_dims(axes, self.kept).items():
            theirs = theirs.index_select(dim, torch.from_numpy(kept))
        return theirs


class Blocks:
    """A student's blocks, to be fitted one after the other.

    Args:
        student: Its graph; parameters are changed in place.
        places: Layers that may change, by node.
        counterpart: Says where a block may end and what should leave it.
        steps: Training steps for each block; 0 takes the network as having no blocks.
        seed: Draws the batches.
    """

    def __init__(
        self,
        student: Graph,
        places: Mapping[fx.Node, Place],
        counterpart: Counterpart,
        steps: int,
        seed: int,
    ) -> None:
        self.student, self.places, self.counterpart, self.steps = student, places, counterpart, steps
        self.unit = batch_unit(student.module.graph)
        self.draw = np.random.default_rng(seed)
        self.nodes = [node for node in student.module.graph.nodes if node.op != "output"]
        self.by_name = {node.name: node for node in self.nodes}
        output = next(node for node in student.module.graph.nodes if node.op == "output")
        layers = {node.name for node in places}
        self.sections: list[Section] = []
        if steps:
            self.sections = find_sections(
                [(node.name,) for node in self.nodes],
                [{source.name for source in node.all_input_nodes} for node in self.nodes],
                {node.name for node in output.all_input_nodes},
                layers,
                least=_LAYERS,
                may_end=lambda name: counterpart.fits(self.by_name[name]),
                goes_along=lambda index: _goes_along(self.nodes[index], layers),
            )

    def ends(self, section: Section) -> list[fx.Node]:
        """The nodes that leave a block."""
        return [self.by_name[name] for name in section.ends]

    def inside(self, section: Section) -> list[fx.Node]:
        """The nodes of a block."""
        return [self.nodes[index] for index in section.steps]

    def run(self, section: Section, given: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """All values of a block.

        Args:
            section: The block.
            given: The network's inputs and what enters the block.
        """
        values = dict(given)
        for node in self.inside(section):
            if node not in values:
                attr = node.op == "get_attr"
                values[node] = attribute(self.student, node) if attr else called(node, values.__getitem__)
        return values

    def fit(
        self,
        section: Section,
        given: Sequence[Mapping[fx.Node, Tensor]],
        wanted: Sequence[Mapping[fx.Node, Tensor]],
        splits: Sequence[int],
    ) -> BlockFit | None:
        """Train a block's parameters.

        Args:
            section: The block.
            given: For each batch, as `run` takes it.
            wanted: For each batch, what should leave the block, by node.
            splits: How many samples of each batch are trained on; the others are held back.

        Returns:
            None where there is nothing to be trained together.
        """
        weights, vectors = self._own(section)
        if len(weights) < _LAYERS or not wanted[0]:
            return None
        power = {
            node: sum(float(batch[node].double().square().mean()) for batch in wanted) / len(wanted)
            for node in wanted[0]
        }

        each = {node for node in given[0] if is_batched(node)}  # the others belong to all samples

        def loss(batch: int, rows: slice | Tensor) -> Tensor:
            part = {node: value[rows] if node in each else value for node, value in given[batch].items()}
            values = self.run(section, part)
            errors = [
                (values[node] - its[rows]).square().mean() / max(power[node], 1e-30)
                for node, its in wanted[batch].items()
            ]
            return torch.stack(errors).mean()

        few = max(_BATCH // self.unit, 1)

        @torch.no_grad()
        def judged() -> float:
            step = few * self.unit
            held = [
                (index, slice(at, at + step), min(step, size - at))
                for index, split in enumerate(splits)
                for size in [len(next(iter(wanted[index].values())))]
                for at in range(split, size, step)
            ]
            total = sum(samples for _, _, samples in held)
            return sum(float(loss(index, rows)) * samples for index, rows, samples in held) / max(total, 1)

        groups = [
            {"params": [value], "lr": _RATES[kind] * size_of(value)}
            for kind, values in (("weights", weights), ("vectors", vectors))
            for value in values
        ]
        share = np.asarray(splits) / sum(splits)

        def drawn() -> Tensor:
            batch = int(self.draw.choice(len(splits), p=share))
            units = self.draw.permutation(splits[batch] // self.unit)[:few]
            # what is folded into the batch stays together
            rows = units[:, None] * self.unit + np.arange(self.unit)
            return loss(batch, torch.from_numpy(rows.reshape(-1)))

        before = judged()
        after = improved(self.student.params.values(), groups, self.steps, drawn, judged, before, Muon)
        names = tuple(self.places[self.by_name[name]].weight for name in section.layers)
        return BlockFit(names, before, after)

    def _own(self, section: Section) -> tuple[list[Tensor], list[Tensor]]:
        """What a block may change: its layers' weights, and vectors; nothing that is read outside."""
        inside = dict.fromkeys(self.inside(section))
        read = dict.fromkeys(str(node.target) for node in inside if node.op == "get_attr")
        for node in self.nodes:
            if node.op == "get_attr" and not inside.keys() >= node.users.keys():
                read.pop(str(node.target), None)
        layers = {self.places[self.by_name[name]].weight for name in section.layers}
        known = {name: self.student.params[name] for name in read if name in self.student.params}
        vectors = [value for value in known.values() if value.dim() <= 1 and value.is_floating_point()]
        return [known[name] for name in known if name in layers], vectors


def _goes_along(node: fx.Node, layers: Collection[str]) -> bool:
    """Whether a node only changes values one by one that nothing else reads, as an activation does."""
    sources = node.all_input_nodes
    return (
        len(sources) == 1
        and node.name not in layers
        and only_reader(sources[0]) is node
        and isinstance(node.meta.get("val"), Tensor)
        and isinstance(sources[0].meta.get("val"), Tensor)
        and shape_of(node) == shape_of(sources[0])
    )
