"""ONNX: written through ``torch.export``, checked, and run in ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument, OutputKind

from penjing.errors import ExportError, VerifyError
from penjing.export.axes import DynamicAxes, axes_by_input
from penjing.export.base import Exporter, Runner, Source, TensorSpec, register
from penjing.export.coexist import make_peace
from penjing.export.exported import FreeSizes, first_line, inference, quiet, to_program
from penjing.export.folding import fold_weights
from penjing.export.inputs import Feeds, as_call, output_names, tensors_of
from penjing.export.inputs import input_names as default_input_names
from penjing.export.onnx_affine import fold_affine
from penjing.export.onnx_indices import widen_indices
from penjing.export.onnx_layout import cancel_transposes
from penjing.export.onnx_pads import merge_pads
from penjing.export.onnx_softmax import floor_masked
from penjing.export.program_ops import target_name
from penjing.export.recurrent_shapes import translated_lengths
from penjing.export.translations import even_bounds, slice_splits, translations
from penjing.files import atomic_write
from penjing.models.external_data import external_files

DEFAULT_OPSET = 20
"""Has GELU and every op torch's exporter emits; read by ONNX Runtime ≥ 1.17, OpenVINO and TensorRT 10."""

_EXTERNAL_ABOVE = 2**31 - 2**24
"""Protocol buffers end at 2 GiB; beyond this many bytes of weights they go to ``<name>.data`` beside the
file."""

FIXED_BATCH = "fixed_batch"
"""Entry of a file's metadata: why its batch is fixed, where the network leaves no choice."""

_KEPT_NODE_METADATA = "pkg.torch.onnx.name_scopes"

_SYMBOL = re.compile(r"s\d+")


