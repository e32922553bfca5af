"""Inputs that are whole numbers in disguise: images of 8 bits, normalised channel by channel.

A normalised image holds at most 256 values per channel, ``x = pitch · k + origin`` with a pitch of its own in
each channel. One scale and zero point for all channels cannot hit them, so that rounding the input costs what
no later layer can repair (EfficientNet-Lite0 on photographs: the input alone limits the output to 22 dB).
Written as ``k`` itself the input is stored without any error: the first convolution's weights take the pitch,
its bias the origin, and padding is done in float before, because zero is no longer the padded value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.feeds import Feeds
from penjing.quantize.fold import set_bias
from penjing.quantize.graph import (
    Names,
    bias_of,
    consumers,
    int_attribute,
    ints_attribute,
    is_float,
    name_of,
    set_initializer,
    weight_of,
)
from penjing.quantize.place import Placement
from penjing.quantize.scheme import LEVELS, ActivationParams

_SAMPLES, _FIT_SAMPLES = 32, 8
_LEAST_VALUES = 64
_OFF_GRID = 0.05
"""Largest distance from the grid, in pitches; what float32 preprocessing adds is a thousandth of it."""


@dataclass(frozen=True)
class Grid:
    """Where an input's values lie: ``x[:, c] = pitch_C[c] · k + origin_C[c]`` with k in 0..255."""

    pitch_C: NDArray[np.float64]
    origin_C: NDArray[np.float64]

    def holds_zero(self) -> bool:
        """Whether 0.0 lies among the levels, to half a one: what is padded with zeros is stored too."""
        zero_C = np.rint(-self.origin_C / self.pitch_C)
        return bool(((zero_C >= 0) & (zero_C <= LEVELS)).all())

    def plain(self) -> ActivationParams | None:
        """The scale and zero point that hit the grid with no change to the network, if there are such."""
        zero_C = -self.origin_C / self.pitch_C
        zero = float(np.rint(zero_C[0]))
        same = np.allclose(self.pitch_C, self.pitch_C[0], rtol=1e-5, atol=0)
        if same and np.abs(zero_C - zero).max() < 1e-2 and 0 <= zero <= LEVELS:
            return ActivationParams(float(np.float32(self.pitch_C[0])), int(zero))
        return None


def align_inputs(graph: ir.Graph, placement: Placement, feeds: Feeds) -> dict[str, ActivationParams]:
    """Store image inputs on their own grid; gives the parameters of the 8-bit tensors that this settles.

    An input is changed where calibration data lies on a grid of at most 256 steps in every channel and one
    int8 convolution alone reads it, whose padding is on the grid too. The function stays the same.

    Args:
        graph: A prepared graph; changed in place.
        placement: What will be 8-bit.
        feeds: Calibration data; 32 samples are read.
    """
    found: dict[str, ActivationParams] = {}
    for value in list(graph.inputs):
        readers = consumers(value)
        if not is_float(value) or len(readers) != 1 or not _takes_a_grid(readers[0], value, placement):
            continue
        grid = find_grid(feeds, name_of(value))
        if grid is None or (any(_pads(readers[0])) and not grid.holds_zero()):
            continue
        plain = grid.plain()
        if plain is not None:
            found[name_of(value)] = plain
        else:
            found[_insert(graph, value, readers[0], grid)] = ActivationParams(1.0, 0)
    return found


def _takes_a_grid(node: ir.Node, value: ir.Value, placement: Placement) -> bool:
    return (
        node.op_type == "Conv"
        and node.inputs[0] is value
        and name_of(node.outputs[0]) in placement.layers
        and int_attribute(node, "group", 1) == 1
        and "auto_pad" not in node.attributes
        and placement.roots.get(name_of(value)) == value.name
    )


def _pads(conv: ir.Node) -> list[int]:
    return ints_attribute(conv, "pads", [0] * 2 * (weight_of(conv).ndim - 2))


