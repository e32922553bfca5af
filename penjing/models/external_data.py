"""The files beside an ONNX file that hold its weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from penjing.errors import ArtifactError
from penjing.manifest import is_inside


def external_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the files beside a model, loaded without them, that hold its weights.

    Raises:
        ArtifactError: for one outside the model's folder, which a foreign file could have read or written.
    """
    held = (*_tensors(model.graph), *(tensor for one in model.functions for tensor in _tensors(one)))
    kept = (tensor for tensor in held if tensor.data_location == onnx.TensorProto.EXTERNAL)
    names = {entry.value for tensor in kept for entry in tensor.external_data if entry.key == "location"}
    for name in names:
        if not is_inside(name):
            raise ArtifactError(
                f"it keeps weights in {name!r}, outside its own folder",
                layer=model.graph.name or None,
                remedy="Put that file beside it and save it with that name",
            )
    return tuple(sorted(names))


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for entry in (entry for node in graph.node for entry in node.attribute):
        yield from (entry.t, *entry.tensors)
        for inner in (entry.g, *entry.graphs):
            yield from _tensors(inner)
