"""The quantized weights in a file of their own: safetensors, with what each tensor means in the header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from penjing.errors import QuantizeError
from penjing.files import atomic_write
from penjing.quantize.apart import DERIVED
from penjing.quantize.emit import PARAMETER, STORES
from penjing.quantize.encode import EncodedLayer
from penjing.quantize.graph import constant, name_of
from penjing.quantize.linears import LinearWeight
from penjing.quantize.place import Placement

FORMAT = 1
"""Version of the header."""

_KEY = "penjing.quantize"


def refuse_overwriting(out: Path, source: Any) -> None:
    """See that neither ``out`` nor the weights beside it take the place of a file of the user's.

    Args:
        out: The ONNX file to be written.
        source: The network: a path or a module.

    Raises:
        QuantizeError: if ``out`` is the source or no name for an ONNX file, or one of the two would replace a
            file that quantization did not write.
    """
    weights = out.with_suffix(".safetensors")
    if out == weights:
        raise QuantizeError("the weights beside it take this name", layer=str(out), remedy="Name it .onnx")
    if folder := next((path for path in (out, weights) if path.is_dir()), None):
        raise QuantizeError("a folder has this name", layer=str(folder), remedy="Choose another out")
    if isinstance(source, (str, Path)) and out.resolve() == Path(source).resolve():
        raise QuantizeError(
            "the int8 file would replace its source", layer=str(out), remedy="Choose another out"
        )
    if out.exists() and not weights.exists() and _is_float(out):  # such as what a module was read from
        raise QuantizeError(
            "the int8 file would replace a float network, a file that quantize did not write",
            layer=str(out),
            remedy="Choose another out, such as model.int8.onnx",
        )
    if weights.exists() and not _is_quantized(weights):
        raise QuantizeError(
            "the int8 weights would replace a file that quantize did not write",
            layer=str(weights),
            remedy="Choose another out, such as model.int8.onnx",
        )


def _is_float(path: Path) -> bool:
    """Whether it is an ONNX file without an 8-bit op (one left by an interruption has some)."""
    try:
        nodes = ir.load(path).graph.all_nodes()
    except Exception:  # what is unreadable is no network; readers share no base class of errors
        return False
    return not any(word in node.op_type for node in nodes for word in ("Quantize", "Integer", "NBits"))


def _is_quantized(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def save_quantized(
    path: Path,
    model: ir.Model,
    placement: Placement,
    encoded: Mapping[str, EncodedLayer],
    apart: Iterable[tuple[str, str, LinearWeight]] = (),
) -> Path:
    """Write every constant of the quantized graph: ``NAME``, ``NAME.scale``, ``NAME.zero_point``.

    Constants that stayed in float are in the file as they are. An activation tensor's scale and zero point
    are ``activation:NAME.scale`` and ``activation:NAME.zero_point``; a constant of the network's own that has
    one of these names gets an underscore. The header (key ``penjing.quantize``,
    JSON) lists ``scheme`` and ``layers``: op, weight, bias, axis, input tensor, the tensor whose scale that
    has.

    Args:
        path: The file; replaced atomically.
        model: The graph that `emit` gave.
        placement: What became 8-bit.
        encoded: Numbers of each layer.
        apart: Weight name, layer name and numbers of each weight of the layers that read and give floats.
    """
    own = {value.meta[PARAMETER] for value in model.graph.initializers.values() if PARAMETER in value.meta}
    tensors: dict[str, NDArray[Any]] = {}
    for name, value in model.graph.initializers.items():
        array = constant(value)
        if array is not None and DERIVED not in value.meta:
            key = value.meta.get(PARAMETER) or (f"{name}_" if name in own else name)
            tensors[key] = np.ascontiguousarray(array)
    header = {
        "format": FORMAT,
        "scheme": {
            "activations": "uint8 asymmetric per tensor",
            "weights": "int8 symmetric per output channel",
            "biases": "int32, scale = input scale × weight scale",
        },
        "layers": _layers(model.graph, placement, encoded) + _add_linears(tensors, apart),
    }
    with atomic_write(path) as aside:
        save_file(tensors, aside, metadata={_KEY: json.dumps(header, ensure_ascii=False)})
    return path


def save_linears(
    path: Path, model: ir.Model, encoded: Iterable[tuple[str, str, LinearWeight]], scheme: str
) -> Path:
    """Write linear weights of few bits: int8 levels ``NAME`` (outputs by inputs) and steps ``NAME.scale``
    (outputs by blocks), and everything else as it is.

    Args:
        path: The file; replaced atomically.
        model: The prepared fp32 graph.
        encoded: Weight name, layer name and numbers of each layer.
        scheme: What was done, for the header.
    """
    tensors = {name: constant(value) for name, value in model.graph.initializers.items()}
    kept = {name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}
    header = {"format": FORMAT, "scheme": {"weights": scheme}, "layers": _add_linears(kept, encoded)}
    with atomic_write(path) as aside:
        save_file(kept, aside, metadata={_KEY: json.dumps(header, ensure_ascii=False)})
    return path


def _add_linears(
    tensors: dict[str, NDArray[Any]], encoded: Iterable[tuple[str, str, LinearWeight]]
) -> list[dict[str, Any]]:
    """Put levels and steps in the place of weights; what the header says of them."""
    rows = []
    for weight, layer, numbers in encoded:
        if f"{weight}.scale" in tensors:
            tensors[f"{weight}.scale_"] = tensors[f"{weight}.scale"]
        tensors |= {weight: numbers.q_NK, f"{weight}.scale": numbers.scale_NB}
        rows.append({"name": layer, "weight": weight, "bias": None, "axis": 0, "block": numbers.block})
    return rows


def read_header(path: Path | str) -> dict[str, Any]:
    """The header of a quantized weights file.

    Raises:
        QuantizeError: if it is not such a file, or of a newer version.
    """
    return read_quantized(path)[0]


def load_quantized(path: Path | str) -> dict[str, NDArray[Any]]:
    """The weights a quantized weights file stands for: float32 where it holds int8 or int32, by weight name.

    Scales, zero points and activation entries are used, not returned.

    Raises:
        QuantizeError: if it is not such a file, or of a newer version.
    """
    header, tensors = read_quantized(path)
    return dequantize_all(header, tensors)


def dequantize_all(header: dict[str, Any], tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The float32 arrays that a file's tensors stand for, by name; scales and zero points are used up."""
    blocks = {layer["weight"]: layer["block"] for layer in header["layers"] if "block" in layer}
    axes = {
        layer[part]: layer["axis"] if part == "weight" else 0
        for layer in header["layers"]
        for part in ("weight", "bias")
        if layer[part] and "block" not in layer
    }
    out: dict[str, NDArray[Any]] = {}
    for name, array in tensors.items():
        if name in axes:
            shape = [1] * array.ndim
            shape[axes[name]] = -1
            zero = tensors[f"{name}.zero_point"].astype(np.int64).reshape(shape)
            levels = (array.astype(np.int64) - zero).astype(np.float32)
            out[name] = levels * tensors[f"{name}.scale"].reshape(shape)
        elif name in blocks:
            scale = np.repeat(tensors[f"{name}.scale"], blocks[name], axis=1)[:, : array.shape[1]]
            out[name] = array.astype(np.float32) * scale
        elif not name.startswith("activation:") and name.rpartition(".")[0] not in axes.keys() | blocks:
            out[name] = array
    return out


