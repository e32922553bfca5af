"""An ONNX file, of any framework, as a trainable ``nn.Module``.

The file's float weights become parameters under their own names; batch-norm statistics and other constants
become buffers. Running the module walks the graph and applies `penjing.models.onnx_ops`. What the graph
computes on sizes is computed in NumPy, so ``torch.export`` can trace it with a free batch: the network is
pruned, recovered by distillation and exported like any other module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.errors import ArtifactError, PenjingError
from penjing.export.onnx_examples import assumed_shapes, example_feeds
from penjing.models.onnx_ops import HOST, OPS, Node, as_tensor
from penjing.models.onnx_ops.node import DTYPES, Value
from penjing.models.onnx_read import Body, Step, load_proto, read_body, true_inputs
from penjing.models.onnx_weights import Stored, store
from penjing.models.spec import LoadedModel

Env = dict[str, Value | None]


class OnnxModel(nn.Module):
    """The network of an ONNX file.

    Args:
        path: The file; weights beside it are read too.
        constants: Values for inputs that are to become constants, by name (e.g. a sampling rate).

    Attributes:
        input_names: Its inputs, in the order they are called.
        output_names: Its outputs.
        input_dtypes: What the file declares each input to be; types that torch lacks are left out.

    Raises:
        ArtifactError: an unreadable file, an unknown input name, or ops that have no rule (each named with a
            node).
    """

    def __init__(self, path: Path | str, constants: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        body, inputs, outputs = read_body(Path(path), constants or {})
        self.input_names: tuple[str, ...] = tuple(inputs)
        self.input_dtypes: dict[str, torch.dtype] = {
            name: DTYPES[kind] for name, kind in inputs.items() if kind in DTYPES
        }
        self.output_names: tuple[str, ...] = tuple(outputs)
        _check_ops(body)
        self._body = body
        self._fold(body)
        self._stored: dict[str, Stored] = store(self, body, outputs)

    def _fold(self, body: Body) -> None:
        """Compute now what depends on constants alone, and take the branches that are known.

        Weights are left alone: they will be trained.
        """
        kept: list[Step] = []
        queue = deque(body.steps)
        while queue:
            step = queue.popleft()
            if step.op == "If" and step.inputs[0] in body.constants:
                taken = "then_branch" if body.constants[step.inputs[0]].reshape(-1)[0] else "else_branch"
                queue.extendleft(reversed(body.inline(step, step.attributes[taken])))
            elif _is_constant(step, body):
                env: Env = {name: body.constants[name] for name in step.inputs if name} | {"": None}
                with torch.no_grad():
                    results = self._evaluate(step, env, torch.device("cpu"), {})
                for name, value in zip(step.outputs, results, strict=False):
                    body.constants[name] = _array(value)
                    if step.op == "DequantizeLinear":  # a quantized file's weights train in float
                        body.weights.add(name)
            else:
                kept.append(step)
        body.steps = kept
        for inner in body.inner():
            inner.constants = {**body.constants, **inner.constants}
            inner.weights |= body.weights
            self._fold(inner)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Args:
            *args: Tensors in the order of `input_names`.
            **kwargs: Tensors by input name.

        Returns:
            The output, or a tuple of all of them.
        """
        given = [*zip(self.input_names, args, strict=False), *kwargs.items()]
        if len(args) > len(self.input_names) or sorted(n for n, _ in given) != sorted(self.input_names):
            raise ArtifactError(
                f"it was called with {len(args)} inputs and {', '.join(kwargs) or 'no names'}",
                layer="the ONNX model",
                remedy=f"Give its inputs: {', '.join(self.input_names)}",
            )
        for name, value in given:
            self._check_kind(name, value)
        env = self.after(self.steps, dict(given))
        device = _device(value for _, value in given)
        outputs = tuple(as_tensor(present(env, name), device) for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check_kind(self, name: str, value: Any) -> None:
        """Refuse floats where the file takes integers: a network of raw pixels would answer to images in
        [0, 1] as to black ones.
        """
        kind = self.input_dtypes.get(name, torch.float32)
        if kind.is_floating_point or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        given, wanted = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, kind))
        raise ArtifactError(
            f"it was given as {given}, and the ONNX file takes {wanted}",
            layer=name,
            remedy=f"Give the numbers that it was made for, as {wanted}: of images, raw pixels",
        )

    @property
    def steps(self) -> Sequence[Step]:
        """The nodes that run, in order."""
        return self._body.steps

    def after(self, steps: Sequence[Step], values: Mapping[str, Value]) -> Env:
        """All values by name once ``steps`` have run on what they read: part of the graph, or all of it.

        Args:
            steps: Some of `steps`, in their order.
            values: What they read and do not make, besides the weights.
        """
        env: Env = {"": None, **values}
        device = _device(values.values())
        known: dict[str, np.ndarray] = {}
        for name, stored in self._stored.items():
            env[name] = _get(self, stored.path) if stored.path else stored.array
            if stored.path and stored.array is not None:
                known[name] = stored.array
        for name in values:
            self._arrived(name, env)
        self._run(steps, env, device, known)
        return env

    def _run(
        self, steps: Sequence[Step], env: Env, device: torch.device, known: dict[str, np.ndarray]
    ) -> None:
        for step in steps:
            self._about_to_run(step, env)
            results = self._evaluate(step, env, device, known)
            for name, value in zip(step.outputs, results, strict=False):
                if name:
                    env[name] = value
                    self._arrived(name, env)

    def _about_to_run(self, step: Step, env: Env) -> None:
        """For subclasses: whatever has to be known before a step."""

    def _arrived(self, name: str, env: Env) -> None:
        """For subclasses: a value is there."""

    def _evaluate(
        self, step: Step, env: Env, device: torch.device, known: dict[str, np.ndarray]
    ) -> Sequence[Value]:
        def run_body(body: Body) -> list[Value]:
            scope = dict(env)
            self._run(body.steps, scope, device, known)
            return [present(scope, name) for name in body.outputs]

        node = Node(
            op=step.op,
            name=step.name,
            inputs=[env[name] for name in step.inputs],
            attributes=step.attributes,
            opset=step.opset,
            num_outputs=sum(1 for name in step.outputs if name),
            known=[known.get(name) for name in step.inputs],
            training=self.training,
            device=device,
            run_body=run_body,
        )
        try:
            return _result(node)
        except PenjingError:
            raise
        except Exception as error:  # torch raises many kinds for operands it cannot take
            shapes = ", ".join("-" if v is None else str(tuple(v.shape)) for v in node.inputs)
            first = str(error).splitlines()[0] if str(error) else repr(error)
            raise node.error(f"{type(error).__name__}: {first} (inputs {shapes})") from error