def export_onnx(
    model: nn.Module,
    path: Path | str,
    example_inputs: Any,
    *,
    dynamic_batch: bool | Literal["auto"] = True,
    dynamic_axes: DynamicAxes | None = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write ``model`` in inference mode as one ONNX file (weights beside it when they pass 2 GB).

    Constants are folded and batch norms go into the convolution or linear layer before them. Each node keeps
    the name of the module it came from (metadata key ``layer``). The model is not copied; its training flags
    are given back.

    Args:
        model: Any module ``torch.export`` accepts.
        path: The file; replaced atomically.
        example_inputs: A tensor, a tuple or a dict of tensors, as the model is called; dimension 0 is the
            batch.
        dynamic_batch: Leave the batch size free. ``"auto"`` fixes it only where the model itself does; the
            file's metadata says then why (key ``fixed_batch``).
        dynamic_axes: Sizes beside the batch that callers choose: input name or pattern → dimension → what it
            is called, such as ``{"image": {2: "height", 3: "width"}}`` or ``{"*": {1: "sequence"}}``. The
            example needs at least 2 there.
        opset: ONNX operator set, by default 20.
        input_names: Names for the inputs; by default ``input``, or the argument names where there are
            several.
        metadata: Further entries for the file's metadata.

    Returns:
        The path written.

    Raises:
        ExportError: naming the op or the reason when the model cannot be expressed, or the batch or an axis
            cannot be free.
    """
    path = Path(path)
    opset = DEFAULT_OPSET if opset is None else opset
    make_peace()
    args, kwargs = as_call(example_inputs, model)
    names = list(input_names) if input_names is not None else default_input_names(model, example_inputs)
    shapes = {name: value.shape for name, value in zip(names, tensors_of((args, kwargs)), strict=False)}
    free = FreeSizes(dynamic_batch, axes_by_input(dynamic_axes, shapes))
    with inference(model), quiet():
        program, fixed = to_program(model, args, kwargs, free, names)
        with translated_lengths() if free.axes else contextlib.nullcontext():
            graph = _to_onnx(program, names, opset, model)
        _set_apart(graph.graph)
        graph = cancel_transposes(graph)
        fold_affine(graph.graph)
        merge_pads(graph.graph)
        floor_masked(graph.graph)
        widen_indices(graph.graph)
        _name_sizes(graph.graph, free.axes)
        _clean(graph, opset, {**({FIXED_BATCH: fixed} if fixed else {}), **(metadata or {})})
        _save(graph, path)
    _check(path)
    return path


def _to_onnx(
    program: torch.export.ExportedProgram, names: Sequence[str], opset: int, model: nn.Module
) -> Any:
    given = _given(program)
    for leaf in given:
        if leaf is not None and not isinstance(leaf, torch.Tensor):
            raise ExportError(
                f"the forward returns the constant {leaf!r} beside its tensors, which a file cannot hold",
                remedy="Return tensors only, or None for what there is not",
            )
    even_bounds(program)
    slice_splits(program)
    program._guards_code = []  # torch names inputs of **kwargs there as it cannot read them again
    outputs = _output_names(program, given, names, model)
    try:
        exported = _translated(program, names, outputs, opset)
    except Exception as error:
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        foreign = next((str(call) for call in calls if target_name(call) is None), "")
        told = first_line(error)
        if "is mutated in the forward" in told:
            raise ExportError(
                f"the forward writes into a tensor that it keeps, which files cannot do: {told}",
                remedy="Hold it by register_buffer, whose present values a file starts from",
            ) from error
        remedy = "Replace the op named, or export the format 'program', which keeps it"
        raise ExportError(
            f"torch has no ONNX translation for this model: {told}",
            remedy=f"Replace {foreign}, which no format holds" if foreign else remedy,
        ) from error
    assert exported is not None
    graph = exported.model
    if graph.opset_imports.get("", opset) != opset:
        raise ExportError(
            f"the model cannot be written for ONNX opset {opset} (it needs {graph.opset_imports['']})",
            remedy=f"Leave opset out, or ask for {graph.opset_imports['']}",
        )
    return graph


def _translated(
    program: torch.export.ExportedProgram, names: Sequence[str], outputs: Sequence[str], opset: int
) -> Any:
    """Torch's translation; where it has none for what the network computes from its weights, of the network
    with that worked out."""

    def translate() -> Any:
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(names),
            output_names=list(outputs),
            opset_version=opset,
            custom_translation_table=translations(program),
            external_data=False,
            verbose=False,
            optimize=True,
        )

    try:
        return translate()
    except Exception as refusal:
        if not fold_weights(program):
            raise
        try:
            return translate()
        except Exception:
            raise refusal from refusal.__cause__


def _output_names(
    program: torch.export.ExportedProgram, given: Sequence[Any], taken: Sequence[str], model: nn.Module
) -> list[str]:
    """A name for each output that is a tensor, none of which an input has taken."""
    spec = program.call_spec.out_spec
    assert spec is not None
    if len(given) != spec.num_leaves:
        return [f"output_{i}" for i in range(len(given))]
    tree = torch.utils._pytree.tree_unflatten(given, spec)
    return output_names(tree, taken, model)


def _given(program: torch.export.ExportedProgram) -> list[Any]:
    """What the forward gives: a tensor (here an empty one) or a constant, such as None, for each leaf."""
    specs = program.graph_signature.output_specs
    outputs = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    return [arg.value if isinstance(arg, ConstantArgument) else torch.empty(0) for arg in outputs]


def _set_apart(graph: Any) -> None:
    """Rename weights and what is computed on the way where an input or output is called so: an argument
    ``cat``."""
    ends = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inner = [out for node in graph.all_nodes() for out in node.outputs] + list(graph.initializers.values())
    taken = ends.keys() | {value.name for value in inner}
    for value in inner:
        name = value.name
        if ends.get(name, value) is not value:
            value.name = next(other for i in count(1) if (other := f"{name}_{i}") not in taken)
            taken.add(value.name)


def _name_sizes(graph: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Call free sizes as the user does, and a free batch ``batch``, where the tracer has symbols of its own
    for them, such as ``s77``."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in graph.inputs:
        for dim, name in axes.get(value.name, {}).items():
            symbol = str(value.shape[dim])
            if symbol.isdecimal():
                raise ExportError(
                    f"the size cannot be left free: {name} (dimension {dim} of {value.name}): ONNX has no "
                    "operator for a layer that walks along it, which is unrolled",
                    layer="dynamic_axes",
                    remedy="Leave it out; of recurrent layers LSTM and GRU can be free",
                )
            if names.setdefault(symbol, name) != name:
                raise ExportError(
                    f"{names[symbol]} and {name} are always the same size in this network",
                    layer="dynamic_axes",
                    remedy="Give both one name",
                )
    firsts = (value.shape[0] for value in graph.inputs if value.shape)
    batch = next((dim.value for dim in firsts if not isinstance(dim, int) and dim.value), "batch")
    names = {symbol: name for symbol, name in {batch: "batch", **names}.items() if _SYMBOL.fullmatch(symbol)}
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    for value in (*graph.inputs, *(out for node in graph.all_nodes() for out in node.outputs)):
        if value.shape is not None:  # a new one, as some are frozen; a dim may be a term, such as 4*s77
            dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
            value.shape = onnx_ir.Shape(
                pattern.sub(lambda found: names[found[0]], dim) if isinstance(dim, str) else dim
                for dim in dims
            )


def _clean(graph: Any, opset: int, metadata: Mapping[str, str]) -> None:
    """Drop stack traces (they hold paths of this machine), keep each node's module as ``layer``."""
    import penjing

    for node in graph.graph.all_nodes():
        scopes = node.metadata_props.get(_KEPT_NODE_METADATA, "")
        node.metadata_props.clear()
        node.doc_string = None
        layer = _owner_of_weight(node) or _deepest_scope(scopes)
        if layer:
            node.metadata_props["layer"] = layer
    for value in [*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()]:
        value.metadata_props.clear()
    for node in graph.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()
    graph.metadata_props.update({"producer": "penjing", "opset": str(opset), **metadata})
    graph.producer_name = "penjing"
    graph.producer_version = getattr(penjing, "__version__", None) or "0"
    graph.graph.name = "penjing"


def _owner_of_weight(node: Any) -> str:
    """The module whose ``weight`` the node reads: a folded batch norm would lend a convolution its own
    name."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    name = weight.name or "" if weight is not None and weight.is_initializer() else ""
    return str(name.removesuffix(".weight")) if name.endswith(".weight") else ""


def _deepest_scope(scopes: str) -> str:
    """The innermost module of torch's scope list ``['', 'features', 'features.0', 'conv2d']``, whose end is
    the op."""
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 else ""


def _save(graph: Any, path: Path) -> None:
    import onnx_ir

    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    external = size > _EXTERNAL_ABOVE
    with atomic_write(path) as aside:
        if not external:
            onnx_ir.save(graph, aside)
            return
        data = path.with_name(path.name + ".data")
        folder = path.with_name(f".{path.name}.parts")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            onnx_ir.save(graph, folder / path.name, external_data=data.name)
            os.replace(folder / data.name, data)
            os.replace(folder / path.name, aside)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the ONNX file is not valid: {first_line(error)}",
            layer=str(path),
            remedy="Report the model: the exporter wrote a graph that the ONNX standard refuses",
        ) from error


class OnnxRunner(Runner):
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The ``.onnx`` file.
        threads: Threads within an op; 0 leaves the choice to the runtime.
    """

    def __init__(self, path: Path | str, *, threads: int = 0) -> None:
        import onnxruntime as ort

        self.path = Path(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception classes are private
            raise ExportError(
                f"ONNX Runtime cannot open the file: {first_line(error)}",
                layer=str(self.path),
                remedy="Check that the file is complete and of an opset this onnxruntime knows",
            ) from error
        self.runtime = f"onnxruntime {ort.__version__}"
        self.inputs = tuple(
            TensorSpec(
                i.name,
                _numpy_type(i.type),
                tuple(dim if isinstance(dim, int) else None for dim in i.shape),
                tuple(dim if isinstance(dim, str) else None for dim in i.shape),
            )
            for i in self.session.get_inputs()
        )
        self.outputs = tuple(o.name for o in self.session.get_outputs())

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the file's order, each an array."""
        try:
            return [np.asarray(value) for value in self.session.run(None, feeds)]
        except Exception as error:  # the runtime's own exception classes are private
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise VerifyError(
                f"ONNX Runtime cannot run the file on {shapes}: {first_line(error)}",
                layer=str(self.path),
                remedy="Give inputs of the shapes it takes; if its batch size is free, fix it",
            ) from error


_NUMPY_TYPES: dict[str, str] = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "int64": "int64",
    "int32": "int32",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}


def _numpy_type(onnx_type: str) -> np.dtype[Any]:
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_NUMPY_TYPES.get(name, name))


