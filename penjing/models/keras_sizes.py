"""A Keras model with other layer sizes: the config is edited to fit given weights, then built anew.

One row of `SIZES` per kind of layer says which entries of its config follow from the shapes of its weights;
layers of others have theirs found by number.
"""

from __future__ import annotations

import copy
import re
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
    _check_scale(config["name"], old, new)
    return {
        "num_heads": new["query/kernel"][-2],
        "value_dim": new["value/kernel"][-1],
        "output_shape": new["attention_output/kernel"][2:],
    }


def _grouped_attention(
    config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[str, Any]:
    _check_scale(config["name"], old, new)
    return {"num_query_heads": new["query/kernel"][-2], "num_key_value_heads": new["key/kernel"][-2]}


def _check_scale(name: str, old: Mapping[str, Shape], new: Mapping[str, Shape]) -> None:
    if new["query/kernel"][-1] != old["query/kernel"][-1]:
        raise PruneError(
            "it scales by 1/√(head size), which changes",
            layer=name,
            remedy="Name its query kernel in `ignore` so that it keeps its size",
        )


def _einsum(config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]) -> dict[str, Any]:
    operands, _, result = config["equation"].replace(" ", "").partition("->")
    sizes = dict(zip(operands.partition(",")[2], new["kernel"], strict=True))
    given = config["output_shape"]
    shape = [given] if isinstance(given, int) else given
    letters = result[len(result) - len(shape) :]
    return {
        "output_shape": [sizes.get(a, size) if size else size for a, size in zip(letters, shape, strict=True)]
    }


def _group_norm(
    config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[str, Any]:
    before, after = (next(iter(shapes.values()))[0] for shapes in (old, new))
    # -1 stands for as many as channels; otherwise whole groups went, each keeps its width
    return {"groups": max(config["groups"] * after // before, 1)} if config["groups"] > 0 else {}


def _reshape(config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]) -> dict[str, Any]:
    target = list(config["target_shape"])
    return {"target_shape": [*target[:-1], -1]} if target and -1 not in target else {}


def _by_number(
    config: Mapping[str, Any], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[str, Any]:
    """What a layer of someone's own says of its sizes: the numbers that its weights had and have no more.
    Whether that was right is seen from the shapes that come out."""
    became: dict[int, set[int]] = {}
    for name, shape in old.items():
        for before, after in zip(shape, new[name], strict=True):
            became.setdefault(before, set()).add(after)
    sure = {before: after.pop() for before, after in became.items() if len(after) == 1}
    return {key: sure[size] for key, size in config.items() if type(size) is int and size in sure}


SIZES: dict[str, Edit] = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _conv),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        lambda config, old, new: {"filters": new["kernel"][-2]},
    ),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D"),
        lambda config, old, new: {
            "filters": new["pointwise_kernel"][-1],
            "depth_multiplier": new["depthwise_kernel"][-1],
        },
    ),
    **dict.fromkeys(
        ("DepthwiseConv1D", "DepthwiseConv2D"),
        lambda config, old, new: {"depth_multiplier": new["kernel"][-1]},
    ),
    **dict.fromkeys(
        ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
        lambda config, old, new: {"filters": new["recurrent_kernel"][-2]},
    ),
    "Dense": lambda config, old, new: {"units": new["kernel"][-1]},
    "EinsumDense": _einsum,
    "Embedding": lambda config, old, new: {"output_dim": new["embeddings"][-1]},
    **dict.fromkeys(
        ("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell"),
        lambda config, old, new: {"units": new["recurrent_kernel"][0]},
    ),
    "GroupNormalization": _group_norm,
    "MultiHeadAttention": _attention,
    "GroupedQueryAttention": _grouped_attention,
    "Reshape": _reshape,
}

PARTS = {"layer": ("forward_layer", "layer"), "backward_layer": ("backward_layer",), "cell": ("cell",)}
"""Entries of a config that hold another layer's config → attributes, the first of which is that layer."""


