"""LiteRT (TensorFlow Lite) files, by TensorFlow's own converter: float, half precision, dynamic range, full
int8."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from penjing.batches import take_apart
from penjing.errors import ExportError
from penjing.export.base import Exporter, Runner, Source, TensorSpec, register
from penjing.export.coexist import quiet_tf
from penjing.export.inputs import Feeds, as_feeds, between, fitted, num_samples
from penjing.export.saved_model import SIGNATURE, free_or_fixed, noted_names, write_saved_model
from penjing.files import atomic_write, temporary

CALIBRATION_SAMPLES = 256
"""Samples that a full int8 file is made and compared with."""

CALIBRATION_BYTES = 2**30
"""What they may take in memory."""


def write_litert(
    saved_model: Path | str,
    path: Path | str,
    *,
    precision: str = "float",
    samples: Sequence[Feeds] | None = None,
) -> tuple[str, ...]:
    """Convert a SavedModel.

    Args:
        saved_model: The folder.
        path: The ``.tflite`` file; replaced atomically.
        precision: ``"float"``, ``"fp16"`` (half-precision weights), ``"dynamic"`` (int8 weights, float
            activations) or ``"int8"`` (int8 weights and activations, float at the interface and where int8
            would change the answers).
        samples: For ``"int8"``: calibration inputs by name, one sample each, or the batch that is fixed.

    Returns:
        Notes on what stayed in float in an int8 file, and why.

    Raises:
        ExportError: if the converter refuses an op, naming it, or no calibration data was given.
    """
    from penjing.export.tf_ops.backend import tf

    path = Path(path)
    if precision == "int8" and not samples:
        raise ExportError(
            "a full int8 LiteRT file needs calibration data", remedy="Pass data=… with a few hundred samples"
        )
    with quiet_tf():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[SIGNATURE])
        if precision != "float":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            # Ops without an int8 kernel (NMS, RNN loops) stay in float instead of stopping the conversion.
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
                tf.lite.OpsSet.TFLITE_BUILTINS,
            ]
        try:
            if precision == "int8":
                from penjing.export.litert_int8.write import to_integer

                made = to_integer(converter, samples or ())
                content, notes = made.content, made.notes
            else:
                content, notes = converter.convert(), ()
        except ExportError:
            raise
        except Exception as error:  # the converter has many exception classes of its own
            raise ExportError(
                f"TensorFlow's LiteRT converter refused the model: {_reason(error)}",
                layer=str(path),
                remedy="Use the SavedModel instead, or change the op named",
            ) from error
    with atomic_write(path) as aside:
        aside.write_bytes(_in_order(content, noted_names(Path(saved_model), "outputs")))
    return notes


def _in_order(content: bytes, names: Sequence[str]) -> bytes:
    """The file with its graph's outputs in the order of ``names``; the converter sorts them by name."""
    from tensorflow.lite.python import schema_py_generated as schema

    buffer = bytearray(content)
    model = schema.Model.GetRootAs(buffer)
    signature = model.SignatureDefs(0)
    tensors = map(signature.Outputs, range(signature.OutputsLength()))
    index = {tensor.Name().decode(): tensor.TensorIndex() for tensor in tensors}
    outputs = model.Subgraphs(signature.SubgraphIndex()).OutputsAsNumpy()  # a view of the buffer
    if sorted(index) == sorted(names) and sorted(index.values()) == sorted(outputs):
        outputs[:] = [index[name] for name in names]
    return bytes(buffer)


def _reason(error: Exception) -> str:
    """What the converter says of the op it cannot take, without the call sites around it."""
    text = str(error)
    told = re.search(r": ('tfl?\.\w+' op [^\n]*)", text)
    if told:
        return told[1].strip().rstrip(".")
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower() or "op:" in line.lower()]
    return (lines or [text.strip() or type(error).__name__])[0][:300]


def calibration(source: Source, size: int = 1) -> list[Feeds]:
    """Inputs by name, from the export's data: 256 samples, fewer if they fill `CALIBRATION_BYTES`.

    Args:
        source: What the file is made from.
        size: Samples in each: one, or the batch that the network is fixed to.

    Raises:
        ExportError: where no batch of the data holds as many.
    """
    count = 0
    turned = source.layout == "nhwc"
    kinds = {name: array.dtype for name, array in source.feeds.items()}
    samples: list[Feeds] = []
    room = CALIBRATION_BYTES
    for batch in () if source.data is None else source.data:
        feeds = fitted(as_feeds(take_apart(batch, list(source.feeds))[0], list(source.feeds)), kinds)
        count = max(count, num_samples(feeds))
        for i in range(0, num_samples(feeds) - size + 1, size):
            sample = between(feeds, i, i + size)
            if turned:
                sample = {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in sample.items()}
            sample = {k: np.array(v, order="C") for k, v in sample.items()}  # not the batch it is a part of
            samples.append(sample)
            room -= sum(array.nbytes for array in sample.values())
            if len(samples) * size >= CALIBRATION_SAMPLES or room <= 0:
                return samples
    if count and not samples:
        raise ExportError(
            f"the network takes batches of {size} samples, and the data holds {count} at most",
            layer="data",
            remedy=f"Give batches of {size}",
        )
    return samples