@register
class OnnxExporter(Exporter):
    """The fp32 ONNX file, from which every other served format is made."""

    name: ClassVar[str] = "onnx"
    filename: ClassVar[str] = "model.onnx"

    def write(self, source: Source, path: Path) -> None:
        """Copy the ONNX file all formats come from (external weights included)."""
        copy_onnx(source.onnx, path)

    def open(self, path: Path) -> Runner:
        """The file in ONNX Runtime."""
        return OnnxRunner(path)


@register
class QuantizedOnnxExporter(OnnxExporter):
    """The quantized (QDQ) ONNX file, given beside the model and copied as it is."""

    name: ClassVar[str] = "onnx_int8"
    filename: ClassVar[str] = "model.int8.onnx"
    quantized: ClassVar[bool] = True

    def write(self, source: Source, path: Path) -> None:
        """Copy the given int8 file."""
        copy_onnx(source.quantized(self.name), path)


def copy_onnx(source: Path, path: Path) -> None:
    """Copy an ONNX file and the external data files it names; copying onto itself does nothing."""
    if source.resolve() == path.resolve():
        return
    model = onnx.load(str(source), load_external_data=False)
    for location in external_files(model):
        with atomic_write(path.parent / location) as aside:
            shutil.copyfile(source.parent / location, aside)
    with atomic_write(path) as aside:
        shutil.copyfile(source, aside)
