"""A network that trains as its int8 file will compute: the graph the file is made from, rounding included.

Batch norms are folded (their statistics are frozen), every 8-bit tensor is rounded where the file rounds it,
and the steps are trained with the weights (`penjing.quantize.fake`). Training starts from what post-training
quantization found, so the untrained student is the post-training file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.errors import QuantizeError
from penjing.events import Listener, silent
from penjing.files import temporary
from penjing.models.onnx_door import Env, OnnxModel, present
from penjing.models.onnx_ops import as_tensor
from penjing.models.onnx_read import Step
from penjing.quantize.apart import matrix_names
from penjing.quantize.config import QuantizeConfig
from penjing.quantize.encode import EncodedLayer, guard_of, lone_channels
from penjing.quantize.fake import fake_activation, fake_bias, fake_weight
from penjing.quantize.feeds import rereadable
from penjing.quantize.fold import set_bias
from penjing.quantize.graph import name_of, set_initializer, upper_bound, weight_axis
from penjing.quantize.job import Job
from penjing.quantize.place import Placement
from penjing.quantize.scheme import LEVELS, ActivationParams, weight_top
from penjing.quantize.source import as_onnx
from penjing.quantize.weights import Guard

_ROUNDED = " (8-bit)"
_LEAST_SHARE = 1 / 16
"""Of its start, the least that a step may become: at zero a tensor is lost, and below it turned over."""


@dataclass(frozen=True)
class LayerFrame:
    """What stays fixed of an int8 layer: its weight's name, output axis and guard, the channels that the
    guard counts behind its own, and its first steps."""

    weight: str
    axis: int
    guard: Guard
    lone: int
    steps_O: NDArray[np.float32]


@dataclass(frozen=True)
class MatrixFrame:
    """What stays fixed of a matrix of a layer that stands apart (`penjing.quantize.apart`): its guard, and
    its first steps, one a row."""

    guard: Guard
    steps_N: NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """What stays fixed while a student trains. Copies of a student share it.

    Attributes:
        model: The prepared fp32 graph that the student started from.
        placement: What is 8-bit.
        params: Scale and zero point of each 8-bit tensor at the start.
        tops: Where 8 bits stand in for a Clip, its upper bound, which the largest level may not exceed.
        layers: The int8 layers, by output name.
        apart: Names of the matrices of each layer that stands apart, by output name.
        matrices: Those matrices, by name.
        config: How it was quantized.
    """

    model: ir.Model
    placement: Placement
    params: Mapping[str, ActivationParams]
    tops: Mapping[str, float]
    layers: Mapping[str, LayerFrame]
    apart: Mapping[str, tuple[str, ...]]
    matrices: Mapping[str, MatrixFrame]
    config: QuantizeConfig

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class QuantizedStudent(OnnxModel):
    """See the module's text. Make one with `quantized_student`; give it to `penjing.recover` and then to
    `penjing.quantize`, which writes the file.

    Args:
        path: The prepared fp32 graph as an ONNX file.
        frame: What stays fixed.
        encoded: The layers as post-training quantization encoded them.
    """

    def __init__(self, path: Path, frame: Frame, encoded: Mapping[str, EncodedLayer]) -> None:
        super().__init__(path)
        self.frame = frame
        self._roots = {name: i for i, name in enumerate(frame.params)}
        self._layers = {out: i for i, out in enumerate(frame.layers)}
        self.activation_steps = nn.ParameterList(
            nn.Parameter(torch.tensor(p.scale, dtype=torch.float32)) for p in frame.params.values()
        )
        self.weight_steps = nn.ParameterList(
            nn.Parameter(torch.from_numpy(encoded[out].weight.scale_O.copy())) for out in frame.layers
        )
        self._matrices = {name: i for i, name in enumerate(frame.matrices)}
        self.matrix_steps = nn.ParameterList(
            nn.Parameter(torch.from_numpy(matrix.steps_N.copy())) for matrix in frame.matrices.values()
        )
        self._start_from(encoded)
        placement = frame.placement
        self._body.steps = [
            replace(step, inputs=tuple(self._seen_by(step, name) for name in step.inputs))
            if step.outputs[0] in placement.nodes or step.outputs[0] in frame.apart
            else step
            for step in self._body.steps
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As for `OnnxModel`.

        Raises:
            QuantizeError: where it is traced: what rounds has no axes that could be solved.
        """
        if torch.compiler.is_exporting():
            raise QuantizeError(
                "a network that trains in int8 cannot be traced, as pruning and regularizers of slots do",
                layer=type(self).__name__,
                remedy="Prune or regularize before quantizing ('keep_zeros' alone works afterwards); "
                "penjing.quantize writes its file",
            )
        return super().forward(*args, **kwargs)

    @torch.no_grad()
    def _start_from(self, encoded: Mapping[str, EncodedLayer]) -> None:
        """Weights begin at the levels that calibration rounded them to, biases at their corrected values."""
        steps = {step.outputs[0]: step for step in self._body.steps}
        for out, layer in encoded.items():
            inputs = steps[out].inputs
            self._held(inputs[1]).copy_(torch.from_numpy(layer.weight.dequantized()))
            if layer.bias_O is not None and len(inputs) > 2:
                self._held(inputs[2]).copy_(torch.from_numpy(layer.bias_O * layer.bias_scale_O))

    def _held(self, name: str) -> nn.Parameter:
        path = self._stored[name].path
        assert path is not None
        return self.get_parameter(path)

    def _seen_by(self, step: Step, name: str) -> str:
        """An int8 node reads the rounded value where others may read the exact one."""
        placement = self.frame.placement
        if (matrices := self.frame.apart.get(step.outputs[0])) is not None:
            return name + _ROUNDED if name in matrices else name
        layer = self.frame.layers.get(step.outputs[0])
        if layer is not None and name in {layer.weight, self._bias(step)}:
            return name + _ROUNDED
        own = placement.roots.get(name) == name and name not in placement.emitted
        return name + _ROUNDED if own else name

    def _bias(self, step: Step) -> str:
        """The name of the bias that the file holds in 32 bits, or ""."""
        name = step.inputs[2].removesuffix(_ROUNDED) if len(step.inputs) > 2 else ""
        return name if name in self._stored else ""

    def layer_parameters(self, out: str) -> tuple[nn.Parameter, nn.Parameter | None, nn.Parameter]:
        """Weight, bias and weight steps of the int8 layer with this output."""
        step = next(step for step in self.steps if step.outputs[0] == out)
        bias = self._stored.get(self._bias(step))
        return (
            self._held(self.frame.layers[out].weight),
            None if bias is None or bias.path is None else self.get_parameter(bias.path),
            self.weight_steps[self._layers[out]],
        )

    @property
    def scale_parameters(self) -> list[nn.Parameter]:
        """All steps: how far one may go at once is a share of its own size (`penjing.recover.optim`)."""
        return [*self.activation_steps, *self.weight_steps, *self.matrix_steps]

    def rounded_tensors(self, names: Set[str]) -> dict[str, nn.Parameter]:
        """The steps of those tensors among ``names`` that are rounded to 8 bits."""
        return {name: self.activation_steps[i] for name, i in self._roots.items() if name in names}

    def _activation_step(self, name: str) -> nn.Parameter:
        """The step of an 8-bit tensor, brought back to where it is of use if training led it out.

        It is the parameter that is moved: a clamp inside the function would leave it without a gradient.
        """
        step: nn.Parameter = self.activation_steps[self._roots[name]]
        start = self.frame.params[name].scale
        step.data.clamp_(_LEAST_SHARE * start, self.frame.tops.get(name, float("inf")) / LEVELS)
        return step

    def _weight_steps(self, out: str) -> nn.Parameter:
        """The steps of a layer's weight, likewise."""
        return _kept_from_zero(self.weight_steps[self._layers[out]], self.frame.layers[out].steps_O)

    def _matrix_steps(self, name: str) -> nn.Parameter:
        """The steps of a matrix of a layer that stands apart, likewise."""
        return _kept_from_zero(self.matrix_steps[self._matrices[name]], self.frame.matrices[name].steps_N)

    def _about_to_run(self, step: Step, env: Env) -> None:
        """Store weight and bias of an int8 layer as its file does."""
        out = step.outputs[0]
        top = weight_top(self.frame.config.weight_bits)
        for name in self.frame.apart.get(out, ()):
            matrix, steps_N = as_tensor(present(env, name)), self._matrix_steps(name)
            rows_NK = matrix.reshape(-1, matrix.shape[-1])
            rounded_NK = fake_weight(rows_NK, steps_N, 0, self.frame.matrices[name].guard, top)
            env[name + _ROUNDED] = rounded_NK.reshape(matrix.shape)
        layer = self.frame.layers.get(out)
        if layer is None:
            return
        w, steps_O = as_tensor(present(env, layer.weight)), self._weight_steps(out)
        env[layer.weight + _ROUNDED] = fake_weight(w, steps_O, layer.axis, layer.guard, top, layer.lone)
        if bias := self._bias(step):
            root = self.frame.placement.roots[step.inputs[0].removesuffix(_ROUNDED)]
            bias_O = as_tensor(present(env, bias))
            env[bias + _ROUNDED] = fake_bias(bias_O, self._activation_step(root), steps_O)

    def _arrived(self, name: str, env: Env) -> None:
        """Store a tensor of 8 bits where the graph makes one."""
        placement = self.frame.placement
        if placement.roots.get(name) != name:
            return
        step = self._activation_step(name)
        zero = self.frame.params[name].zero_point
        rounded = fake_activation(as_tensor(present(env, name)), step, zero)
        env[name if name in placement.emitted else name + _ROUNDED] = rounded

    # --------------------------------------------------------------------------------------------- to a file

    def learned_params(self) -> dict[str, ActivationParams]:
        """Scale and zero point of each 8-bit tensor now."""
        return {
            name: ActivationParams(float(self._activation_step(name).detach()), start.zero_point)
            for name, start in self.frame.params.items()
        }

    def learned_scales(self) -> dict[str, NDArray[np.float32]]:
        """Steps of each layer's weight now, by output name."""
        return {out: _numpy(self._weight_steps(out)) for out in self._layers}

    def learned_matrices(self) -> dict[str, NDArray[np.float32]]:
        """Steps now of the weights of layers that stand apart, by their own names."""
        return {name: _numpy(self._matrix_steps(name)) for name in self._matrices}

    def learned_model(self) -> ir.Model:
        """The prepared graph with the weights and statistics as they are now, in float."""
        model, tensors = self.frame.model.clone(), self.state_dict()
        for name, stored in self._stored.items():
            if stored.path is not None and stored.array is None:
                set_initializer(model.graph, name, _numpy(tensors[stored.path]))
        return model


