"""The work of `reconstruct`: walk through student and teacher together and refit the student's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from penjing.batches import Inputs, between, call_model, count_samples
from penjing.errors import DataError, PruneError, TraceError
from penjing.events import Event, Listener
from penjing.graph import Graph, trace
from penjing.graph.batch import batch_unit
from penjing.graph.sections import Section
from penjing.prune.behind import Norm, find_norms
from penjing.prune.block_fit import Blocks, Counterpart
from penjing.prune.compare import difference, spread
from penjing.prune.least_squares import Fit, fit_moments, fit_samples
from penjing.prune.moments import EXACT_FEATURES, Moments, thin_out
from penjing.prune.places import Call, Place, find_places
from penjing.prune.plan import Plan
from penjing.prune.recalibrate import rebase_
from penjing.prune.reconstruct import BlockFit, LayerFit, ReconstructConfig, counterparts, kept_positions
from penjing.prune.rectified import MAX_ROW_BYTES, Rows, fit_rectified
from penjing.prune.walk import Walk, footprint, given_to, within_memory

_ROWS_BY_SAMPLES = 2048


class Refit:
    """State of one reconstruction; the student is changed in place, through the tensors its graph shares."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Graph,
        plan: Any,
        batches: Sequence[Inputs],
        config: ReconstructConfig,
        seed: int,
        listen: Listener,
    ) -> None:
        self.kept, self.config, self.listen = kept_positions(plan), config, listen
        self.generator = torch.Generator().manual_seed(seed)
        try:
            self.student = trace(student, batches[0])
        except TraceError as error:
            raise DataError(
                f"the network cannot be run on what the data gives: {error.cause}",
                layer=error.layer,
                remedy="Give batches as the network takes them: inputs or (inputs, target); several are a "
                "tuple or dict of their own: ((a, b), target)",
            ) from error
        self.tensors = {**self.student.params, **self.student.buffers}
        self.teacher = teacher if isinstance(teacher, Graph) else trace(teacher, batches[0])
        if not (self.student.batch_dim and self.teacher.batch_dim):
            raise PruneError(
                self.teacher.fixed_batch or self.student.fixed_batch or "the batch size is fixed",
                remedy="Take the batch size as x.shape[0] there, without int(), len(), range() or a number, "
                "or prune without reconstruct",
            )
        whole = plan if isinstance(plan, Plan) else None
        self.twin = counterparts(self.student, self.teacher, () if whole is None else tuple(whole.branches))
        self.unit = unit = batch_unit(self.student.module.graph)
        few = between(batches[0], 0, unit * -(-2 // unit))
        both = (footprint(graph, given_to(graph, few)) for graph in (self.student, self.teacher))
        self.batches, note = within_memory(batches, config.max_memory, *both, unit=unit)
        places = find_places(self.student)
        if config.block_steps:  # a block ends before what else its layers do begins
            places = {name: place for name, place in places.items() if len(place.calls) == 1}
        reading = {
            name
            for name, dims in self.kept.items()
            if (places[name].dims[1] if name in places else 1) in dims
        }
        self.notes = [note] if note else []
        self.notes += _left_out(self.student, sorted(reading - places.keys()))
        chosen = places if config.layers == "all" else {n: p for n, p in places.items() if n in reading}
        self.places = {call.node: place for place in chosen.values() for call in place.calls}
        self.refitted: set[str] = set()
        behind = (place.behind.norm for place in places.values() if len(place.calls) == 1)
        norms = [*find_norms(self.student), *(norm for norm in behind if norm is not None)]
        self.norms = {norm.first: norm for norm in norms} if config.rebase_norms else {}
        self.total = len({self.places[node].weight for node in self.places if node in self.twin})
        self.num_samples = sum(count_samples(batch) for batch in self.batches)
        self.done: list[LayerFit] = []
        counterpart = Counterpart(self.teacher, self.twin, whole)
        self.parts = Blocks(self.student, self.places, counterpart, config.block_steps, seed)
        self.blocks: list[BlockFit] = []
        self._sums_in_work: set[fx.Node] = set()

    @torch.no_grad()
    def run(self) -> list[LayerFit]:
        """Refit every chosen layer, in the order of computation."""
        all_ends = [node for section in self.parts.sections for node in self.parts.ends(section)]
        self.mine = self._walk(self.student, all_ends)
        twins = [self.twin[node] for node in [*self.places, *all_ends] if node in self.twin]
        self.theirs = self._walk(self.teacher, twins)
        entering: list[fx.Node] = []
        for section in self.parts.sections:
            self._refit_block(section, entering)
            entering = self.parts.ends(section)
        self.mine.run(self._before)
        return self.done

    def _walk(self, graph: Graph, pinned: Sequence[fx.Node]) -> Walk:
        return Walk(graph, [given_to(graph, batch) for batch in self.batches], pinned=pinned)

    def _refit_block(self, section: Section, entering: Sequence[fx.Node]) -> None:
        """Refit a block layer by layer, then as a whole."""
        leaving = self.parts.ends(section)
        for node in leaving:
            self.mine.ensure(node, self._before)
        inside = set(self.parts.inside(section))
        given = [
            {node: value for node, value in inputs.items() if node in inside}
            | {node: self.mine.values(node)[index] for node in entering}
            for index, inputs in enumerate(self.mine.inputs)
        ]
        wanted: list[dict[fx.Node, Tensor]] = [{} for _ in given]
        shows = self.parts.counterpart
        for node in leaving:
            if shows.fits(node):
                for aims, value in zip(wanted, self.theirs.ensure(self.twin[node]), strict=True):
                    aims[node] = shows.of(node, value)
        sizes = [count_samples(batch) // self.unit for batch in self.batches]
        splits = [self.unit * self._split(size) for size in sizes]
        fit = self.parts.fit(section, given, wanted, splits)
        for node in wanted[0]:
            self.theirs.release(self.twin[node])
        if fit is not None:
            if fit.error_after < fit.error_before:
                self._put_block(section, given)
            self.blocks.append(fit)
            metrics = {"error_before": fit.error_before, "error_after": fit.error_after}
            said = f"block of {', '.join(fit.layers)}"
            self.listen(Event("reconstruct", "progress", len(self.done), self.total, "layer", metrics, said))
        for node in entering:
            self.mine.release(node)

    def _put_block(self, section: Section, given: Sequence[Mapping[fx.Node, Tensor]]) -> None:
        """Measure a changed block's norms anew, and let what is behind it read what it gives now."""
        inside = set(self.parts.inside(section))
        norms = [norm for norm in self.norms.values() if norm.first in inside]
        wanted = [*(norm.source for norm in norms), *self.parts.ends(section)]
        values: dict[fx.Node, list[Tensor]] = {node: [] for node in wanted}
        for batch in given:
            found = self.parts.run(section, batch)
            for node in values:
                values[node].append(found[node])
        for norm in norms:  # the function stays, so what was found stays true
            self._rebase(norm, values[norm.source])
        for node in self.parts.ends(section):
            self.mine.replace(node, values[node])

    def _before(self, node: fx.Node) -> None:
        if node in self.places:
            if node in self.twin and self.places[node].weight not in self.refitted:
                self._refit(self.places[node])
        elif node in self.norms:
            norm = self.norms[node]
            self._rebase(norm, self.mine.values(norm.source))

    @torch.no_grad()
    def output_error(self) -> float:
        """Squared difference of the outputs on the held-back samples, relative to the teacher's variance."""
        error = size = 0.0
        for batch in self.batches:
            samples = count_samples(batch)
            if samples < 2 * self.unit:
                continue
            start = self.unit * self._split(samples // self.unit)
            held = between(batch, start)
            answers = (call_model(graph.module, held) for graph in (self.student, self.teacher))
            outputs = zip(*(pytree.tree_leaves(answer) for answer in answers), strict=True)
            for a, b in outputs:
                if isinstance(a, Tensor) and a.shape == b.shape and a.is_floating_point():
                    error += float(difference(a, b).double().square().sum())
                    size += spread(b) or float(torch.where(b.isfinite(), b, 0.0).double().square().sum())
        return error / max(size, 1e-30)

    def _refit(self, place: Place) -> None:
        self.refitted.add(place.weight)
        for call in place.calls:
            self.mine.ensure(call.source, self._before)
        sums = [self._shortcut_ready(call) for call in place.calls]
        for call in place.calls:
            self.theirs.ensure(self.twin[call.node])
        targets = [_Targets(self, place, call, total) for call, total in zip(place.calls, sums, strict=True)]
        weight = place.kernel(self.student.params)
        wide = place.patches.groups == 1 and weight[0].numel() > self.config.max_features
        fit, held, size = (self._by_samples if wide else self._by_moments)(place, targets)
        self._put(place, fit)
        for call in place.calls:
            self.theirs.release(self.twin[call.node])
        method = "samples" if wide else "moments"
        if fit.change_GOF is None:
            method = "shift" if bool(fit.shift_GO.any()) else "kept"
        scale = max(held * len(weight) * size, 1e-30)
        kind = "output" if None in sums else "sum"
        self.done.append(
            LayerFit(place.weight, method, kind, fit.ridge, fit.before / scale, fit.after / scale)
        )
        metrics = {"error_before": fit.before / scale, "error_after": fit.after / scale}
        self.listen(
            Event("reconstruct", "progress", len(self.done), self.total, "layer", metrics, place.weight)
        )

    def _by_samples(self, place: Place, targets: Sequence[_Targets]) -> tuple[Fit, int, float]:
        """A layer's fit, rows held back, and mean square of its target; from rows themselves."""
        rows = _Rows(place, self._wanted_rows(place), self.generator)
        size, parts, times = 0.0, [], len(targets) * len(self.batches)
        for aim in targets:
            for index, x in enumerate(self.mine.values(aim.call.source)):
                target, current = aim.at(index), self.mine.evaluate(aim.call.node, index)
                start = self._split(len(x))
                size += float(target[start:].double().square().mean()) / times
                parts.append(rows.flat(x, target - current, start, times))
        x_RF, r_RO, held_R = (torch.cat(column) for column in zip(*parts, strict=True))
        weights_O = targets[0].weights_O()
        fit = fit_samples(x_RF, r_RO, held_R, self.config.ridges, weights_O, place.behind.shiftable)
        return fit, int(held_R.sum()), size

    def _by_moments(self, place: Place, targets: Sequence[_Targets]) -> tuple[Fit, int, float]:
        """The same from second moments, and where a ReLU follows, on through it."""
        patches, samples = place.patches, self.num_samples * len(targets)
        rows = _Rows(place, self._wanted_rows(place), self.generator)
        weight, shiftable = place.kernel(self.student.params), place.behind.shiftable
        features = weight[0].numel()
        shape, exact = (patches.groups, features, len(weight) // patches.groups), features <= EXACT_FEATURES
        learn, held = Moments(*shape, exact=exact), Moments(*shape, exact=exact)
        met = all(aim.total is aim.call.behind.total for aim in targets)
        seen, size = _Seen(self.config.through_relu and met and place.behind.bounds is not None), 0.0
        for aim in targets:
            for index, x in enumerate(self.mine.values(aim.call.source)):
                target, current = aim.at(index), self.mine.evaluate(aim.call.node, index)
                start = self._split(len(x))
                size += float(target[start:].double().square().mean()) / (len(targets) * len(self.batches))
                positions = rows.positions(current, samples)
                for part, moments in ((slice(None, start), learn), (slice(start, None), held)):
                    x_GRF = _at_least_single(patches.inputs(x[part], positions))
                    y_GRO, target_GRO = (
                        _at_least_single(patches.outputs(each[part], positions)) for each in (current, target)
                    )
                    moments.add(x_GRF, target_GRO - y_GRO)
                    if seen.wanted:
                        offset = aim.offset(index, current.dim()).expand_as(current)
                        offset_GRO = _at_least_single(patches.outputs(offset[part], positions))
                        seen.add(moments is held, Rows(x_GRF, y_GRO, target_GRO, offset_GRO))
        weights_GO = targets[0].weights_O().reshape(patches.groups, -1)
        fit = fit_moments(learn, held, self.config.ridges, weights_GO, shiftable)
        if fit.ridge is not None and seen.wanted and place.behind.bounds is not None:
            scale_GO = targets[0].scale_O().reshape(patches.groups, -1)
            fit = fit_rectified(fit, *seen.rows(), scale_GO, place.behind.bounds, intercept=shiftable)
        return fit, held.count, size

    def _shortcut_ready(self, call: Call) -> fx.Node | None:
        """The residual sum to aim at, with the shortcut's values and the teacher's sum computed; or None."""
        total, other = call.behind.total, call.behind.other
        if not self.config.drift or total is None or other is None or total in self._sums_in_work:
            return None
        if total not in self.twin:
            return None
        self._sums_in_work.add(total)  # a branch on the other side must not wait for this one
        self.mine.ensure(other, self._before)
        self.theirs.ensure(self.twin[total])
        return total

    def _put(self, place: Place, fit: Fit) -> None:
        """Write a fit into the layer: weights, and the shift into its bias or the norm behind it."""
        weight = place.kernel(self.student.params)
        if fit.change_GOF is not None:
            weight.add_(fit.change_GOF.reshape(weight.shape).to(weight.dtype))
        if place.behind.shift is not None:
            name, sign = place.behind.shift
            vector = self.tensors[name]
            vector.add_(sign * fit.shift_GO.reshape(vector.shape).to(vector.dtype))

    def _rebase(self, norm: Norm, read: Sequence[Tensor]) -> None:
        weight, bias, mean, var = (
            self.tensors[name] for name in (norm.weight, norm.bias, norm.mean, norm.var)
        )
        rebase_(weight, bias, mean, var, norm.eps, [x.movedim(norm.channel, 1) for x in read])

    def _split(self, samples: int) -> int:
        """How many of a batch's samples are fitted on; the rest are held back."""
        return min(max(round(samples * (1 - self.config.holdout)), 1), max(samples - 1, 1))

    def _wanted_rows(self, place: Place) -> int:
        """Rows to fit on: plenty for the unknowns, within the limit."""
        features = place.kernel(self.student.params)[0].numel()
        return min(self.config.max_rows, max(64 * features, 16_384))

    def kept_outputs(self, place: Place) -> Tensor | None:
        """Positions of the teacher's outputs that the student has."""
        if place.weight not in self.teacher.params:  # the second of two layers in the place of one
            return None
        out = place.dims[0]
        kept = None if out is None else self.kept.get(place.weight, {}).get(out)
        theirs, mine = (place.kernel(graph.params) for graph in (self.teacher, self.student))
        expected = len(theirs) if kept is None else len(kept)
        if expected != len(mine):
            raise PruneError(
                f"the plan keeps {expected} outputs, the student has {len(mine)}",
                layer=place.weight,
                remedy="Pass the plan that made this student",
            )
        return kept


_NORMED = ("_g", "_v", "_orig")
"""Endings of what the older weight and spectral norm make a weight of."""


def _left_out(graph: Graph, names: Sequence[str]) -> list[str]:
    """Why weights that read pruned channels stay as they are; of an embedding, none are read."""
    notes = []
    for name in names:
        read = [n for n in graph.module.graph.nodes if n.op == "get_attr" and str(n.target) == name]
        users = [user for node in read for user in node.users]
        if not users or all("embedding" in str(user.target) for user in users):
            continue
        if ".parametrizations." in name or name.endswith(_NORMED):
            why = "the weight is computed from it: take weight or spectral norm off before pruning"
        elif len(users) == 1:
            why = "its op is not supported"
        else:
            why = "it is read in several places, one behind another"
        notes.append(f"{name} reads pruned channels and was not refitted ({why})")
    return notes


def _at_least_single(x: Tensor) -> Tensor:
    """The values in float32 or better: networks in half precision are fitted, too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Targets:
    """What a layer should give in one of its calls, batch by batch."""

    def __init__(self, work: Refit, place: Place, call: Call, total: fx.Node | None) -> None:
        self.work, self.place, self.call, self.total = work, place, call, total
        self.kept = work.kept_outputs(place)
        self.dim = 1 if place.patches.kernel else -1

    def weights_O(self) -> Tensor:
        """What a squared error of each output counts: its scale behind the batch norm."""
        norm = self.call.behind.norm
        if norm is None:
            return self._ones_O()
        return self._gain(norm).square().clamp_min(1e-12)

    def scale_O(self) -> Tensor:
        """Factor between an output and what is read behind the batch norm; 0 where it is all but off."""
        norm = self.call.behind.norm
        if norm is None:
            return self._ones_O()
        gain = self._gain(norm)
        # a channel that the norm all but switches off cannot carry a correction
        return torch.where(gain.abs() > 1e-3 * gain.abs().max(), gain, 0.0)

    def offset(self, index: int, num_dims: int) -> Tensor:
        """What is added to the scaled output before the activation; broadcasts to the output."""
        shortcut = torch.zeros(()) if self.total is None else self._shortcut(index)
        return shortcut + self._shape(self._offset_O(), num_dims)

    def at(self, index: int) -> Tensor:
        """The target of one batch, in the student's channels."""
        work, behind = self.work, self.call.behind
        plain = self._cut(work.theirs.values(work.twin[self.call.node])[index])
        if self.total is None:
            return plain
        theirs = behind.laid_out(work.theirs.values(work.twin[self.total])[index])
        branch = self._cut(theirs) - self._shortcut(index)
        gain = self.scale_O()
        live = gain != 0
        safe = self._shape(torch.where(live, gain, torch.ones_like(gain)).to(plain.dtype), plain.dim())
        wanted = (branch - self._shape(self._offset_O().to(plain.dtype), plain.dim())) / safe
        return torch.where(self._shape(live, plain.dim()), wanted, plain)

    def _shortcut(self, index: int) -> Tensor:
        """The student's value on the other side of the residual sum."""
        assert self.call.behind.other is not None
        return self.call.behind.laid_out(self.work.mine.values(self.call.behind.other)[index])

    def _offset_O(self) -> Tensor:
        """What is added to each output once it is scaled: by a bias behind the layer, and by the norm."""
        params, norm, late = self.work.student.params, self.call.behind.norm, self.call.behind.late
        bias_O = torch.zeros(()) if late is None else params[late].detach().flatten()
        if norm is None:
            return bias_O.expand(len(self._ones_O()))
        mean_O = self.work.student.buffers[norm.mean]
        return params[norm.bias].detach() + self.scale_O().to(mean_O.dtype) * (bias_O - mean_O)

    def _ones_O(self) -> Tensor:
        return torch.ones(len(self.place.kernel(self.work.student.params)), dtype=torch.float64)

    def _shape(self, x_O: Tensor, num_dims: int) -> Tensor:
        """Along the channels of a value with so many dimensions."""
        return x_O.reshape([1, -1] + [1] * (num_dims - 2)) if self.dim == 1 else x_O

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.kept is None else x.index_select(self.dim, self.kept)

    def _gain(self, norm: Norm) -> Tensor:
        params, buffers = self.work.student.params, self.work.student.buffers
        gain: Tensor = params[norm.weight].detach().double() / (buffers[norm.var].double() + norm.eps).sqrt()
        return gain


class _Seen:
    """Rows kept for a fit through the ReLU behind a layer, while they are wanted and few enough."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.learn: list[Rows] = []
        self.held: list[Rows] = []
        self.num_bytes = 0

    def add(self, is_held: bool, rows: Rows) -> None:
        """Keep rows to fit on, or held back."""
        self.num_bytes += rows.num_bytes
        if self.num_bytes > MAX_ROW_BYTES:
            self.wanted, self.learn, self.held = False, [], []
        else:
            (self.held if is_held else self.learn).append(rows)

    def rows(self) -> tuple[Rows, Rows]:
        """To fit on, and held back."""
        return Rows.joined(self.learn), Rows.joined(self.held)


class _Rows:
    """Which rows of a layer's input take part."""

    def __init__(self, place: Place, wanted: int, generator: torch.Generator) -> None:
        self.place, self.wanted, self.generator = place, wanted, generator

    def positions(self, output: Tensor, samples: int) -> Tensor | None:
        """Output positions taken from each sample of this batch; None for all."""
        if not self.place.patches.kernel:
            return None
        total = self.place.patches.num_positions(output)
        return thin_out(total, max(self.wanted // samples, 1), self.generator)

    def flat(self, x: Tensor, residual: Tensor, split: int, batches: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of one batch, at most its share of what a kernel matrix can hold, and which are held back."""
        share = max(_ROWS_BY_SAMPLES // batches, 2)
        positions = None
        if self.place.patches.kernel:
            total = self.place.patches.num_positions(residual)
            positions = thin_out(total, max(share // len(x), 1), self.generator)
        x_RF = self.place.patches.inputs(x, positions)[0]
        r_RO = self.place.patches.outputs(residual, positions)[0]
        held_R = torch.arange(len(x_RF)) >= split * (len(x_RF) // len(x))
        chosen = thin_out(len(x_RF), share, self.generator)
        return (x_RF, r_RO, held_R) if chosen is None else (x_RF[chosen], r_RO[chosen], held_R[chosen])