def _fixed_batch(source: Source) -> int:
    """The batch size that the network is fixed to; 1 where it takes any."""
    given = onnx.load(source.onnx, load_external_data=False).graph.input
    shapes = (info.type.tensor_type.shape.dim for info in given if info.name in source.feeds)
    return next((int(dims[0].dim_value) for dims in shapes if dims), 0) or 1


class LiteRTRunner(Runner):
    """A ``.tflite`` file in the LiteRT interpreter (``ai_edge_litert`` where installed, else TensorFlow's).

    Args:
        path: The file.
        threads: Interpreter threads.
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        self.path = Path(path)
        interpreter, self.runtime = _interpreter_class()
        with quiet_tf():
            try:
                self._interpreter = interpreter(model_path=str(self.path), num_threads=threads)
                self._runner = self._interpreter.get_signature_runner(SIGNATURE)
            except (ValueError, RuntimeError) as error:
                raise ExportError(
                    f"the LiteRT interpreter cannot open the file: {error}",
                    layer=str(self.path),
                    remedy="Check that the file is complete",
                ) from error
        details = _by_place(self._runner.get_input_details(), self._interpreter.get_input_details())
        self.inputs = tuple(
            TensorSpec(
                name,
                np.dtype(detail["dtype"]),
                tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
            )
            for name, detail in details.items()
        )
        self.outputs = tuple(
            _by_place(self._runner.get_output_details(), self._interpreter.get_output_details())
        )

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the order of `outputs`; the interpreter is resized to the batch."""
        results = self._runner(**feeds)
        return [np.array(results[name]) for name in self.outputs]


def _by_place(named: Mapping[str, Any], placed: Sequence[Any]) -> dict[str, Any]:
    """A signature's tensors, which come sorted by name, in the order of the graph's own."""
    places = {detail["index"]: place for place, detail in enumerate(placed)}
    return dict(sorted(named.items(), key=lambda item: places.get(item[1]["index"], len(places))))


def _interpreter_class() -> tuple[Any, str]:
    try:
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter
        return interpreter, "ai_edge_litert"
    except ImportError:
        from penjing.export.tf_ops.backend import tf

        return tf.lite.Interpreter, f"tensorflow {tf.__version__} LiteRT"


class _LiteRTExporter(Exporter):
    """What the four precisions share."""

    extra: ClassVar[str | None] = "tf"
    module: ClassVar[str | None] = "tensorflow"
    changes_layout: ClassVar[bool] = True
    precision: ClassVar[str]

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """ONNX → SavedModel (in a temporary folder, shared by all precisions) → LiteRT."""
        samples = calibration(source, _fixed_batch(source)) if self.precision == "int8" else None
        with temporary() as folder:
            saved = (source.scratch or folder) / "saved_model"
            if not saved.is_dir():
                free_or_fixed(source, source.onnx, saved)  # what is fixed is seen in the file, and noted
            try:
                return write_litert(saved, path, precision=self.precision, samples=samples)
            except ExportError as error:
                if not source.axes:
                    raise
                fixed = folder / "fixed"
                write_saved_model(source.onnx, fixed, layout=source.layout, sizes=source.feeds)
                notes = write_litert(fixed, path, precision=self.precision, samples=samples)
                return (*notes, f"sizes beside the batch are fixed: {error.cause}")

    def open(self, path: Path) -> Runner:
        """The file in the LiteRT interpreter."""
        return LiteRTRunner(path)


@register
class FloatLiteRT(_LiteRTExporter):
    """LiteRT in fp32."""

    name: ClassVar[str] = "litert"
    filename: ClassVar[str] = "model.tflite"
    precision: ClassVar[str] = "float"


@register
class HalfLiteRT(_LiteRTExporter):
    """LiteRT with half-precision weights."""

    name: ClassVar[str] = "litert_fp16"
    filename: ClassVar[str] = "model.fp16.tflite"
    precision: ClassVar[str] = "fp16"
    tolerance: ClassVar[float] = 1e-2


@register
class DynamicLiteRT(_LiteRTExporter):
    """LiteRT with int8 weights and float activations."""

    name: ClassVar[str] = "litert_dynamic"
    filename: ClassVar[str] = "model.dynamic.tflite"
    precision: ClassVar[str] = "dynamic"
    quantized: ClassVar[bool] = True


@register
class IntegerLiteRT(_LiteRTExporter):
    """LiteRT with int8 weights and activations; what int8 would break stays in float (`litert_int8`)."""

    name: ClassVar[str] = "litert_int8"
    filename: ClassVar[str] = "model.int8.tflite"
    precision: ClassVar[str] = "int8"
    quantized: ClassVar[bool] = True
