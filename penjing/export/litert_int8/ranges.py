"""Ranges of activations, seen tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from penjing.export.coexist import quiet_tf
from penjing.export.inputs import Feeds
from penjing.export.saved_model import SIGNATURE
from penjing.export.tf_ops.backend import tf

with quiet_tf():
    from tensorflow.lite.python import schema_py_generated as schema

ENDLESS = 1e30
"""Masks reach beyond it: -∞ is written as the least float."""


def with_ranges(calibrated: bytes, samples: Iterable[Feeds]) -> bytes:
    """Set the ranges in a calibrated float file anew from ``samples``.

    TensorFlow's calibrator reads each tensor after the whole run. Where the interpreter lets an operation
    write over its own input (ADD, SUB, MUL, …), it so counts the result to the input as well: the small
    difference in a layer norm then gets the range of the normalised values, a branch of a residual block that
    of the sum, and most of its 8 bits are lost. Here every tensor keeps memory of its own.

    Args:
        calibrated: A file made by the converter's ``_experimental_calibrate_only``.
        samples: Inputs by name, one sample each.

    Returns:
        The file with the least and largest finite value of every float tensor in its main graph.
    """
    content = bytearray(calibrated)
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    computed = _computed(graph)
    parts = {i: graph.Tensors(i).Quantization() for i in sorted(computed)}
    parts = {i: part for i, part in parts.items() if part is not None and part.MinLength() == 1}
    least, largest = dict.fromkeys(parts, np.inf), dict.fromkeys(parts, -np.inf)
    with quiet_tf():
        interpreter, runner = _preserving(calibrated)
    for feeds in samples:
        runner(**feeds)
        for i in parts:
            values = interpreter.get_tensor(i)
            low, high = (values.min(), values.max()) if values.size else (np.inf, -np.inf)
            if not (np.isfinite(low) and np.isfinite(high)):
                values = values[np.isfinite(values)]
                low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
            least[i], largest[i] = min(least[i], low), max(largest[i], high)
    for i, part in parts.items():
        if least[i] <= largest[i]:
            part.MinAsNumpy()[0], part.MaxAsNumpy()[0] = least[i], largest[i]
    return bytes(content)


def infinite(calibrated: bytes, samples: Iterable[Feeds]) -> frozenset[int]:
    """Numbers of the float tensors of the main graph that hold infinities, or what stands for them: masks,
    and what they are added to.

    No step of 8 bits reaches there: on the one that the quantizer makes, the interpreter ends the process.
    """
    model = schema.Model.GetRootAs(calibrated, 0)
    graph = model.Subgraphs(0)
    computed, found = _computed(graph), set()
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        if i in computed or tensor.Type() != schema.TensorType.FLOAT32:
            continue
        buffer = model.Buffers(tensor.Buffer())
        if buffer.DataLength() and _is_endless(buffer.DataAsNumpy().view(np.float32)):
            found.add(i)
    if not found:
        return frozenset()
    with quiet_tf():
        interpreter, runner = _preserving(calibrated)
    for feeds in samples:
        runner(**feeds)
        floats = (i for i in computed - found if graph.Tensors(i).Type() == schema.TensorType.FLOAT32)
        found.update([i for i in floats if _is_endless(interpreter.get_tensor(i))])
    return frozenset(found)


def _is_endless(values: np.ndarray) -> bool:
    return bool(values.size) and not float(np.abs(values).max()) < ENDLESS


def _preserving(content: bytes) -> tuple[Any, Any]:
    """An interpreter in which every tensor keeps memory of its own, and what runs it."""
    interpreter = tf.lite.Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        # a delegate would keep what is inside to itself
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return interpreter, interpreter.get_signature_runner(SIGNATURE)


def _computed(graph: schema.SubGraph) -> set[int]:
    """Tensors that are given or made by an operation, not stored."""
    found = {graph.Inputs(i) for i in range(graph.InputsLength())}
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        found.update(operator.Outputs(i) for i in range(operator.OutputsLength()))
    return found