def _is_constant(step: Step, body: Body) -> bool:
    """Whether a step reads constants alone, none of them a weight that trains."""
    names = [name for name in step.inputs if name]
    if not all(name in body.constants for name in names) or not (names or step.op == "Constant"):
        return False
    return step.op == "DequantizeLinear" or body.weights.isdisjoint(_floats(names, body))


def _floats(names: Iterable[str], body: Body) -> set[str]:
    """Those of the constants that could train: float arrays of more than one element."""
    return {
        name for name in names if body.constants[name].dtype.kind in "fV" and body.constants[name].size > 1
    }


def _result(node: Node) -> Sequence[Value]:
    arrays = [value for value in node.inputs if isinstance(value, np.ndarray)]
    if node.op in HOST and arrays and all(v is None or isinstance(v, np.ndarray) for v in node.inputs):
        result: Any = HOST[node.op](node, arrays)
        if result is not NotImplemented:
            return result if isinstance(result, list) else [np.asarray(result)]
    result = OPS[node.op](node)
    return result if isinstance(result, list) else [result]


def _device(values: Iterable[Value | None]) -> torch.device:
    return next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))


def present(env: Mapping[str, Value | None], name: str) -> Value:
    """The value of this name, which is there."""
    value = env[name]
    assert value is not None
    return value


def _get(module: nn.Module, path: str) -> Tensor:
    found: Tensor = reduce(getattr, path.split("."), module)  # type: ignore[assignment]
    return found


def _array(value: Value) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def _all_steps(body: Body) -> Iterable[Step]:
    yield from body.steps
    for inner in body.inner():
        yield from _all_steps(inner)


def _check_ops(body: Body) -> None:
    missing: dict[str, str] = {}
    for step in _all_steps(body):
        if not step.standard or step.op not in OPS:
            missing.setdefault(step.op if step.standard else f"{step.domain}.{step.op}", step.name)
    if missing:
        raise ArtifactError(
            f"no torch translation for ONNX {', '.join(sorted(missing))}",
            layer=", ".join(missing[name] for name in sorted(missing)),
            remedy="It can be quantized and exported as it is; to prune it, export it without these ops",
        )


def load_onnx(spec: str, options: Mapping[str, Any]) -> LoadedModel:
    """An ONNX file as a module, with example inputs of the shapes it declares.

    Args:
        spec: Path of the file.
        options: ``NAME`` fixes the input of that name to a value; ``NAME.shape`` gives the shape of its
            example, where the file leaves dimensions free (see `example_feeds` for what it is by default).

    Raises:
        ArtifactError: see `OnnxModel`.
    """
    shapes = {key.removesuffix(".shape"): v for key, v in options.items() if key.endswith(".shape")}
    model = OnnxModel(spec, {key: v for key, v in options.items() if not key.endswith(".shape")})
    proto = load_proto(Path(spec), weights=False)
    kinds = {info.name: info.type.tensor_type.elem_type for info in true_inputs(proto)}
    if not shapes.keys() <= set(model.input_names):
        raise ArtifactError(
            f"it has no input {', '.join(sorted(shapes.keys() - set(model.input_names)))!r}",
            layer=spec,
            remedy=f"Its inputs: {', '.join(model.input_names)}",
        )
    arrays = example_feeds(proto, shapes)
    examples = {name: _tensor(arrays[name], kinds[name]) for name in model.input_names}
    named = len(examples) > 1 and all(name.isidentifier() for name in examples)
    inputs: Any = examples if named else tuple(examples.values())
    return LoadedModel(
        model.eval(),
        inputs[0] if len(examples) == 1 else inputs,
        spec,
        "onnx",
        {"inputs": list(model.input_names), "outputs": list(model.output_names)},
        {name: shape for name, shape in assumed_shapes(proto, shapes).items() if name in examples},
    )


def _tensor(array: np.ndarray, kind: int) -> Tensor:
    """An example as a tensor of the ONNX element type ``kind``; bfloat16 is none of NumPy's own types."""
    dtype = DTYPES.get(kind, torch.float32)
    return torch.from_numpy(array.astype(np.float32) if dtype is torch.bfloat16 else array).to(dtype)