def resized(model: Any, shapes: Sequence[Shape]) -> Any:
    """A Keras model of the same architecture whose variables have ``shapes``, in the order of
    ``model.variables``.

    Raises:
        PruneError: when a layer's config cannot express its new size, naming the layer.
    """
    by_variable = {
        id(variable): tuple(shape) for variable, shape in zip(model.variables, shapes, strict=True)
    }
    try:
        made = _remade(model, by_variable, [tensor.shape for tensor in model.inputs])
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


def _remade(model: Any, shapes: Mapping[int, Shape], inputs: Sequence[Sequence[int | None]]) -> Any:
    """A model of new layers on inputs of the given shapes; models in it follow what they are given."""
    import keras

    made: dict[int, Any] = {}  # a layer that is called twice stays one layer

    def remake(layer: Any, given: Sequence[Any]) -> Any:
        if id(layer) not in made:
            made[id(layer)] = (
                _remade(layer, shapes, [tensor.shape for tensor in given])
                if isinstance(layer, keras.Model)
                else type(layer).from_config(_config(layer, shapes))
            )
        return made[id(layer)]

    fresh = [
        keras.Input(
            # what the file leaves free stays free
            batch_shape=[old and size for old, size in zip(tensor.shape, shape, strict=True)],
            dtype=tensor.dtype,
            name=tensor.name,
        )
        for tensor, shape in zip(model.inputs, inputs, strict=True)
    ]
    if isinstance(model, keras.Sequential):
        net, ends = keras.Sequential(fresh, name=model.name), fresh
        for layer in model.layers:
            net.add(remake(layer, ends))
            ends = net.outputs
        return net

    def follow(layer: Any) -> Any:
        return lambda *args, **kwargs: remake(layer, keras.tree.flatten(args))(*args, **kwargs)

    outputs = model._run_through_graph(fresh, operation_fn=follow)
    struct = keras.tree.pack_sequence_as(model._inputs_struct, fresh)
    return keras.Model(struct, outputs, name=model.name)


def _config(layer: Any, shapes: Mapping[int, Shape]) -> dict[str, Any]:
    """The config of a layer with its new sizes, and those of the layers in it."""
    config: dict[str, Any] = copy.deepcopy(layer.get_config())
    for entry, attributes in PARTS.items():
        if isinstance(config.get(entry), dict):
            part = next(getattr(layer, name) for name in attributes if hasattr(layer, name))
            config[entry] = _entry(config[entry], part, shapes)
    if isinstance(config.get("cells"), list):
        pairs = zip(config["cells"], layer.cells, strict=True)
        config["cells"] = [_entry(entry, cell, shapes) for entry, cell in pairs]
    own = not type(layer).__module__.startswith("keras.src.layers.")
    edit = SIZES.get(type(layer).__name__, _by_number if own else None)
    if edit is not None and hasattr(layer, "variables"):  # keras.ops.reshape has the name of a layer, too
        old = {_local(layer, variable): tuple(variable.shape) for variable in layer.variables}
        new = {_local(layer, variable): shapes[id(variable)] for variable in layer.variables}
        if old != new or type(layer).__name__ == "Reshape":
            config.update(edit(config, old, new))
    return config


def _entry(entry: Mapping[str, Any], layer: Any, shapes: Mapping[int, Shape]) -> dict[str, Any]:
    """A serialized layer with its new sizes; how it was built goes, as it holds the old input shapes."""
    kept = {key: value for key, value in entry.items() if key != "build_config"}
    return {**kept, "config": _config(layer, shapes)}


def _local(layer: Any, variable: Any) -> str:
    """Path of a variable below its layer, e.g. ``"kernel"`` or ``"query/kernel"``."""
    _, _, rest = str(variable.path).rpartition(f"{layer.name}/")
    return re.sub(r"^\w+_cell/", "", rest or str(variable.name))