def read_quantized(path: Path | str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and tensors of a quantized weights file, as stored.

    Raises:
        QuantizeError: if it is not such a file, or of a newer version.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise QuantizeError(
            f"cannot read {path} ({error})", remedy="Give a file that quantize wrote"
        ) from error
    if _KEY not in metadata:
        raise QuantizeError(
            f"{path} is safetensors without quantization scales", remedy="Give the weights_path of a result"
        )
    header: dict[str, Any] = json.loads(metadata[_KEY])
    if header["format"] > FORMAT:
        raise QuantizeError(
            f"{path} has format {header['format']}, newer than {FORMAT}", remedy="Update penjing to read it"
        )
    return header, tensors


def _layers(
    graph: ir.Graph, placement: Placement, encoded: Mapping[str, EncodedLayer]
) -> list[dict[str, Any]]:
    rows = []
    for node in graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        maker = None if weight is None else weight.producer()
        if maker is None or maker.op_type != "DequantizeLinear" or node.op_type == "DequantizeLinear":
            continue
        stored = maker.inputs[0]
        if stored is None or not stored.is_initializer():
            continue
        rows.append(_layer(node, name_of(stored), int(maker.attributes["axis"].as_int())))
    names = list(placement.layers.values())
    if len(rows) != len(encoded):
        raise QuantizeError("the quantized graph lost a layer", remedy="Report this model")
    for row, name in zip(rows, names, strict=True):
        row["name"] = name
        row["scale_of"] = None if row["input"] is None else placement.roots[row["input"]]
    return rows


def _layer(node: ir.Node, weight: str, axis: int) -> dict[str, Any]:
    def stored(position: int) -> str | None:
        value = node.inputs[position] if len(node.inputs) > position else None
        maker = None if value is None else value.producer()
        source = None if maker is None or maker.op_type != "DequantizeLinear" else maker.inputs[0]
        return None if source is None else source.meta.get(STORES, name_of(source))

    return {"op": node.op_type, "weight": weight, "bias": stored(2), "axis": axis, "input": stored(0)}
