"""Padding with −∞ before a MaxPool, as models write it that pad like TensorFlow, made the MaxPool's own.

Left apart, the padded tensor's range is infinite, which no 8-bit scale can hold.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def merge_pads(graph: ir.Graph) -> int:
    """Give each MaxPool the −∞ padding before it; the number merged.

    Args:
        graph: Changed in place.
    """
    merged = 0
    for pool in list(graph):
        source = pool.inputs[0] if pool.op_type == "MaxPool" else None
        pad = None if source is None else source.producer()
        if pad is None or pad.op_type != "Pad" or (pads := _merged(pad, pool)) is None:
            continue
        pool.attributes["pads"] = ir.AttrInt64s("pads", pads)
        pool.attributes.pop("auto_pad", None)
        pool.replace_input_with(0, pad.inputs[0])
        if not any(out.uses() or out.is_graph_output() for out in pad.outputs):
            graph.remove(pad, safe=True)
        merged += 1
    return merged


def _merged(pad: ir.Node, pool: ir.Node) -> list[int] | None:
    """``pads`` of the MaxPool that does both; None where it cannot."""
    attributes = pool.attributes
    if (
        len(pool.outputs) > 1  # the places of the maxima count from the padding
        or attributes.get_int("ceil_mode", False)
        or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or pad.attributes.get_string("mode", "constant") != "constant"
    ):
        return None
    given, value, axes = ([*pad.inputs, None, None, None][at] for at in (1, 2, 3))
    amounts, filler = _constant(given), _constant(value)
    if amounts is None or filler is None or not np.all(filler <= np.finfo(np.float32).min):
        return None
    kernel = list(attributes.get_ints("kernel_shape", ()))
    rank, half = len(kernel) + 2, len(amounts) // 2
    where = _constant(axes) if axes is not None else np.arange(half)
    if where is None:
        return None
    both = np.zeros((2, rank), np.int64)  # before, after
    both[:, np.asarray(where, np.int64) % rank] = np.asarray(amounts, np.int64).reshape(2, half)
    own = np.asarray(attributes.get_ints("pads", [0] * (2 * len(kernel))), np.int64).reshape(2, -1)
    total = both[:, 2:] + own
    # a window needs an element of the image in it
    if both[:, :2].any() or (both < 0).any() or (total >= np.asarray(kernel)).any():
        return None
    return [int(amount) for amount in total.reshape(-1)]


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.atleast_1d(tensor.numpy())
