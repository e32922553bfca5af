"""The graph of an ONNX file as plain steps and arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from penjing.errors import ArtifactError
from penjing.export.onnx_node import STANDARD, attribute, standard_opset


@dataclass
class Step:
    """One node, its attributes decoded."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    domain: str

    @property
    def standard(self) -> bool:
        """Whether it is of ONNX's own op set."""
        return self.domain in STANDARD

    def renamed(self, names: Mapping[str, str]) -> Step:
        """The step with other names for what it reads and gives, in its own branches too."""
        attributes = {
            key: value.renamed(names) if isinstance(value, Body) else value
            for key, value in self.attributes.items()
        }
        inputs = tuple(names.get(name, name) for name in self.inputs)
        outputs = tuple(names.get(name, name) for name in self.outputs)
        return replace(self, inputs=inputs, outputs=outputs, attributes=attributes)


@dataclass
class Body:
    """A graph, or a branch of one.

    Attributes:
        steps: Its nodes, each after what it reads.
        constants: Every array known without running it, by name.
        weights: Names of those that are weights of the file, not numbers computed on the way.
        outputs: Names of its results.
    """

    steps: list[Step]
    constants: dict[str, np.ndarray]
    weights: set[str]
    outputs: tuple[str, ...]

    def inner(self) -> Iterator[Body]:
        """The branches of its own steps."""
        for step in self.steps:
            for value in step.attributes.values():
                if isinstance(value, Body):
                    yield value

    def renamed(self, names: Mapping[str, str]) -> Body:
        """The branch with other names for its values and for what it reads from outside."""
        return Body(
            [step.renamed(names) for step in self.steps],
            {names.get(name, name): array for name, array in self.constants.items()},
            {names.get(name, name) for name in self.weights},
            tuple(names.get(name, name) for name in self.outputs),
        )

    def inline(self, step: Step, branch: Body) -> list[Step]:
        """The steps of a branch as steps of this graph, giving the outputs of ``step``."""
        self.constants |= branch.constants
        self.weights |= branch.weights
        results = [
            replace(step, op="Identity", inputs=(given,), outputs=(wanted,), attributes={})
            for given, wanted in zip(branch.outputs, step.outputs, strict=True)
        ]
        return [*branch.steps, *results]


def _defined(body: Body) -> set[str]:
    return {*body.constants, *(name for step in body.steps for name in step.outputs)} - {""}


def _make_unique(body: Body, taken: set[str]) -> None:
    """Change the names in branches that are given elsewhere too: two branches may use the same."""
    for step in body.steps:
        for key, branch in step.attributes.items():
            if not isinstance(branch, Body):
                continue
            names = {name: f"{step.name}/{key}/{name}" for name in _defined(branch) if name in taken}
            step.attributes[key] = branch.renamed(names)
            taken |= _defined(step.attributes[key])
            _make_unique(step.attributes[key], taken)


def read_body(path: Path, fixed: Mapping[str, Any]) -> tuple[Body, dict[str, int], list[str]]:
    """Read a file.

    Args:
        path: The ``.onnx`` file.
        fixed: Values for inputs that become constants.

    Returns:
        The graph, the inputs that remain with the codes of their types, the names of the outputs.

    Raises:
        ArtifactError: an unreadable file, functions or sparse weights in it, an unknown name in ``fixed``.
    """
    model = load_proto(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    body = _body(model.graph, standard_opset(model), str(path))
    inputs = true_inputs(model)
    _make_unique(body, _defined(body) | {i.name for i in inputs})
    unknown = sorted(set(fixed) - {i.name for i in inputs})
    if unknown:
        raise ArtifactError(
            f"it has no input {', '.join(map(repr, unknown))}",
            layer=str(path),
            remedy=f"Its inputs: {', '.join(i.name for i in inputs)}",
        )
    for info in inputs:
        if info.name in fixed:
            kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            body.constants[info.name] = np.asarray(fixed[info.name], kind)
    left = {i.name: i.type.tensor_type.elem_type for i in inputs if i.name not in fixed}
    return body, left, list(body.outputs)


def load_proto(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model, with its weights or without those beside it.

    Raises:
        ArtifactError: if it is missing or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist", layer=path.name, remedy="Give an existing .onnx file")
    try:
        model = onnx.load(str(path), load_external_data=weights)
    except Exception as error:  # protobuf, the file system and onnx raise many kinds
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            layer=path.name,
            remedy="Check that the file and the weights beside it are complete",
        ) from error
    if not model.graph.node:
        raise ArtifactError(f"{path} holds no ONNX graph", layer=path.name, remedy="Give an .onnx file")
    if not model.graph.output:
        raise ArtifactError(
            f"{path} has no outputs", layer=path.name, remedy="Name what it computes as outputs"
        )
    newest = onnx.defs.onnx_opset_version()
    if standard_opset(model) > newest:
        raise ArtifactError(
            f"{path} is of opset {standard_opset(model)}; the installed onnx knows those up to {newest}",
            layer=path.name,
            remedy="Export it with an older opset, or install a newer onnx",
        )
    return model


def true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs without its weights, which old files list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in weights]


def _body(graph: onnx.GraphProto, opset: int, path: str) -> Body:
    if graph.sparse_initializer:
        raise ArtifactError("it holds sparse weights", layer=path, remedy="Store its weights as dense ones")
    constants = {t.name: _array(t, path) for t in graph.initializer}
    weights = set(constants)
    steps = []
    for i, proto in enumerate(graph.node):
        step = Step(
            op=proto.op_type,
            name=proto.name or (proto.output[0] if proto.output else f"{proto.op_type}_{i}"),
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes={a.name: _attribute(a, opset, path) for a in proto.attribute},
            opset=opset,
            domain=proto.domain,
        )
        if step.op == "Constant" and step.standard and isinstance(step.attributes.get("value"), np.ndarray):
            # some exporters store weights in Constant nodes
            constants[step.outputs[0]] = step.attributes["value"]
            weights.add(step.outputs[0])
        else:
            steps.append(step)
    return Body(steps, constants, weights, tuple(o.name for o in graph.output))


def _array(tensor: onnx.TensorProto, path: str) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"the weight {tensor.name!r} is damaged ({error})", layer=path, remedy="Export the model again"
        ) from error


def _attribute(proto: onnx.AttributeProto, opset: int, path: str) -> Any:
    if proto.type == onnx.AttributeProto.GRAPH:
        return _body(proto.g, opset, path)
    return attribute(proto)
