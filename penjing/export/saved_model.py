"""TensorFlow SavedModel, from the ONNX file: ops by the table `penjing.export.tf_ops`, weights as variables.

The folder serves with any TensorFlow that reads SavedModel (Serving, `tf.saved_model.load`,
`saved_model_cli`): one signature ``serving_default`` with the model's own input and output names and a free
batch size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_ir

from penjing.errors import ExportError
from penjing.export.base import Exporter, Layout, Runner, Source, TensorSpec, register
from penjing.export.coexist import quiet_tf
from penjing.export.inputs import Feeds, identifier
from penjing.export.onnx_pads import merge_pads
from penjing.files import atomic_dir, read_json

SIGNATURE = "serving_default"

_NOTES = Path("assets.extra")
"""Holds the names of inputs and outputs in the model's order, which a signature (a map) does not keep;
``assets.extra`` is the format's own place for such files."""


def write_saved_model(
    onnx_path: Path | str, folder: Path | str, *, layout: Layout = "nchw", sizes: Feeds | None = None
) -> Path:
    """Write an ONNX file (fp32 or QDQ) as a SavedModel folder.

    Args:
        onnx_path: The ONNX file; external weights are read from beside it.
        folder: The folder; replaced atomically.
        layout: ``"nchw"`` keeps ONNX's order in the signature; ``"nhwc"`` takes and gives image tensors
            (rank 4) with channels last, as TensorFlow users expect.
        sizes: Example inputs by name, to whose sizes all that the file leaves free but the batch is fixed.

    Returns:
        The folder.

    Raises:
        ExportError: naming the op and node that has no translation.
        RunError: if the folder cannot be written (a full disk).
    """
    folder = Path(folder)
    with quiet_tf():
        module, function = trace_onnx(onnx_path, layout=layout, sizes=sizes)
        with atomic_dir(folder) as aside:
            _save(module, function, aside)
            (aside / _NOTES).mkdir(exist_ok=True)
            for what, names in (("inputs", module.input_names), ("outputs", module.output_names)):
                note = aside / _NOTES / f"{what}.json"
                note.write_text(json.dumps(list(names)), encoding="utf-8")
    return folder


def _save(module: Any, function: Any, folder: Path) -> None:
    """Raises OSError where TensorFlow, whose errors are of its own kind, cannot write."""
    from penjing.export.tf_ops.backend import tf

    try:
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: function})
    except (
        tf.errors.ResourceExhaustedError,  # no room
        tf.errors.OutOfRangeError,  # a file larger than the process may write
        tf.errors.PermissionDeniedError,
    ) as error:
        raise OSError(0, str(error.message).rpartition("; ")[2]) from error


def trace_onnx(
    onnx_path: Path | str, *, layout: Layout = "nchw", sizes: Feeds | None = None
) -> tuple[Any, Any]:
    """A `tf.Module` that owns the weights, and its concrete function.

    Args:
        onnx_path: The ONNX file.
        layout: As in `write_saved_model`.
        sizes: As in `write_saved_model`.
    """
    from penjing.export.tf_ops.backend import tf
    from penjing.export.tf_ops.trace import GraphTracer

    model = onnx_ir.from_proto(onnx.load(str(onnx_path)))
    merge_pads(model.graph)
    tracer = GraphTracer(onnx_ir.to_proto(model))
    specs = [_spec(info, layout, sizes or {}) for info in tracer.inputs]
    input_names = [info.name for info in tracer.inputs]
    output_names = [info.name for info in tracer.graph.output]
    for names in (input_names, output_names):
        if len(set(map(identifier, names))) < len(names):
            raise ExportError(
                f"two of the names {', '.join(names)} are the same in TensorFlow",
                layer=str(onnx_path),
                remedy="Rename them in the ONNX file; TensorFlow keeps letters, digits, '.' and '_'",
            )

    def serve(*tensors: Any) -> dict[str, Any]:
        feeds = {}
        for name, tensor, spec in zip(input_names, tensors, specs, strict=True):
            tensor = tf.ensure_shape(tensor, spec.shape)  # a stored signature checks types alone
            turned = layout == "nhwc" and tensor.shape.rank == 4
            feeds[name] = tf.transpose(tensor, [0, 3, 1, 2]) if turned else tensor
        outputs = tracer(feeds)
        return {
            identifier(name): tf.identity(
                value.last() if layout == "nhwc" and value.rank == 4 else value.plain(),
                name=identifier(name),
            )
            for name, value in zip(output_names, outputs, strict=True)
        }

    # tf.function would trace the whole graph twice and keep the variables' initial values; so the graph is
    # traced once by wrap_function, and what tf.function adds (a signature with names) is traced around it.
    traced = tf.compat.v1.wrap_function(serve, specs)
    function = tf.function(lambda *tensors: traced(*tensors), input_signature=specs, autograph=False)
    module = tf.Module(name="penjing")
    module.weights = list(tracer.weights.variables.values())
    module.input_names = tuple(map(identifier, input_names))
    module.output_names = tuple(map(identifier, output_names))
    return module, function.get_concrete_function()


