"""Keras 3 models as torch modules and back: ``.keras`` in, pruned and trained as any module, ``.keras`` out.

Inputs stay as in the file, channels last. The weights are ordinary parameters of the torch module; the Keras
model serves as a stateless function of them. When pruning changes their sizes, the Keras model is rebuilt to
fit.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from penjing.archives import check_unpacks
from penjing.errors import ArtifactError
from penjing.files import atomic_write
from penjing.models.keras_sizes import resized
from penjing.models.spec import LoadedModel

_FREE_SIZE = 32


def import_keras() -> Any:
    """The ``keras`` package on its torch backend.

    Raises:
        ArtifactError: when Keras is missing, or already runs on another backend here.
    """
    if "keras" not in sys.modules:
        from penjing.export.coexist import entering_tensorflow

        before = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "torch"
        try:
            with entering_tensorflow():  # Keras imports it on any backend, where it is installed
                import keras
        except ImportError as error:
            raise ArtifactError("Keras is not installed", remedy="pip install penjing[keras]") from error
        finally:
            if before is None:
                del os.environ["KERAS_BACKEND"]
            else:
                os.environ["KERAS_BACKEND"] = before
    keras = sys.modules["keras"]
    if keras.backend.backend() != "torch":
        raise ArtifactError(
            f"Keras already runs on the {keras.backend.backend()} backend in this process",
            layer="keras",
            remedy="Set KERAS_BACKEND=torch before Keras (or TensorFlow) is imported, or use a new process",
        )
    return keras


class _Held:
    """A Keras model, whose own parameters are not to be registered, and which a pass may have to rebuild.

    What a forward keeps in attributes of its module is forgotten afterwards; what it keeps in here is not.
    """

    def __init__(self, net: Any) -> None:
        self.net = net


class KerasModule(nn.Module):
    """A Keras model as a torch module that owns the weights.

    ``train()`` and ``eval()`` set Keras's ``training`` argument; moving statistics are buffers that training
    updates.

    Args:
        net: A built functional or Sequential Keras model on the torch backend. It is not changed.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self._held = _Held(net)
        self._names: list[str | None] = []
        for variable in net.variables:
            value = variable.value
            if not value.dtype.is_floating_point:  # seeds of dropout layers: Keras keeps them
                self._names.append(None)
                continue
            name = self._attach(variable, value.detach().clone())
            self._names.append(name)
        self.eval()

    def _attach(self, variable: Any, value: Tensor) -> str:
        *path, last = [re.sub(r"\W", "_", part) for part in str(variable.path).split("/")]
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if variable.trainable:
            module.register_parameter(last, nn.Parameter(value))
        elif last in ("moving_mean", "moving_variance", "mean", "variance", "count"):
            module.register_buffer(last, value)
        else:
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
        return ".".join([*path, last])

    @property
    def net(self) -> Any:
        """The Keras model, rebuilt if the weights changed their sizes; its own weights are out of date."""
        net = self._held.net
        shapes = [
            tuple(variable.shape if name is None else self._tensor(name).shape)
            for variable, name in zip(net.variables, self._names, strict=True)
        ]
        if any(tuple(v.shape) != shape for v, shape in zip(net.variables, shapes, strict=True)):
            self._held.net = self._filled(resized(net, shapes))
        return self._held.net

    def _filled(self, made: Any) -> Any:
        """``made`` with the present weights; seeds and the like come from the Keras model."""
        for variable, source, name in zip(made.variables, self._held.net.variables, self._names, strict=True):
            variable.assign(source.value if name is None else self._tensor(name).detach())
        for layer in made._flatten_layers():
            if type(layer).__name__ == "Normalization":  # it computes with copies of its variables
                layer.finalize_state()
        return made

    def _tensor(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        value: Tensor = getattr(self.get_submodule(path), last)
        return value

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Any:
        """Run the network on its input, or on the list of its inputs, channels last as in the file."""
        import keras

        net = self.net
        mapping = [
            (variable, self._tensor(name))
            for variable, name in zip(net.variables, self._names, strict=True)
            if name is not None
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            output = net(inputs if isinstance(inputs, Tensor) else list(inputs), training=self.training)
        if self.training:
            with torch.no_grad():
                for variable, tensor in mapping:
                    updated = scope.get_current_value(variable)
                    if updated is not tensor and updated is not None:
                        tensor.copy_(updated)
        return output

    def to_keras(self) -> Any:
        """A Keras model of its own with the present sizes and weights; its file loads on any backend."""
        net = self.net
        made = type(net).from_config(net.get_config())
        if not made.built:
            made.build(net.input_shape)
        return self._filled(made)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The Keras model is only a function of the weights: copies share it until one changes its sizes.
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        memo[id(self)] = twin
        twin._held, twin._names = _Held(self._held.net), list(self._names)
        for name, child in self._modules.items():
            twin.add_module(name, copy.deepcopy(child, memo))
        for name, parameter in self._parameters.items():
            twin.register_parameter(name, copy.deepcopy(parameter, memo))
        for name, buffer in self._buffers.items():
            twin.register_buffer(name, copy.deepcopy(buffer, memo))
        twin.training = self.training
        return twin


def load_keras(path: Path | str) -> LoadedModel:
    """Read a ``.keras`` file of Keras 3 on the torch backend; no code stored in it is run.

    Raises:
        ArtifactError: missing or damaged file, a Lambda or custom layer, or Keras on another backend.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist", layer=path.name, remedy="Give an existing .keras file")
    if not zipfile.is_zipfile(path):
        raise ArtifactError(
            f"{path} is not a Keras 3 file",
            layer=path.name,
            remedy="Save it with model.save('model.keras') in Keras 3",
        )
    check_unpacks(path, ArtifactError)
    keras = import_keras()
    try:
        net = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file raises errors of zlib, zipfile and h5py besides
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"Keras cannot load {path} ({said})",
            layer=path.name,
            remedy="Check that the file is whole, and use built-in layers only: Lambda and unregistered "
            "custom layers would need their code",
        ) from error
    return from_keras(net, str(path))


def from_keras(net: Any, source: str = "keras") -> LoadedModel:
    """A built Keras model (functional or Sequential, torch backend) as a torch module with example inputs."""
    import_keras()
    if not hasattr(net, "layers") or not net.built or not getattr(net, "inputs", None):
        raise ArtifactError(
            f"{type(net).__name__} is not a functional or Sequential model with known inputs",
            layer=source,
            remedy="Build it from keras.Input",
        )
    generator = torch.Generator().manual_seed(0)
    examples = [
        torch.randn([2, *(size or _FREE_SIZE for size in tensor.shape[1:])], generator=generator)
        for tensor in net.inputs
    ]
    info: Mapping[str, Any] = {"layout": "NHWC", "name": net.name}
    return LoadedModel(
        KerasModule(net), examples[0] if len(examples) == 1 else (examples,), source, "keras", info
    )


def save_keras(module: KerasModule, path: Path | str) -> Path:
    """Write the network as a native ``.keras`` file with its present sizes and weights."""
    path = Path(path)
    with atomic_write(path) as aside:
        written = aside.with_name(aside.name + ".keras")  # Keras insists on its suffix
        try:
            module.to_keras().save(written)
            os.replace(written, aside)
        finally:
            written.unlink(missing_ok=True)
    return path
