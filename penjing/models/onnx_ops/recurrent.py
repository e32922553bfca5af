"""LSTM, GRU and RNN, on torch's fused ops; gates are put from ONNX's order into torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, op

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where each of torch's gates (i f g o; r z n) lies among ONNX's (i o f c; z r h)."""
_USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


def _check(node: Node) -> None:
    if node.has(4) and len(set(node.static(4, "sequence lengths").tolist())) > 1:
        raise node.error("sequences of different lengths (sequence_lens)")
    if node.attr("clip") is not None or node.attr("input_forget", 0) or node.has(7):
        raise node.error("clipping, coupled gates or peepholes")
    if node.op == "GRU" and not node.attr("linear_before_reset", 0):
        raise node.error("a reset gate before the linear layer")
    given = [a.decode().lower() for a in node.attr("activations", [])]
    usual = [*_USUAL[node.op]] * (len(given) // len(_USUAL[node.op]))
    if given and given != usual and not (node.op == "RNN" and set(given) == {"relu"}):
        raise node.error(f"the activations {', '.join(given)}")


def _gates(node: Node, w: Tensor) -> Tensor:
    order = _ORDER[node.op]
    parts = w.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0) if len(order) > 1 else w


def _weights(node: Node, direction: int) -> list[Tensor]:
    """Input weights, hidden weights and their biases of one direction, as torch wants them."""
    w, r, b = node.x(1)[direction], node.x(2)[direction], node.optional(3)
    found = [_gates(node, w), _gates(node, r)]
    if b is not None:
        found += [_gates(node, half) for half in b[direction].chunk(2, 0)]
    return found


def _state(node: Node, index: int, directions: int, x: Tensor) -> Tensor:
    given = node.optional(index)
    if given is None:
        return x.new_zeros(directions, x.shape[1], node.x(2).shape[-1])
    given = given.transpose(0, 1) if node.attr("layout", 0) else given
    if given.shape[1] != x.shape[1]:  # torch would spread one state over all samples, other runtimes do not
        raise node.error(f"its state is for {given.shape[1]} samples, its input has {x.shape[1]}")
    return given


@op("LSTM", "GRU", "RNN")
def _recurrent(node: Node) -> list[Value]:
    """W (dirs, gates · H, I), R (dirs, gates · H, H), B (dirs, 2 · gates · H) → Y (time, dirs, batch, H)."""
    _check(node)
    x, direction = node.x(0), node.text("direction", "forward")
    batch_first = bool(node.attr("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    directions = 2 if direction == "bidirectional" else 1
    x = x.flip(0) if direction == "reverse" else x
    weights = [w for d in range(directions) for w in _weights(node, d)]
    h = _state(node, 5, directions, x)
    options: Any = (weights, node.has(3), 1, 0.0, node.training, directions == 2, False)
    if node.op == "LSTM":
        y, *states = torch.lstm(x, (h, _state(node, 6, directions, x)), *options)
    elif node.op == "GRU":
        y, *states = torch.gru(x, h, *options)
    else:
        relu = any(a.lower() == b"relu" for a in node.attr("activations", []))
        y, *states = (torch.rnn_relu if relu else torch.rnn_tanh)(x, h, *options)
    y = y.flip(0) if direction == "reverse" else y
    y = y.reshape(*y.shape[:2], directions, -1).transpose(1, 2)
    if batch_first:  # Y (batch, time, dirs, H), states (batch, dirs, H)
        return [y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)]
    return [y, *states]