def quantized_student(
    model: nn.Module | Path | str,
    data: Iterable[Any],
    config: QuantizeConfig | Mapping[str, Any] | None = None,
    *,
    example_inputs: Any = None,
    seed: int = 0,
    listen: Listener = silent,
) -> QuantizedStudent:
    """The network as a module that rounds as its int8 file will, for quantization-aware training.

    ::

        student = quantized_student(model, calibration)
        trained = penjing.recover(student, model, train_data, RecoverConfig(epochs=1, lr=1e-3, ...))
        penjing.quantize(trained.model, calibration, out="model.int8.onnx")

    Args:
        model: A module or an fp32 ONNX file. Weights and biases of a module that do not train (while others
            do) do not train here; their steps do.
        data: Calibration batches, as for `penjing.quantize`.
        config: As for `penjing.quantize`.
        example_inputs: As for `penjing.quantize`.
        seed: As for `penjing.quantize`.
        listen: Hears progress.

    Raises:
        QuantizeError: As for `penjing.quantize`, and for modes other than static.
    """
    config = QuantizeConfig.of(config)
    if config.mode != "static":
        raise QuantizeError(
            f"mode {config.mode!r} rounds no activations, which a student trains with",
            remedy="Use mode 'static'",
        )
    with temporary() as folder:
        data = rereadable(data, config.samples)
        source = as_onnx(model, data, example_inputs, folder, config.dynamic_axes)
        job = Job(source, data, config, seed, listen)
        job.calibrate()
        student = student_of(job, folder / "prepared.onnx")
    if isinstance(model, nn.Module):
        _keep_frozen(student, model)
    return student