def find_grid(feeds: Feeds, name: str) -> Grid | None:
    """The grid that an input (channels on axis 1) lies on, or None where a sample is off any.

    Args:
        feeds: The data; values of the first 8 samples fit the grid, 32 check it.
        name: The input.
    """
    heads: list[NDArray[np.float64]] = []
    rest: list[NDArray[np.float64]] = []
    for feed, _ in feeds.batches(limit=_SAMPLES):
        x_NCK = feed[name].reshape(*feed[name].shape[:2], -1)
        for x_CK in x_NCK:
            (heads if len(heads) < _FIT_SAMPLES else rest).append(x_CK)
    fits = [_fit(np.concatenate([head[c] for head in heads])) for c in range(len(heads[0]))]
    if any(fit is None for fit in fits):
        return None
    pitch_C, origin_C = np.array([fit for fit in fits if fit is not None]).T
    low_C, high_C = np.full(len(fits), np.inf), np.full(len(fits), -np.inf)
    for x_CK in [*heads, *rest]:
        k_CK = (x_CK - origin_C[:, None]) / pitch_C[:, None]
        if np.abs(k_CK - np.rint(k_CK)).max() > _OFF_GRID:
            return None
        low_C, high_C = np.minimum(low_C, k_CK.min(axis=1)), np.maximum(high_C, k_CK.max(axis=1))
    room_C = LEVELS - np.rint(high_C - low_C)
    if room_C.min() < 0:
        return None
    low_C = np.rint(low_C)
    # Levels that calibration did not show may lie on either side; 0.0, with which images are padded and
    # which bytes begin with, is kept among them where there is room.
    first_C = low_C - room_C // 2
    zero_C = np.rint(-origin_C / pitch_C)
    holding_C = np.clip(first_C, zero_C - LEVELS, zero_C)
    first_C = np.where((low_C - room_C <= holding_C) & (holding_C <= low_C), holding_C, first_C)
    return Grid(pitch_C, origin_C + pitch_C * first_C)


def _fit(values: NDArray[np.floating]) -> tuple[float, float] | None:
    """Pitch and an origin of the grid that these values lie on, if they are dense enough to tell."""
    seen = np.unique(values).astype(np.float64)
    # Equal bytes may differ in their last float bits.
    seen = seen[np.concatenate([[True], np.diff(seen) > 1e-5 * (seen[-1] - seen[0])])]
    if not _LEAST_VALUES <= len(seen) <= LEVELS + 1:
        return None
    k = np.rint((seen - seen[0]) / np.diff(seen).min())
    if k[-1] > LEVELS or 2 * len(seen) < k[-1] + 1:
        return None
    pitch, origin = np.polyfit(k, seen, 1)
    if np.abs((seen - origin) / pitch - k).max() > _OFF_GRID:
        return None
    return float(pitch), float(origin)


def _insert(graph: ir.Graph, value: ir.Value, conv: ir.Node, grid: Grid) -> str:
    """``x → Pad → Mul → Add → Conv`` with the convolution's constants changed to match; the new tensor."""
    w = weight_of(conv).astype(np.float64)
    spatial = w.ndim - 2
    shape = (1, -1, *[1] * spatial)
    names, stem = Names(graph), f"{name_of(value)}.grid"
    held, given = conv.inputs[1], bias_of(conv)
    assert held is not None
    set_initializer(graph, name_of(held), (w * grid.pitch_C.reshape(shape)).astype(np.float32))
    shift_O = (w * grid.origin_C.reshape(shape)).reshape(len(w), -1).sum(axis=1)
    set_bias(graph, conv, shift_O if given is None else given + shift_O)
    nodes: list[ir.Node] = []
    source = value
    pads = _pads(conv)
    if any(pads):
        ends = np.array([0, 0, *pads[:spatial], 0, 0, *pads[spatial:]], np.int64)
        nodes.append(ir.node("Pad", [source, set_initializer(graph, names.fresh(f"{stem}.sides"), ends)]))
        conv.attributes["pads"] = ir.AttrInt64s("pads", [0] * 2 * spatial)
        source = nodes[-1].outputs[0]
    for op, name, array_C in (
        ("Mul", "pitch", 1.0 / grid.pitch_C),
        ("Add", "origin", -grid.origin_C / grid.pitch_C),
    ):
        array = array_C.reshape(shape).astype(np.float32)
        factor = set_initializer(graph, names.fresh(f"{stem}.{name}"), array)
        nodes.append(ir.node(op, [source, factor]))
        source = nodes[-1].outputs[0]
    for node in nodes:
        out = node.outputs[0]
        out.name, out.type = names.fresh(f"{stem}.{node.op_type.lower()}"), value.type
        node.name = out.name
        if value.shape is not None:
            rims = [0, 0, *(one + other for one, other in zip(pads[:spatial], pads[spatial:], strict=True))]
            sides = zip(value.shape, rims, strict=True)
            out.shape = ir.Shape([dim + rim if isinstance(dim, int) else dim for dim, rim in sides])
    source.name = names.fresh(f"{name_of(value)}.levels")
    graph.insert_before(conv, nodes)
    conv.replace_input_with(0, source)
    return name_of(source)
