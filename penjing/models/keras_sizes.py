"""A Keras model with other layer sizes: the config is edited to fit given weights, then built anew.

One row of `SIZES` per kind of layer says which entries of its config follow from the shapes of its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penjing.errors import PruneError

Shape = tuple[int, ...]
Edit = Callable[[Mapping[str, Any], Mapping[str, Shape], Mapping[str, Shape]], dict[str, Any]]
"""(config, old shapes by variable name, new shapes) → the entries that change."""


def _conv(config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]) -> dict[str, Any]:
    groups = config.get("groups", 1)
    if groups > 1 and old["kernel"][-2] == new["kernel"][-2]:  # whole groups went, each keeps its width
        groups = groups * new["kernel"][-1] // old["kernel"][-1]
    return {"filters": new["kernel"][-1], "groups": groups}


def _attention(
    config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[str, Any]:
    heads, key_dim = new["query/kernel"][-2:]
    return {"num_heads": heads, "key_dim": key_dim, "value_dim": new["value/kernel"][-1]}


def _reshape(config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]) -> dict[str, Any]:
    target = list(config["target_shape"])
    return {"target_shape": [*target[:-1], -1]} if target and -1 not in target else {}


SIZES: dict[str, Edit] = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _conv),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        lambda config, old, new: {"filters": new["kernel"][-2]},
    ),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D"),
        lambda config, old, new: {"filters": new["pointwise_kernel"][-1]},
    ),
    "Dense": lambda config, old, new: {"units": new["kernel"][-1]},
    "Embedding": lambda config, old, new: {"output_dim": new["embeddings"][-1]},
    **dict.fromkeys(
        ("LSTM", "GRU", "SimpleRNN"), lambda config, old, new: {"units": new["recurrent_kernel"][0]}
    ),
    "MultiHeadAttention": _attention,
    "Reshape": _reshape,
}


def resized(model: Any, shapes: Sequence[Shape]) -> Any:
    """A Keras model of the same architecture whose variables have ``shapes``, in the order of
    ``model.variables``.

    Raises:
        PruneError: when a layer's config cannot express its new size, naming the layer.
    """
    by_variable = {
        id(variable): tuple(shape) for variable, shape in zip(model.variables, shapes, strict=True)
    }
    config = copy.deepcopy(model.get_config())
    _edit(model, config, by_variable)
    try:
        made = type(model).from_config(config)
        if not made.built:
            made.build(model.input_shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PruneError(
            f"Keras cannot build {model.name!r} with the new sizes ({str(error).splitlines()[0]})",
            layer=model.name,
            remedy="Name the layer in `ignore` so that it keeps its size",
        ) from error
    for variable, other, shape in zip(model.variables, made.variables, shapes, strict=True):
        if tuple(other.shape) != tuple(shape):
            raise PruneError(
                f"its config gives {list(other.shape)} where the pruned weights are {list(shape)}",
                layer=variable.path,
                remedy="Name this layer in `ignore` so that it keeps its size",
            )
    return made


def _edit(model: Any, config: dict[str, Any], shapes: Mapping[int, Shape]) -> None:
    layers = {layer.name: layer for layer in model.layers}
    for entry in config["layers"]:
        entry.pop(
            "build_config", None
        )  # holds the old input shapes; Keras builds the layer when it is called
        inner = entry["config"]
        layer = layers.get(inner.get("name"))
        if layer is None:  # input layers of a Sequential
            continue
        if "layers" in inner:
            _edit(layer, inner, shapes)
            continue
        edit = SIZES.get(entry["class_name"])
        if edit is not None:
            old = {_local(layer, variable): tuple(variable.shape) for variable in layer.variables}
            new = {_local(layer, variable): shapes[id(variable)] for variable in layer.variables}
            if old != new or entry["class_name"] == "Reshape":
                inner.update(edit(inner, old, new))


def _local(layer: Any, variable: Any) -> str:
    """Path of a variable below its layer, e.g. ``"kernel"`` or ``"query/kernel"``."""
    _, _, rest = str(variable.path).rpartition(f"{layer.name}/")
    return (
        (rest or str(variable.name))
        .removeprefix("lstm_cell/")
        .removeprefix("gru_cell/")
        .removeprefix("simple_rnn_cell/")
    )
