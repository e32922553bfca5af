"""Quantize, then prune: a plan slices the levels, the steps and the biases of a quantized network alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from penjing.errors import QuantizeError
from penjing.events import Listener, silent
from penjing.export.axes import DynamicAxes
from penjing.files import staged, temporary
from penjing.manifest import admit
from penjing.prune.plan import Plan
from penjing.quantize.apart import weights_at
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.feeds import rereadable
from penjing.quantize.graph import constant, name_of, set_initializer
from penjing.quantize.job import Job
from penjing.quantize.pack import dequantize_all, read_quantized, refuse_overwriting
from penjing.quantize.place import place
from penjing.quantize.result import QuantizeResult
from penjing.quantize.scheme import ActivationParams
from penjing.quantize.source import as_onnx

_PARTS = ("scale", "zero_point")


def slice_quantized(
    plan: Plan, tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """What the plan keeps of a quantized network's tensors.

    Of a layer's weight the plan's own positions, in the layout of the file; of its steps, zero points and
    bias those of the outputs that stay. Scales of activations belong to whole tensors and stay.

    Args:
        plan: A plan made for the float network.
        tensors: As `penjing.quantize.pack.read_quantized` gives them.
        header: The same file's header.

    Raises:
        QuantizeError: for a tensor whose channels the plan does not know, a plan that takes out branches, or
            weights of another mode than static.
    """
    if plan.branches:
        raise QuantizeError(
            f"the plan takes whole branches out ({', '.join(plan.branches)}), which leaves other activations",
            remedy="Apply the plan to the float network and quantize what comes of it",
        )
    if "activations" not in header["scheme"]:
        raise QuantizeError(f"only weights were quantized ({header['scheme']['weights']})", remedy=_REMEDY)
    out = dict(tensors)
    known = [row["weight"] in plan.shapes for row in header["layers"]]
    for row in header["layers"]:
        weight, axis = row["weight"], int(row["axis"])
        kept = plan.tensors.get(weight, {})
        if weight not in plan.shapes and any(known):
            raise QuantizeError(
                "this weight was put together of the network's own on export, as those of LSTMs are, and the "
                "plan knows those alone",
                layer=f"{row['name']} ({weight})" if row["name"] != weight else weight,
                remedy="Prune the float network, and quantize what comes of it",
            )
        if weight not in plan.shapes:
            raise QuantizeError("the plan does not know this weight", layer=weight, remedy=_REMEDY)
        turned = len(plan.shapes[weight]) == 2 and axis == 1  # a linear stored inputs by outputs
        for dim, positions in kept.items():
            out[weight] = _take(weight, out[weight], positions, 1 - dim if turned else dim)
        outputs = kept.get(0)
        if outputs is not None:
            names = [f"{weight}.{part}" for part in _PARTS]
            names += [row["bias"], *(f"{row['bias']}.{part}" for part in _PARTS)] if row["bias"] else []
            for name in (name for name in names if name in tensors):
                out[name] = _take(name, out[name], outputs, 0)
    done = {row[part] for row in header["layers"] for part in ("weight", "bias") if row[part]}
    for name, array in tensors.items():
        if name in done or name.rpartition(".")[0] in done or name.startswith("activation:"):
            continue
        out[name] = _slice_float(plan, name, array)
    return out


def prune_quantized(
    plan: Plan,
    weights: Path | str,
    pruned: nn.Module,
    data: Iterable[Any],
    *,
    out: Path | str,
    example_inputs: Any = None,
    recalibrate: bool = True,
    dynamic_axes: DynamicAxes | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> QuantizeResult:
    """The int8 file of the pruned network, with the levels and steps that quantization had found.

    On a CPU that adds pairs in 16 bits, weights that became neighbours are held back where they would
    overflow. What `penjing.recover` or a refit made of the pruned network's weights is not in the file:
    quantize that network instead.

    Args:
        plan: The plan that made ``pruned`` out of the network that was quantized.
        weights: ``weights_path`` of the quantized network, quantized with ``align_inputs=False`` and
            ``equalize=False`` where inputs were aligned or factors written out.
        pruned: The pruned float network; its graph is used, its weights are not.
        data: Batches that ranges are found on, and that the file is checked on.
        out: The ONNX file to write; an artifact that it is put into lists it.
        example_inputs: As for `penjing.quantize`.
        recalibrate: Find ranges of activations anew, and let the others make up for weights that are held
            back (on a CPU that adds pairs, 20 dB at half of a residual network's channels). False keeps the
            quantized network's ranges, and levels but for those held back.
        dynamic_axes: As in `QuantizeConfig`.
        seed: As for `penjing.quantize`.
        listen: Hears progress.

    Raises:
        QuantizeError: if the files do not belong together.
    """
    out = Path(out)
    refuse_overwriting(out, pruned)
    header, tensors = read_quantized(weights)
    sliced = slice_quantized(plan, tensors, header)
    floats = dequantize_all(header, sliced)
    config = QuantizeConfig(equalize=False)
    data = rereadable(data, config.samples)
    with temporary() as folder:
        fp32 = as_onnx(pruned, data, example_inputs, folder, dynamic_axes)
        job = Job(fp32, data, config, seed, listen)
        known = {*plan.shapes, *(row[part] for row in header["layers"] for part in ("weight", "bias"))}
        others, made = [], []
        for name, value in list(job.model.graph.initializers.items()):
            held = constant(value)
            if held is None or held.dtype != np.float32 or name not in floats:
                continue
            if floats[name].shape != held.shape and name not in known:
                made.append(name)  # the exporter put it together of weights, which the pruned network has cut
                continue
            if floats[name].shape != held.shape:
                raise QuantizeError(
                    f"it is {floats[name].shape} after slicing and {held.shape} in the pruned network",
                    layer=name,
                    remedy=_REMEDY,
                )
            if _is_other(held, floats[name], sliced.get(f"{name}.scale")):
                others.append(name)
            set_initializer(job.model.graph, name, floats[name])
        named = {row["weight"]: row["name"] for row in header["layers"]}
        of_weight = {}
        for output in job.names:
            node = job.nodes[output]
            weight = node.inputs[weights_at(node)[0]]
            if weight is not None:
                of_weight[name_of(weight)] = output
        float_layers = {job.names[o]: "it was float before" for w, o in of_weight.items() if w not in named}
        placement = place(job.model.graph, config, float_layers)
        missing = [root for root in placement.observed if f"activation:{root}.scale" not in sliced]
        if missing:
            raise QuantizeError(
                "the quantized network has no range for this tensor", layer=missing[0], remedy=_REMEDY
            )
        kept = {
            root: ActivationParams(
                float(sliced[f"activation:{root}.scale"].item()),
                int(sliced[f"activation:{root}.zero_point"].item()),
            )
            for root in placement.observed
        }
        scales = {of_weight[weight]: sliced[f"{weight}.scale"] for weight in named if weight in of_weight}
        matrices = {w: sliced[f"{w}.scale"] for w in named if of_weight.get(w) in placement.apart}
        job.reference = job.model
        if recalibrate:
            job.placement = placement
            job.observe(placement)
            constant_roots = [root for root, (low, high) in job.ranges.items() if low == high]
            job.params |= {root: kept[root] for root in constant_roots}
            job.settle()
            kept |= {root: found for root, found in job.params.items() if root not in constant_roots}
            # the rounding is of second order: where nothing is held back, all levels stay as they were
            job.placement, job.params, job.scales, job.matrices = placement, kept, scales, matrices
        else:
            job.teach(job.model, placement, kept, scales, matrices)
        job.notes.append("levels and steps are slices of the quantized network's")
        if made:
            job.notes.append(f"constants made on export are the pruned network's own: {', '.join(made)}")
        if others:
            job.notes.append(
                f"the pruned network has other weights ({', '.join(others[:3])}{', …' * (len(others) > 3)}), "
                "recovered or refitted: they are not in the file; penjing.quantize of it writes them"
            )
        with staged(out.parent, out.name) as aside:  # only what has been checked gets its place
            result = job.write(aside / out.name)
    result = result.at(out)
    admit(out.parent, (out.name, result.weights_path.name))
    return replace(result, notes=tuple(job.notes))


_REMEDY = (
    "Give the plan and the weights of the same network, "
    "quantized in mode 'static' with equalize=False and align_inputs=False"
)


def _is_other(held: NDArray[Any], sliced: NDArray[Any], steps: NDArray[Any] | None) -> bool:
    """Whether a weight is not what was quantized: half of its numbers are more than a step away."""
    if steps is None or held.ndim < 2 or held.shape != sliced.shape:
        return False
    axis = next((dim for dim, size in enumerate(held.shape) if size == steps.size), 0)
    shape = [-1 if dim == axis else 1 for dim in range(held.ndim)]
    return bool(np.median(np.abs(held - sliced) / steps.reshape(shape)) > 1.0)


def _slice_float(plan: Plan, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """A tensor that stayed in float: under its own name, or a bias that a folded norm gave to a weight."""
    shape = plan.shapes.get(name)
    if shape is not None:
        turned = tuple(array.shape) != tuple(shape) and tuple(array.shape) == tuple(reversed(shape))
        for dim, positions in plan.tensors.get(name, {}).items():
            array = _take(name, array, positions, array.ndim - 1 - dim if turned else dim)
        return array
    weight = f"{name.removesuffix('.bias')}.weight"
    outputs = plan.tensors.get(weight, {}).get(0) if name.endswith(".bias") else None
    if outputs is not None:
        return _take(name, array, outputs, 0)
    if ".smooth" in name:
        raise QuantizeError("factors were written out before this layer", layer=name, remedy=_REMEDY)
    return array


def _take(name: str, array: NDArray[Any], positions: Iterable[int], dim: int) -> NDArray[Any]:
    index = np.asarray(list(positions), np.int64)
    if index.size and int(index.max()) >= array.shape[dim]:
        raise QuantizeError(
            f"the plan keeps position {int(index.max())} of {array.shape[dim]}", layer=name, remedy=_REMEDY
        )
    return np.ascontiguousarray(np.take(array, index, axis=dim))