def _keep_frozen(student: QuantizedStudent, model: nn.Module) -> None:
    """Let layers that do not train stay, unless none trains: such a network is only at hand.

    Biases go with their weights: a norm behind the layer became part of both.
    """
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if not any(trains.values()):
        return
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trains.get(name, True))
    for out in student.frame.layers:
        weight, bias, _ = student.layer_parameters(out)
        if bias is not None and not weight.requires_grad:
            bias.requires_grad_(False)


def student_of(job: Job, prepared: Path) -> QuantizedStudent:
    """The network of a calibrated job; ``prepared`` is where its fp32 graph is written."""
    encoded = job.encode(job.placement)
    layers = {}
    for out in job.placement.layers:
        node = job.nodes[out]
        weight = node.inputs[1]
        assert weight is not None
        if node.op_type != "MatMul" and encoded[out].bias_O is not None and len(node.inputs) < 3:
            bias = np.zeros(len(encoded[out].bias_scale_O), np.float32)
            set_bias(job.model.graph, node, bias)
        guard = guard_of(node, job.guard)
        layers[out] = LayerFrame(
            name_of(weight),
            weight_axis(node),
            guard,
            lone_channels(node, guard),
            encoded[out].weight.scale_O,
        )
    apart, matrices = {}, {}
    for out, found in job.encode_apart(job.placement).items():
        apart[out] = matrix_names(job.nodes[out])
        guard = "off" if job.nodes[out].op_type == "Gather" else job.guard
        for name, matrix in zip(apart[out], found, strict=True):
            matrices[name] = MatrixFrame(guard, matrix.numbers.scale_NB[:, 0])
    params = {root: job.params[root] for root in job.placement.observed}
    tops = {name: top for name in job.placement.clamps if (top := upper_bound(job.nodes[name])) is not None}
    frame = Frame(job.model, job.placement, params, tops, layers, apart, matrices, job.config)
    ir.save(job.model, prepared)
    return QuantizedStudent(prepared, frame, encoded).eval()


