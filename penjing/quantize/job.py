"""One quantization under way: the steps between a prepared fp32 graph and a checked int8 file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.errors import Int8LossError, QuantizeError
from penjing.events import Listener
from penjing.export.onnx import FIXED_BATCH
from penjing.files import atomic_write
from penjing.measure.metric import is_allowed
from penjing.measure.sizes import size_bytes
from penjing.quantize import mixed
from penjing.quantize.apart import Apart, emit_apart, encode_apart, told_apart, worst_db
from penjing.quantize.calibrate import Calibration, calibrate
from penjing.quantize.channels import feed_whole, make_even
from penjing.quantize.check import FileCheck, check_file, check_sizes, compare, layer_errors
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.cpu import sums_pairs_in_16_bits
from penjing.quantize.emit import RESTORES, emit
from penjing.quantize.encode import EncodedLayer, encode_layers
from penjing.quantize.equalize import equalize
from penjing.quantize.feeds import Feeds, input_specs
from penjing.quantize.graph import (
    constant,
    layer_name,
    name_of,
    set_initializer,
)
from penjing.quantize.grid import align_inputs
from penjing.quantize.pack import save_quantized
from penjing.quantize.place import Placement, layer_names, place
from penjing.quantize.prepare import load_onnx, prepare
from penjing.quantize.ranges import closest, widest
from penjing.quantize.result import LayerRow, QuantizeResult, Timing
from penjing.quantize.rounding import Moments
from penjing.quantize.rules import WEIGHT_OPS
from penjing.quantize.runtime import Session
from penjing.quantize.scheme import ActivationParams, activation_params
from penjing.quantize.timing import time_against_fp32
from penjing.quantize.weights import Guard
from penjing.quantize.widen import widen

_LAYER_SAMPLES = 4
_SAME_DB, _POOR_DB = 60.0, 10.0
"""Above the first, float outputs differ by rounding alone; below the second, little is left of them."""
_DEAD = "its input is constant on the calibration data"
_FULL_SUMS = (
    "the weights use all 8 bits, which needs sums of 32 bits, as this processor has: on x86 without VNNI "
    "the file's outputs may be far off; reduce_range 'pairs' writes a file for those too"
)


@dataclass
class Job:
    """One quantization under way.

    Attributes:
        source: The fp32 file.
        data: Calibration batches.
        config: The options.
        seed: Of the draws that histograms are made from.
        listen: Hears progress.
        model: The prepared graph whose numbers are rounded.
        reference: The fp32 network that outputs are measured against, as it was given: evening out channel
            ranges changes it where a clip then cuts values that calibration did not show.
        fp32_bytes: Size of the fp32 file.
        feeds: The data as the runtime wants it.
        guard: What keeps sums of pairs within 16 bits, where this processor needs it.
        nodes: Nodes of the model by the name of their output.
        names: Names of layers by the name of their output.
        seen: What calibration heard.
        placement: What is 8-bit at present.
        ranges: Range of each 8-bit tensor that was observed.
        params: Scale and zero point of each 8-bit tensor.
        moments: Second moments of layer inputs, for second-order rounding.
        observer: Name of the observer whose ranges hold.
        keep: Layers in float, with the reason.
        scales: Learned steps of weights, by output name.
        matrices: Learned steps of the weights of layers that stand apart, by their own names.
        gains: What each layer alone in float gains, in dB.
        before: Of a network that was trained in 8 bits, the graph whose weights a layer that goes back to
            float gets again; None where what was learned holds for float layers, too.
        trained: Whether training in 8 bits has led the network away from `reference`.
        notes: Lines for people.
    """

    source: Path
    data: Iterable[Any]
    config: QuantizeConfig
    seed: int
    listen: Listener
    model: ir.Model = field(init=False)
    reference: Path | ir.Model = field(init=False)
    fp32_bytes: int = field(init=False)
    feeds: Feeds = field(init=False)
    guard: Guard = field(init=False)
    nodes: dict[str, ir.Node] = field(init=False)
    names: dict[str, str] = field(init=False)
    observer: str = field(init=False)
    seen: Calibration = field(default_factory=lambda: Calibration({}))
    placement: Placement = field(init=False)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    params: dict[str, ActivationParams] = field(default_factory=dict)
    moments: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    matrices: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    before: ir.Model | None = None
    trained: bool = False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model, self.reference = prepare(load_onnx(self.source)), self.source
        self.fp32_bytes = size_bytes(self.source)
        self.feeds = Feeds(
            self.data, input_specs(self.model.graph), self.config.samples, self.config.check_samples
        )
        self.guard = (
            ("pairs" if sums_pairs_in_16_bits() else "off")
            if self.config.reduce_range == "auto"
            else self.config.reduce_range
        )
        if fixed := self.model.metadata_props.get(FIXED_BATCH):
            self.notes.append(fixed)
        if sorted_data := self.feeds.sorted_by_class():
            self.notes.append(sorted_data)
        self.nodes = _by_output(self.model)
        self.names = layer_names(self.model.graph)
        _check_patterns(self.config.ignore, self.model.graph, self.names)
        self._apart: dict[str, Apart] = {}
        self.observer = "mse" if self.config.observer == "auto" else self.config.observer

    def calibrate(self) -> None:
        """Equalize, place, and find ranges; layers whose input never changes go back to float."""
        config = self.config
        placement = place(self.model.graph, config)
        if not placement.all_layers:
            reasons = (
                "; ".join(sorted(set(placement.kept.values())))
                or "it has no Conv, Gemm, MatMul or LSTM with weights"
            )
            raise QuantizeError(
                f"nothing can be quantized ({reasons})",
                remedy="Give a network with such layers, or ignore fewer",
            )
        if config.align_inputs:
            aligned = align_inputs(self.model.graph, placement, self.feeds)
            if aligned:
                self.params |= aligned
                self.notes.append(f"{', '.join(aligned)}: stored on the 8-bit grid that the input came from")
                placement = place(self.model.graph, config)
        if config.equalize:
            placement = self._equalize(placement)
        self.seen = Calibration({})
        self.observe(placement)
        specs = {spec.name for spec in self.feeds.specs}
        dead = {root for root, (low, high) in self.ranges.items() if low == high}
        for name in dead & specs:
            raise QuantizeError(
                "the calibration data is constant", layer=name, remedy="Calibrate with real, varied samples"
            )
        for out, layer in placement.layers.items():
            source = self.nodes[out].inputs[0]
            if source is not None and placement.roots[name_of(source)] in dead:
                self.keep[layer] = _DEAD
                self.notes.append(f"{layer} stays in float: {_DEAD}")
        self.placement = place(self.model.graph, config, self.keep)
        if not self.placement.all_layers:
            raise QuantizeError(
                "every layer's input is constant on the calibration data",
                remedy="Calibrate with real samples",
            )
        self.observe(self.placement)
        if config.observer == "auto" and self.placement.layers:
            self.settle()

    def _equalize(self, placement: Placement) -> Placement:
        """Even out channel ranges, and take it back where the function did not stay the same."""
        before = self.model.clone()
        regions = equalize(self.model, placement, self.feeds, memory_mb=self.config.memory_mb)
        if not regions:
            return placement
        if compare(Session(before), Session(self.model), self.feeds, _LAYER_SAMPLES) < _SAME_DB:
            self.model, self.nodes = before, _by_output(before)
            self.notes.append("channel ranges stay uneven: evening them out changed the float outputs")
            return placement
        self.notes.append(f"channel ranges were evened out, places: {regions}")
        return place(self.model.graph, self.config)

    def settle(self) -> None:
        """Take the kind of range that leaves the output closest, weights in float."""
        wide = {name: activation_params(*pair) for name, pair in widest(self.seen.observers).items()}
        found = closest(
            {"mse": self.params, "min_max": self.params | wide},
            lambda params: emit(
                self.model, self.placement, {root: params[root] for root in self.placement.observed}, {}
            ),
            Session(self.model),
            self.feeds,
        )
        self.observer = found
        if found == "min_max":
            self.params |= wide

    def teach(
        self,
        model: ir.Model,
        placement: Placement,
        params: Mapping[str, ActivationParams],
        scales: Mapping[str, NDArray[np.float32]],
        matrices: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Take what training found in the place of calibration; `reference` stays the network before it."""
        self.model, self._apart = model, {}
        self.nodes = _by_output(model)
        self.placement = placement
        self.seen = Calibration({}, samples=self.seen.samples)
        self.moments = {}
        self.params, self.scales, self.matrices = dict(params), dict(scales), dict(matrices)
        # what was learned is written as it is
        self.config = self.config.model_copy(update={"bias_correction": False, "rounding": "nearest"})

    def observe(self, placement: Placement) -> None:
        """Calibrate what the placement needs and is not known yet."""
        missing = [root for root in placement.observed if root not in self.params]
        inputs = dict.fromkeys(_input_name(self.nodes[out]) for out in placement.layers)
        means = (
            [name for name in inputs if name not in self.seen.means] if self.config.bias_correction else []
        )
        if not missing:
            return
        layers = {out: self.nodes[out] for out in placement.layers if out not in self.moments}
        moments = Moments(layers if self.config.rounding != "nearest" else {}, self.seed)
        found = calibrate(
            self.model,
            self.feeds,
            missing,
            observer=self.observer,
            mean_of=means,
            also=moments.visits,
            values_per_sample=self.config.values_per_sample,
            memory_mb=self.config.memory_mb,
            seed=self.seed,
            listen=self.listen,
        )
        self.moments |= moments.means()
        self.seen.observers.update(found.observers)
        self.seen.means.update(found.means)
        self.seen.samples = max(self.seen.samples, found.samples)
        ranges = found.ranges()
        self.ranges |= ranges
        self.params |= {name: activation_params(*pair) for name, pair in ranges.items()}

    def encode(self, placement: Placement) -> dict[str, EncodedLayer]:
        """The numbers of each int8 layer."""
        params = {name: self.params[root] for name, root in placement.roots.items()}
        return encode_layers(
            self.model.graph,
            placement.layers,
            params,
            config=self.config,
            guard=self.guard,
            means=self.seen.means,
            moments=self.moments,
            scales=self.scales,
        )

    def rebuild(self, extra: Sequence[str]) -> ir.Model:
        """The quantized graph with these layers in float besides those already kept."""
        placement = place(self.model.graph, self.config, self.keep | dict.fromkeys(extra, "tried in float"))
        self.observe(placement)
        return self._emitted(placement, self.encode(placement))

    def _emitted(self, placement: Placement, encoded: Mapping[str, EncodedLayer]) -> ir.Model:
        """The quantized graph of a placement."""
        model = self.model if self.before is None else _with_floats(self.model, self.before, placement)
        quantized = emit(model, placement, self._roots(placement), encoded)
        return emit_apart(quantized, self.encode_apart(placement), "static")

    def encode_apart(self, placement: Placement) -> dict[str, Apart]:
        """The numbers of each layer that stands apart, found once."""
        missing = [out for out in placement.apart if out not in self._apart]
        self._apart |= encode_apart(self.model, missing, self.config, self.guard, self.matrices)
        return {out: self._apart[out] for out in placement.apart}

    def _roots(self, placement: Placement) -> dict[str, ActivationParams]:
        return {root: self.params[root] for root in placement.observed}

    def measure_gains(self, layers: Sequence[str]) -> list[mixed.Sensitivity]:
        """Each layer's gain in dB when it alone returns to float."""
        macs = {layer: mixed.layer_macs(self.nodes[out]) for out, layer in self.names.items()}
        found = mixed.sensitivities(
            layers,
            macs,
            self.rebuild,
            Session(self.reference),
            self.feeds,
            samples=min(self.config.check_samples, 32),
            listen=self.listen,
        )
        self.gains = {item.layer: item.gain_db for item in found}
        return found

    def fall_back(
        self, metric: mixed.Metric | None, eval_data: Iterable[Any] | None
    ) -> tuple[float, float, int]:
        """Return layers to float until the drop holds; gives fp32 metric, int8 metric, sample count."""
        limit = self.config.max_drop
        assert limit is not None
        judged, most = (self.data, self.config.samples) if eval_data is None else (eval_data, 2**62)
        feeds = Feeds(judged, self.feeds.specs, most)
        reference = Session(self.reference)
        fp32, count = mixed.measure(reference, feeds, metric, reference)
        value = mixed.measure(Session(self.rebuild(())), feeds, metric, reference)[0]
        if is_allowed(fp32 - value, limit):
            return fp32, value, count
        order = [item.layer for item in self.measure_gains(self.placement.all_layers)]
        values: dict[int, float] = {}

        def holds(number: int) -> bool:
            tried = self.rebuild(order[:number])
            values[number] = mixed.measure(Session(tried), feeds, metric, reference)[0]
            return is_allowed(fp32 - values[number], limit)

        def told(drop: float) -> str:
            return f"{100 * drop:.3g} points" if metric is None else f"{drop:.4g}"

        needed = mixed.fewest(len(order), holds)
        if needed is None or needed == len(order):
            samples = min(self.config.check_samples, 32)
            order = mixed.alone(order, self.rebuild, reference, self.feeds, samples)
            needed = mixed.fewest(len(order), holds)
        if needed is None or needed == len(order):
            raise Int8LossError(
                f"the metric drops by {told(fp32 - value)} and no int8 layer can stay within {told(limit)} "
                f"(max_drop={limit:g})",
                remedy="Accept a larger drop, or "
                + (
                    "train it for more epochs in int8"
                    if self.trained
                    else "calibrate with more samples, or train in int8: quantized_student"
                ),
            )
        for layer in order[:needed]:
            self.keep[layer] = f"returned to float for max_drop ({self.gains[layer]:+.2f} dB)"
        self.placement = place(self.model.graph, self.config, self.keep)
        self.notes.append(
            f"{needed} of {len(order)} layers returned to float to hold the drop to {told(limit)}"
        )
        return fp32, values[needed], count

    def write(self, out: Path) -> QuantizeResult:
        """Emit, write both files, and check them."""
        placement, config = self.placement, self.config
        encoded = self.encode(placement)
        quantized = self._emitted(placement, encoded)
        told = told_apart(self.encode_apart(placement), placement.apart)
        weights_path = save_quantized(out.with_suffix(".safetensors"), quantized, placement, encoded, told)
        written = quantized.clone()
        if config.widen:
            self._widen(written)
        if self.guard == "pairs":
            make_even(written)
        save_model(written, out)
        measured = check_file(out, Session(self.reference), self.fresh(), config.check_samples)
        if self.trained and measured.agreement < config.min_agreement_db:
            # far from `reference`, kernels are as far from it as the simulation, whatever they compute
            own = check_file(out, Session(self.model), self.fresh(), config.check_samples)
        else:
            own = measured
        if not own.sound(config.min_agreement_db):
            raise QuantizeError(
                f"int8 kernels agree with the simulation to {own.agreement:.1f} dB only and are "
                f"{own.simulated - own.sqnr:.1f} dB farther from fp32",
                layer=out.name,
                remedy=(
                    "Set reduce_range to 'auto', 'pairs' or 'full': it is off, and int8 sums of this "
                    "processor overflow"
                    if self.guard == "off" and sums_pairs_in_16_bits()
                    else f"Report this model: reduce_range ({self.guard!r} here) does not explain it"
                ),
            )
        rows = self._rows(placement, encoded, self._errors(quantized, placement))
        return self.result(out, weights_path, rows, measured, placement, self.guard)

    def _widen(self, written: ir.Model) -> None:
        if padded := widen(written):
            self.notes.append(f"widths padded with zeros to what int8 kernels take whole: {padded}")
        if stems := feed_whole(written, fold=self.guard != "pairs"):
            self.notes.append(f"inputs folded or padded to channels that int8 kernels take whole: {stems}")

    @cached_property
    def spared(self) -> Feeds | None:
        """Samples that nothing was fitted to, where the data has enough to spare some; asking reads it."""
        return self.feeds.spared()

    def fresh(self) -> Feeds:
        """These, or else the samples of calibration themselves."""
        return self.spared or self.feeds

    def result(
        self,
        out: Path,
        weights_path: Path,
        rows: tuple[LayerRow, ...],
        measured: FileCheck,
        placement: Placement,
        guard: Guard,
    ) -> QuantizeResult:
        """What is told of the files that were written and checked."""
        if self.spared is None:
            self.notes.append(
                "the outputs were compared on the samples of calibration, which flatters: give 4 or more"
                + (f" batches of {self.feeds.fixed}" if self.feeds.fixed else "")
            )
        if guard == "off" and self.config.reduce_range == "auto" and self.config.mode != "weight_only":
            self.notes.append(_FULL_SUMS)
        if (written := size_bytes(out)) >= self.fp32_bytes:
            self.notes.append(
                f"the int8 file is not smaller than the fp32 one ({written:,} and {self.fp32_bytes:,} "
                "bytes): scales and nodes take more than such small weights save"
            )
        for output, share in measured.left_out.items():
            self.notes.append(
                f"{output}: {share:.2%} of its values are NaN or infinite in fp32 (n={measured.samples}); "
                "the outputs were compared without them"
            )
        if any(None in spec.dims[1:] for spec in self.feeds.specs):  # else the network is not opened for it
            self.notes += check_sizes(
                out, Session(self.reference, quiet=True), self.fresh(), measured.sqnr, _POOR_DB
            )
        if measured.sqnr < _POOR_DB:
            self.notes.append(
                f"the outputs are {measured.sqnr:.1f} dB from "
                + (
                    f"the network before training in int8, which moved it (n={measured.samples})"
                    if self.trained
                    else f"fp32 only (n={measured.samples}): max_drop returns layers to float"
                )
            )
        return QuantizeResult(
            path=out,
            weights_path=weights_path,
            layers=rows,
            sqnr_db=measured.sqnr,
            db_samples=measured.samples,
            agreement_db=measured.agreement,
            simulated_db=measured.simulated,
            num_quantized=len(placement.all_layers),
            num_float=len(placement.floats),
            float_ops=placement.floats,
            size_bytes=written,
            fp32_bytes=self.fp32_bytes,
            samples=self.seen.samples,
            reduce_range=guard,
            seconds=0.0,
            notes=tuple(self.notes),
        )

    def _errors(self, quantized: ir.Model, placement: Placement) -> dict[str, float]:
        """Signal to error after each int8 layer (past the ReLU where one is absorbed)."""
        inside = [v for node in quantized.graph for v in node.outputs]
        held = {name_of(v): name_of(v) for v in inside} | {
            v.meta[RESTORES]: name_of(v) for v in inside if RESTORES in v.meta
        }
        after = {before: name for name, before in placement.clamps.items()}
        tensors: dict[str, str] = {}
        for layer in placement.layers:
            name = after.get(layer, layer)
            if name in held:
                tensors[name] = held[name]
        found = layer_errors(
            self.model,
            quantized,
            tensors,
            self.fresh(),
            samples=min(self.config.check_samples, _LAYER_SAMPLES),
            memory_mb=self.config.memory_mb,
        )
        return {
            layer: found[name] for layer in placement.layers if (name := after.get(layer, layer)) in found
        }

    def _rows(
        self, placement: Placement, encoded: Mapping[str, EncodedLayer], errors: Mapping[str, float]
    ) -> tuple[LayerRow, ...]:
        rows, weight_db = [], worst_db(self.encode_apart(placement))
        for out, name in self.names.items():
            node, gain = self.nodes[out], self.gains.get(name)
            if out in weight_db:
                rows.append(LayerRow(name, node.op_type, True, weight_db=weight_db[out], gain_db=gain))
                continue
            if out not in encoded:
                rows.append(LayerRow(name, node.op_type, False, placement.kept.get(out, ""), gain_db=gain))
                continue
            params = self.params[placement.roots[_input_name(node)]]
            rows.append(
                LayerRow(
                    name,
                    node.op_type,
                    True,
                    range_min=params.low,
                    range_max=params.high,
                    observer=self.observer,
                    weight_db=encoded[out].weight_db,
                    output_db=errors.get(out),
                    gain_db=gain,
                )
            )
        return tuple(rows)

    def time(self, out: Path) -> Timing:
        """One sample, one thread, against the fp32 source."""
        feed = next(iter(self.feeds.batches(1, 1 if self.feeds.fixed is None else None)))[0]
        return time_against_fp32(self.source, out, feed, threads=1, seconds=1.0)