def _spec(info: onnx.ValueInfoProto, layout: Layout, sizes: Feeds) -> Any:
    from penjing.export.tf_ops.backend import tf

    kind = info.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if (example := sizes.get(info.name)) is not None:
        dims = [
            n if i and dim is None else dim
            for i, (dim, n) in enumerate(zip(dims, example.shape, strict=True))
        ]
    if layout == "nhwc" and len(dims) == 4:
        dims = [dims[0], dims[2], dims[3], dims[1]]
    dtype = tf.as_dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return tf.TensorSpec(dims, dtype, name=identifier(info.name))


def free_or_fixed(source: Source, onnx_path: Path, folder: Path) -> tuple[str, ...]:
    """Write one of the source's files as a SavedModel; where TensorFlow cannot leave its sizes free, with
    fixed ones, and a note that says why."""
    try:
        write_saved_model(onnx_path, folder, layout=source.layout)
    except ExportError as error:
        if not source.axes:
            raise
        write_saved_model(onnx_path, folder, layout=source.layout, sizes=source.feeds)
        return (f"sizes beside the batch are fixed: {error.cause}",)
    return ()


class SavedModelRunner(Runner):
    """A SavedModel folder, called through its serving signature.

    Args:
        path: The folder.

    Raises:
        ExportError: if TensorFlow is missing or the folder is not a SavedModel with a serving signature.
    """

    def __init__(self, path: Path | str) -> None:
        SavedModelExporter().require()
        from penjing.export.tf_ops.backend import tf

        self.path = Path(path)
        with quiet_tf():
            try:
                self._model = tf.saved_model.load(str(self.path))
                self._function = self._model.signatures[SIGNATURE]
            except (OSError, KeyError, ValueError) as error:
                raise ExportError(
                    f"TensorFlow cannot open the folder: {error}",
                    layer=str(self.path),
                    remedy="Give a SavedModel folder that has a 'serving_default' signature",
                ) from error
        self.runtime = f"tensorflow {tf.__version__}"
        arguments = self._function.structured_input_signature[1]
        self.inputs = tuple(
            TensorSpec(name, np.dtype(spec.dtype.as_numpy_dtype), tuple(spec.shape.as_list()))
            for name, spec in ((name, arguments[name]) for name in _ordered(arguments, self.path, "inputs"))
        )
        self.outputs = _ordered(self._function.structured_outputs, self.path, "outputs")

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the order of `outputs`."""
        from penjing.export.tf_ops.backend import tf

        asked = self._function.structured_input_signature[1]
        given = {identifier(name): tf.constant(array) for name, array in feeds.items()}
        for name, tensor in given.items():
            if tensor.dtype.is_floating and name in asked:  # NumPy has no bfloat16
                given[name] = tf.cast(tensor, asked[name].dtype)
        results = self._function(**given)
        return [np.asarray(results[name].numpy()) for name in self.outputs]


def _ordered(names: Iterable[str], path: Path, what: Literal["inputs", "outputs"]) -> tuple[str, ...]:
    """Names in the order that the file notes; in alphabetical order where another tool wrote it."""
    given, noted = sorted(names), noted_names(path, what)
    return noted if sorted(noted) == given else tuple(given)


def noted_names(path: Path, what: Literal["inputs", "outputs"]) -> tuple[str, ...]:
    """Names in the model's order, as noted when it was written; none by another tool."""
    file = path / _NOTES / f"{what}.json"
    return tuple(read_json(file)) if file.is_file() else ()


@register
class SavedModelExporter(Exporter):
    """TensorFlow SavedModel."""

    name: ClassVar[str] = "saved_model"
    filename: ClassVar[str] = "saved_model"
    extra: ClassVar[str | None] = "tf"
    module: ClassVar[str | None] = "tensorflow"
    changes_layout: ClassVar[bool] = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A folder with ``saved_model.pb`` in it."""
        return (path / "saved_model.pb").is_file()

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Translate the ONNX file."""
        return free_or_fixed(source, source.onnx, path)

    def open(self, path: Path) -> Runner:
        """The folder in TensorFlow."""
        return SavedModelRunner(path)


@register
class QuantizedSavedModelExporter(SavedModelExporter):
    """The quantized ONNX file as a SavedModel: int8 variables and exact rounding, a quarter of the size."""

    name: ClassVar[str] = "saved_model_int8"
    filename: ClassVar[str] = "saved_model_int8"
    quantized: ClassVar[bool] = True

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Translate the given int8 file."""
        return free_or_fixed(source, source.quantized(self.name), path)
