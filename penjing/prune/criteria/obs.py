"""Optimal brain surgeon for whole slots: what a removal costs after the best possible refit.

The layers that read a group's slots are linear. With the second moments of what they read, the least-squares
error that is left when a slot goes, and all others are refitted, has a closed form; slots are taken one at
a time, the cheapest first, and the weights are refitted after each. `penjing.prune.reconstruct` then makes
that very refit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, fx

from penjing.batches import between, count_samples, first_samples, limited
from penjing.errors import DataError
from penjing.events import Event, warner
from penjing.graph import Graph, Group
from penjing.graph.axes import Index
from penjing.prune.criteria.base import (
    Criterion,
    Material,
    MemberCriterion,
    Normalisation,
    Scores,
    criterion,
    make_criterion,
)
from penjing.prune.output_gain import output_gains
from penjing.prune.places import Place, find_places
from penjing.prune.rows import input_moments, input_rows
from penjing.prune.walk import Walk, footprint, given_to, within_memory

# bytes of values, their copies and their gradients that one backward pass may take, in units of the values
_GAIN_MEMORY = 256 << 20


@criterion("obs")
@dataclass(frozen=True)
class BrainSurgeon(Criterion):
    """Rise of the readers' least-squares error (Hassibi & Stork 1993, eq. 5, for groups of weights at once).

    A slot's score is the rise at its turn, summed over the readers; what it is measured in, and so how
    layers compare, is ``weighting``. Groups that no supported layer reads are scored by magnitude, scaled to
    the median of the others.

    Attributes:
        weighting: ``"output"`` counts an error in each channel by what it does to the network's output
            (`penjing.prune.output_gain`), relative to the output's variance; ``"layer"`` counts it relative
            to the variance of the reader's own output (behind its batch norm).
        gain_samples: Most samples used to measure what reaches the output.
        ridge: Added to the second moments, relative to their mean.
        max_samples: Most samples used.
        max_memory: Most memory in GiB for the values of all samples, which wait in front of the layer that is
            being measured; where more would be needed, fewer samples are used.
        max_features: Readers with more inputs (channels × kernel) are scored without compensation, by the
            variance of each input alone.
        max_rows: Most rows (samples × positions) per reader.
    """

    normalisation: Normalisation = "none"
    weighting: Literal["output", "layer"] = "output"
    gain_samples: int = 256
    ridge: float = 1e-3
    max_samples: int = 2048
    max_memory: float = 4.0
    max_features: int = 2560
    max_rows: int = 65_536

    needs_data: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True

    def raw_scores(self, material: Material) -> Iterable[Scores]:
        """Measure what every reader reads, then remove slots on paper."""
        places = find_places(material.graph)
        pruned = {(m.tensor, m.dim) for group in material.coupling.groups for m in group.members}
        reading = {name: place for name, place in places.items() if (name, place.dims[1]) in pruned}
        measured = self._measure(material, reading)
        readers = {(name, places[name].dims[1]): reader for name, reader in measured.items()}
        scores = [self._group(group, readers) for group in material.coupling.groups]
        known = [row for row in scores if row is not None]
        middle = float(np.median(np.concatenate(known))) if known else 1.0
        fallback = make_criterion("magnitude")
        assert isinstance(fallback, MemberCriterion)
        plain = list(fallback.raw_scores(material))
        for row, magnitude in zip(scores, plain, strict=True):
            yield row if row is not None else middle * magnitude / max(float(np.median(magnitude)), 1e-30)

    def _measure(self, material: Material, places: Mapping[str, Place]) -> dict[str, _Reader]:
        """Second moments of what each reader reads, in one walk through the network."""
        names, warn = material.graph.input_names, warner("prune", material.listen)
        given = first_samples(material.batches, self.max_samples, names, warn)
        if not given:
            raise DataError("no batches", remedy="Give at least one batch of training data")
        at_once = self.max_samples
        if material.graph.batch_dim:
            takes = footprint(material.graph, given_to(material.graph, between(given[0], 0, 2)))
            at_once = max(_GAIN_MEMORY // max(takes.total, 1), 1)
            given, note = within_memory(given, self.max_memory, takes)
            if note:
                material.listen(Event("prune", "note", message=note))
        batches = [given_to(material.graph, inputs) for inputs in given]
        count = sum(count_samples(batch) for batch in batches)
        generator = torch.Generator().manual_seed(material.seed)
        by_node = {call.node: name for name, place in places.items() for call in place.calls}
        gains: dict[str, Tensor] = {}
        size = None
        if self.weighting == "output":
            few = [
                given_to(material.graph, between(inputs, at, at + at_once))
                for inputs in limited(given, self.gain_samples)
                for at in range(0, count_samples(inputs), at_once)
            ]
            gains, size = output_gains(material.graph, by_node, few, generator)
        walk = Walk(material.graph, batches)
        readers: dict[str, _Reader] = {}

        @torch.no_grad()
        def before(node: fx.Node) -> None:
            name = by_node.get(node)
            if name is None or name in readers:
                return
            place = places[name]
            for call in place.calls:
                walk.ensure(call.source, before)
            gain_O = self._gain(material.graph, place) if size is None else gains.get(name)
            if gain_O is None:  # nothing of it reaches the output
                gain_O = torch.zeros(len(place.kernel(material.graph.params)), dtype=torch.float64)
            readers[name] = self._reader(material.graph, place, walk, count, generator, gain_O, size)
            material.listen(
                Event("prune", "progress", len(readers), len(places), "layer", message=f"moments of {name}")
            )

        walk.run(before)
        return readers

    def _reader(
        self,
        graph: Graph,
        place: Place,
        walk: Walk,
        samples: int,
        generator: torch.Generator,
        gain_O: Tensor,
        size: float | None,
    ) -> _Reader:
        """Stream the moments of what one layer reads.

        Args:
            gain_O: What a squared error of each of its outputs counts.
            size: What the total is relative to; None takes the layer's own output.
        """
        weight = place.kernel(graph.params).detach()
        groups, features = place.patches.groups, weight[0].numel()
        rows = input_rows(walk, place, samples, self.max_rows, generator)
        size_of_slot = weight[0, 0].numel()
        intercept = place.behind.shiftable
        w_GOF = weight.double().reshape(groups, -1, features) * gain_O.sqrt().reshape(groups, -1, 1)
        if features <= self.max_features:
            moments = input_moments(rows, groups, features)
            return _Reader(w_GOF, moments.centred(intercept).cov_xx_GFF, None, size_of_slot, size)
        sums = torch.zeros(3, groups, features, dtype=torch.float64)  # count, sum, sum of squares
        for x_GRF in rows:
            sums[0] += x_GRF.shape[1]
            sums[1] += x_GRF.sum(1, dtype=torch.float64)
            sums[2] += x_GRF.double().square().sum(1)
        mean_GF = sums[1] / sums[0] if intercept else torch.zeros_like(sums[1])
        return _Reader(w_GOF, None, sums[2] / sums[0] - mean_GF.square(), size_of_slot, size)

    @staticmethod
    def _gain(graph: Graph, place: Place) -> Tensor:
        """The squared gain of the norm behind a layer."""
        if place.behind.norm is None:
            return torch.ones(len(place.kernel(graph.params)), dtype=torch.float64)
        scale_O = graph.params[place.behind.norm.weight].detach().double()
        return scale_O.square() / (graph.buffers[place.behind.norm.var].double() + place.behind.norm.eps)

    def _group(self, group: Group, readers: Mapping[tuple[str, int | None], _Reader]) -> Scores | None:
        """Scores of one group, by readers of a tensor's dimension; None when no measured layer reads it."""
        found = [
            _Removal(readers[m.tensor, m.dim], m.index, self.ridge)
            for m in group.members
            if (m.tensor, m.dim) in readers
        ]
        if not found:
            return None
        left = np.ones(group.size, dtype=bool)
        scores, turn, rise = np.zeros(group.size), 0, 0.0
        while left.any():
            costs = np.where(left, sum(removal.costs() for removal in found), np.inf)
            slot = int(costs.argmin())
            # a later removal never counts less than an earlier one, and ties keep their order
            rise = max(rise * (1 + 1e-9), float(costs[slot]), 1e-30)
            scores[slot] = rise
            left[slot] = False
            turn += 1
            for removal in found:
                removal.remove(slot)
        return scores