def _check_patterns(patterns: Sequence[str], graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Refuse a pattern of layers to ignore that fits none."""
    known = {*names.values(), *(layer_name(node) for node in graph if node.op_type in WEIGHT_OPS)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = get_close_matches(pattern, known, n=3) or sorted(known)[:3]
            raise QuantizeError(
                f"no layer is called {pattern!r}, which is to be ignored",
                remedy=(
                    f"Correct it; layers are {', '.join(near)}"
                    if near
                    else "Leave it out; the network has no layers that could be quantized"
                ),
            )


def _by_output(model: ir.Model) -> dict[str, ir.Node]:
    return {name_of(node.outputs[0]): node for node in model.graph if node.outputs}


def _with_floats(model: ir.Model, before: ir.Model, placement: Placement) -> ir.Model:
    """A copy whose layers in float have the weights that they had before."""
    model, nodes = model.clone(), _by_output(before)
    for out in placement.kept:
        for value in nodes[out].inputs[1:]:
            array = constant(value)
            if value is not None and array is not None:
                set_initializer(model.graph, name_of(value), array)
    return model


def _input_name(node: ir.Node) -> str:
    source = node.inputs[0]
    assert source is not None
    return name_of(source)


def save_model(model: ir.Model, out: Path) -> None:
    """Write a graph as a file, atomically."""
    with atomic_write(out) as aside:
        ir.save(model, aside)
