"""The fp32 ONNX file that a quantization starts from: as it is, or exported from a module."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from penjing.batches import ask, take_apart
from penjing.errors import QuantizeError
from penjing.export.axes import SIZES_OF_A_FILE, DynamicAxes
from penjing.export.onnx import export_onnx
from penjing.floats import floats_of, only_other_floats
from penjing.graph.inputs import required_inputs
from penjing.modes import eval_mode
from penjing.quantize.graph import constant, drop_unused_initializers, set_initializer


def as_onnx(
    model: nn.Module | Path | str,
    data: Iterable[Any],
    example_inputs: Any,
    folder: Path,
    dynamic_axes: DynamicAxes | None = None,
) -> Path:
    """The path of an ONNX file as it is; a module, exported into ``folder``.

    Raises:
        QuantizeError: without data, for a module with no weight in float32, or for dynamic axes of a file.
    """
    if not isinstance(model, nn.Module):
        if dynamic_axes:
            raise QuantizeError(
                SIZES_OF_A_FILE, layer="dynamic_axes", remedy="Export with them, then quantize"
            )
        return Path(model)
    if others := only_other_floats(floats_of(model.parameters())):
        raise QuantizeError(
            f"the weights are {others}", remedy="Call model.float(), and give data of float32"
        )
    if example_inputs is None:
        first = next(iter(data), None)
        if first is None:
            raise QuantizeError("the calibration data is empty", remedy="Give at least one batch of samples")
        example_inputs = take_apart(first, required_inputs(model))[0]
    _check_kinds(model, example_inputs)
    path = folder / "fp32.onnx"
    export_onnx(model, path, example_inputs, dynamic_batch="auto", dynamic_axes=dynamic_axes)
    return _with_names(path, model)


def _with_names(path: Path, model: nn.Module) -> Path:
    """Give weights that the exporter turned, as it does before a MatMul, their names again: plans and int8
    weights files go by them. Files too large for one piece stay as they are.
    """
    graph = ir.load(path)
    if any(isinstance(value.const_value, ir.ExternalTensor) for value in graph.graph.initializers.values()):
        return path
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    renamed = 0
    for node in graph.graph:
        held = node.inputs[1] if node.op_type == "MatMul" else None
        name = f"{node.metadata_props.get('layer')}.weight"
        if held is None or held.name in weights or name not in weights or name in graph.graph.initializers:
            continue
        array = constant(held)
        if array is not None and np.array_equal(array, weights[name].detach().cpu().numpy().T):
            set_initializer(graph.graph, name, array)
            held.replace_all_uses_with(graph.graph.initializers[name])
            renamed += 1
    if renamed:
        drop_unused_initializers(graph.graph)
        ir.save(graph, path)
    return path


def _check_kinds(model: nn.Module, example_inputs: Any) -> None:
    """Ask a module for its answer where data in another format than float32 may be a mistake: the exporter
    writes a file of it that no runtime loads.
    """
    given = pytree.tree_map(lambda x: torch.as_tensor(x) if isinstance(x, np.ndarray) else x, example_inputs)
    kinds = {x.dtype for x in pytree.tree_leaves(given) if isinstance(x, torch.Tensor)}
    odd = sorted(
        str(kind).removeprefix("torch.") for kind in kinds - {torch.float32, torch.int64, torch.bool}
    )
    if not odd:
        return
    try:
        with torch.no_grad(), eval_mode(model):
            ask(model, given, "model", QuantizeError)
    except QuantizeError as error:
        raise QuantizeError(
            f"the network does not take data of {' and '.join(odd)} ({error.cause})",
            remedy="Give calibration data in the network's own format, mostly float32: x.float()",
        ) from error
