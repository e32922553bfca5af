"""Example inputs for an ONNX file that comes with nothing else: shapes and types it declares, indices it can
take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from penjing.export.inputs import Feeds
from penjing.export.onnx_node import attribute

_CARRIES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
"""Ops whose output holds the elements of their first input."""

_MASK, _TOKENS = 2, 8
"""Limits of integers that are no index: of masks, and of everything else (few different tokens in a row give
variances of nearly nothing, by which norms divide)."""

_BYTES = 256
"""The limit of 8-bit integers in images: pixels."""

_IMAGE, _LENGTH, _BATCH = 224, 16, 2


def example_feeds(
    model: onnx.ModelProto | Path, shapes: Mapping[str, Sequence[int]] | None = None, *, seed: int = 0
) -> Feeds:
    """One array for each input that is not a weight.

    Args:
        model: The file, or what it holds, with or without its weights' data.
        shapes: Shape by input name, where the file leaves dimensions free; by default 2 samples, images of
            224, 16 elsewhere.
        seed: Fixes the noise.

    Returns:
        Noise for floats. Integers vary, since equal tokens at all places hide errors (or blow up rounding,
        where a norm divides by their variance), and are below the shortest table they index; 8-bit ones of
        images are any. Ones for single integers (a length) and booleans.
    """
    if isinstance(model, Path):
        model = onnx.load(str(model), load_external_data=False)
    rng = np.random.default_rng(seed)
    limits = index_limits(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds: Feeds = {}
    for info in model.graph.input:
        if info.name in weights:
            continue
        kind = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = tuple((shapes or {}).get(info.name) or _shape(kind.shape.dim))
        usual = _MASK if "mask" in info.name.lower() else _TOKENS
        if len(shape) == 4 and dtype.itemsize == 1 and usual == _TOKENS:
            usual = _BYTES
        feeds[info.name] = _array(rng, dtype, shape, limits.get(info.name, usual))
    return feeds


def assumed_shapes(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes of the examples of inputs that leave more than the batch free, but for those in ``shapes``."""
    weights = {tensor.name for tensor in model.graph.initializer} | set(shapes or {})
    inputs = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input if i.name not in weights}
    free = {name: dims for name, dims in inputs.items() if any(d.dim_value <= 0 for d in list(dims)[1:])}
    return {name: tuple(_shape(dims)) for name, dims in free.items()}


def _shape(dims: Sequence[Any]) -> list[int]:
    free = _IMAGE if len(dims) == 4 else _LENGTH
    return [d.dim_value if d.dim_value > 0 else free if i else _BATCH for i, d in enumerate(dims)]


def _array(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], limit: int) -> np.ndarray:
    if dtype.kind == "b" or (dtype.kind in "iu" and int(np.prod(shape)) <= 1):
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, min(limit, np.iinfo(dtype).max), shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """For each input used as an index: the size of the smallest table that it indexes."""
    graph = model.graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    source = {info.name: info.name for info in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:
        root = source.get(node.input[0]) if node.input else None
        if node.op_type in _CARRIES and root is not None:
            source[node.output[0]] = root
        if node.op_type == "Gather" and node.input[1] in source and node.input[0] in sizes:
            axis = next((int(attribute(a)) for a in node.attribute if a.name == "axis"), 0)
            owner, size = source[node.input[1]], sizes[node.input[0]][axis]
            limits[owner] = min(size, limits.get(owner, size))
    return limits