@dataclass(frozen=True)
class _Reader:
    """A layer's weights (times the gain of its norm) and the second moments of its inputs.

    Attributes:
        w_GOF: Weights.
        cov_GFF: Covariance of the inputs, or None where it would be too large.
        var_GF: Their variances where it is.
        kernel: Features of one input channel.
        size: What the error is relative to; None takes the variance of this layer's output.
    """

    w_GOF: Tensor
    cov_GFF: Tensor | None
    var_GF: Tensor | None
    kernel: int
    size: float | None = None


class _Removal:
    """Slots going one by one from what one layer reads."""

    def __init__(self, reader: _Reader, index: Index, ridge: float) -> None:
        kernel = torch.arange(reader.kernel)
        positions = torch.from_numpy(np.asarray(index))
        # features that go together, (slots, k·kernel); rows shorter than the others are filled up
        real = (positions >= 0)[:, :, None].expand(-1, -1, reader.kernel).flatten(1)
        positions = positions.clamp_min(0)
        self.features = (positions[:, :, None] * reader.kernel + kernel).flatten(1)
        self.w_GOF = reader.w_GOF.clone()
        self.gone = torch.zeros(len(positions), dtype=torch.bool)
        if reader.cov_GFF is not None and bool(real.all()):
            cov = reader.cov_GFF.clone()
            size = (self.w_GOF @ cov * self.w_GOF).sum()
            scale_G = cov.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
            cov.diagonal(dim1=1, dim2=2).add_((ridge * scale_G)[:, None])
            self.inverse: Tensor | None = torch.cholesky_inverse(torch.linalg.cholesky(cov))
            self.variance = torch.zeros(0)
        else:
            self.inverse = None
            variance = reader.var_GF
            if variance is None:
                assert reader.cov_GFF is not None, "a reader has the one or the other"
                variance = reader.cov_GFF.diagonal(dim1=1, dim2=2)
            energy_GF = self.w_GOF.square().sum(1) * variance
            size = energy_GF.sum()
            self.variance = (energy_GF.sum(0)[self.features] * real).sum(1)
        self.size = max(float(size if reader.size is None else reader.size), 1e-30)

    def costs(self) -> Scores:
        """Rise of the error if a slot went now, for each slot that is left, relative to the output's size."""
        if self.inverse is None:
            return np.asarray(self.variance.numpy() / self.size)
        left = ~self.gone
        features = self.features[left]
        blocks = self.inverse[:, features[:, :, None], features[:, None, :]]
        w_GSKO = self.w_GOF[:, :, features].permute(0, 2, 3, 1)
        rises = torch.zeros(len(left), dtype=blocks.dtype)
        rises[left] = (w_GSKO * torch.linalg.solve(blocks, w_GSKO)).sum((0, 2, 3))
        return np.asarray(rises.numpy() / self.size)

    def remove(self, slot: int) -> None:
        """Take a slot out and refit the others."""
        self.gone[slot] = True
        if self.inverse is None:
            return
        rows = self.features[slot]
        columns_GFK = self.inverse[:, :, rows]
        pivot_GKF = torch.linalg.solve(columns_GFK[:, rows], columns_GFK.transpose(1, 2))
        self.w_GOF.baddbmm_(self.w_GOF[:, :, rows], pivot_GKF, alpha=-1)
        self.inverse.baddbmm_(columns_GFK, pivot_GKF, alpha=-1)
        # exactly zero, not nearly: rounding left here would be divided by later
        self.w_GOF[:, :, rows] = 0
        self.inverse[:, rows] = 0
        self.inverse[:, :, rows] = 0