def taught_job(
    student: QuantizedStudent, data: Iterable[Any], seed: int, listen: Listener, folder: Path
) -> Job:
    """The job that writes a student: its ranges, steps and weights instead of those of calibration.

    Raises:
        QuantizeError: if training left a scale or weight that is not finite.
    """
    source = folder / "fp32.onnx"
    ir.save(student.frame.model, source)
    job = Job(source, data, student.frame.config, seed, listen)
    checked = [(name, value.isfinite()) for name, value in student.named_parameters()]
    checked += [(name, ~value.isnan()) for name, value in student.named_buffers()]  # masks hold infinities
    for name, sound in checked:
        if not bool(sound.all()):
            raise QuantizeError(
                "training left values that are not finite", layer=name, remedy="Train with a lower lr"
            )
    job.trained = True
    job.notes.append("weights and steps were learned (quantization-aware training)")
    teach(job, student)
    return job


def teach(job: Job, student: QuantizedStudent) -> None:
    """Give a job what its student learned."""
    job.teach(
        student.learned_model(),
        student.frame.placement,
        student.learned_params(),
        student.learned_scales(),
        student.learned_matrices(),
    )


def _kept_from_zero(steps: nn.Parameter, start: NDArray[np.float32]) -> nn.Parameter:
    """Steps of a weight, brought back to where they are of use if training led them out."""
    steps.data.clamp_(min=torch.from_numpy(_LEAST_SHARE * start).to(steps.device))
    return steps


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
