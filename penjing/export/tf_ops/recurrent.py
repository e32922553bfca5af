"""LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from penjing.export.tf_ops.backend import tf
from penjing.export.tf_ops.node import Node, op, plain
from penjing.export.tf_ops.value import Tensor, Value

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _check(node: Node) -> None:
    if node.has(4):
        raise node.error("sequences of different lengths (sequence_lens)")
    if node.attr("clip") is not None or node.attr("activations") is not None:
        raise node.error("clipping or other activations than the usual ones")
    if node.attr("layout", 0):
        raise node.error("batch-first layout")


def _directions(node: Node) -> list[bool]:
    """Whether each direction reads backwards."""
    given = node.text("direction", "forward")
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[given]


def _stored(node: Node, index: int, direction: int, what: str, array: np.ndarray) -> Tensor:
    key = f"{node.value(index).key}/{what}{direction}"
    array = np.ascontiguousarray(array)
    return tf.constant(array) if node.weights is None else node.weights.tensor(key, array)


def _over_time(
    x_TBG: Tensor, state: tuple[Tensor, ...], step: Step, backwards: bool
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run ``step`` over the first axis; outputs (time, batch, hidden) and the last state."""
    length = x_TBG.shape[0]
    steps = tf.shape(x_TBG)[0] if length is None else length
    hidden = state[0].shape[-1]
    # not a TensorArray: LiteRT asks for one whose batch is known
    outputs = tf.zeros(tf.stack([steps, tf.shape(x_TBG)[1], hidden]))
    outputs.set_shape([length, x_TBG.shape[1], hidden])
    place_T11 = tf.reshape(tf.range(steps), [-1, 1, 1])

    def body(number: Tensor, out_TBH: Tensor, *now: Tensor) -> tuple[Tensor, ...]:
        t = steps - 1 - number if backwards else number
        after = step(x_TBG[t], now)
        return (number + 1, tf.where(place_T11 == t, after[0], out_TBH), *after)

    first = (tf.constant(0), outputs, *state)
    _, outputs, *final = tf.while_loop(lambda n, *_: n < steps, body, first, maximum_iterations=length)
    return outputs, tuple(final)


@op("LSTM")
def _lstm(node: Node) -> list[Value]:
    """Gates in ONNX's order i, o, f, c; W (dirs, 4H, I), R (dirs, 4H, H), B (dirs, 8H)."""
    _check(node)
    if node.has(7) or node.attr("input_forget", 0):
        raise node.error("peepholes or coupled gates")
    x, hidden = node.x(0), int(node.attr("hidden_size"))
    w, r = node.static(1, "weight"), node.static(2, "weight")
    b = node.static(3, "bias") if node.has(3) else np.zeros((w.shape[0], 8 * hidden), np.float32)
    results = []
    for d, backwards in enumerate(_directions(node)):
        recurrent = _stored(node, 2, d, "R", r[d].T)
        gates = tf.matmul(tf.reshape(x, [-1, w.shape[2]]), _stored(node, 1, d, "W", w[d].T))
        gates = gates + tf.constant(b[d, : 4 * hidden] + b[d, 4 * hidden :])
        gates = tf.reshape(gates, tf.concat([tf.shape(x)[:2], [4 * hidden]], 0))
        gates.set_shape([x.shape[0], x.shape[1], 4 * hidden])

        def step(g: Tensor, now: tuple[Tensor, ...], recurrent: Tensor = recurrent) -> tuple[Tensor, ...]:
            h, c = now
            i, o, f, new = tf.split(g + tf.matmul(h, recurrent), 4, -1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(new)
            return tf.sigmoid(o) * tf.tanh(c), c

        results.append(
            _over_time(
                gates, (_initial(node, 5, d, x, hidden), _initial(node, 6, d, x, hidden)), step, backwards
            )
        )
    return _collected(results)


@op("GRU")
def _gru(node: Node) -> list[Value]:
    """Gates in ONNX's order z, r, h."""
    _check(node)
    x, hidden = node.x(0), int(node.attr("hidden_size"))
    w, r = node.static(1, "weight"), node.static(2, "weight")
    b = node.static(3, "bias") if node.has(3) else np.zeros((w.shape[0], 6 * hidden), np.float32)
    after = bool(node.attr("linear_before_reset", 0))
    results = []
    for d, backwards in enumerate(_directions(node)):
        bias_w, bias_r = b[d, : 3 * hidden], b[d, 3 * hidden :]
        kernel = _stored(node, 2, d, "R", r[d].T)
        gates = tf.matmul(tf.reshape(x, [-1, w.shape[2]]), _stored(node, 1, d, "W", w[d].T)) + tf.constant(
            bias_w
        )
        gates = tf.reshape(gates, tf.concat([tf.shape(x)[:2], [3 * hidden]], 0))
        gates.set_shape([x.shape[0], x.shape[1], 3 * hidden])

        def step(
            g: Tensor, now: tuple[Tensor, ...], kernel: Tensor = kernel, bias_r: np.ndarray = bias_r
        ) -> tuple[Tensor, ...]:
            (h,) = now
            g_z, g_r, g_h = tf.split(g, 3, -1)
            r_z, r_r, r_h = tf.split(kernel, 3, -1)
            b_z, b_r, b_h = np.split(bias_r, 3)
            z = tf.sigmoid(g_z + tf.matmul(h, r_z) + b_z)
            reset = tf.sigmoid(g_r + tf.matmul(h, r_r) + b_r)
            if after:
                new = tf.tanh(g_h + reset * (tf.matmul(h, r_h) + b_h))
            else:
                new = tf.tanh(g_h + tf.matmul(reset * h, r_h) + b_h)
            return ((1.0 - z) * new + z * h,)

        results.append(_over_time(gates, (_initial(node, 5, d, x, hidden),), step, backwards))
    return _collected(results)


def _initial(node: Node, index: int, direction: int, x: Tensor, hidden: int) -> Tensor:
    if node.has(index):
        state = node.x(index)[direction]
    else:
        state = tf.zeros(tf.stack([tf.shape(x)[1], hidden]))
    state.set_shape([x.shape[1], hidden])
    return state


def _collected(results: list[tuple[Tensor, tuple[Any, ...]]]) -> list[Value]:
    """Y (time, dirs, batch, hidden), then each last state (dirs, batch, hidden)."""
    outs = [plain(tf.stack([out for out, _ in results], 1))]
    states = zip(*(final for _, final in results), strict=True)
    return outs + [plain(tf.stack(list(state), 0)) for state in states]
