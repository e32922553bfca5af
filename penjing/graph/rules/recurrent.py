"""LSTM, GRU and RNN: one hidden axis for all layers, directions and gates; and their single cells."""

from __future__ import annotations

from penjing.graph.axes import Axis, product, total
from penjing.graph.rules.table import Axes, Op, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _gated(op: Op, gates: int, hidden: Axis, axes: Axes) -> None:
    """Each of these holds all gates, one after the other, of every hidden slot."""
    for axis in axes:
        op.unify(axis, product([op.fixed(gates, "the gates of a recurrent cell"), hidden]))


def _recurrent(name: str, gates: int) -> None:
    @rule(f"aten.{name}.input")
    def recurrent(op: Op) -> list[Axes]:
        x = op.axes(op.args["input"])
        states = op.args["hx"] if isinstance(op.args["hx"], list | tuple) else [op.args["hx"]]
        weights = [op.axes(node) for node in op.args["params"]]
        directions = 2 if op.args["bidirectional"] else 1
        layers, biased = int(op.args["num_layers"]), bool(op.args["has_biases"])
        each = len(weights) // (layers * directions)
        projected = each == (5 if biased else 3)
        hidden: Axis = op.free(weights[0][0].size // gates)
        shown = weights[each - 1][0] if projected else hidden
        width: Axis = x[-1]
        for layer in range(layers):
            for direction in range(directions):
                start = (layer * directions + direction) * each
                w_ih, w_hh, *rest = weights[start : start + each]
                biases = (bias[0] for bias in (rest[:2] if biased else ()))
                _gated(op, gates, hidden, (w_ih[0], w_hh[0], *biases))
                op.unify(w_ih[1], width)
                op.unify(w_hh[1], shown)
                if projected:
                    op.unify(rest[-1][0], shown)
                    op.unify(rest[-1][1], hidden)
            width = total([shown] * directions)
        for number, state in enumerate(states):
            op.unify(op.axes(state)[-1], hidden if number == 1 else shown)
        stacked = op.axes(states[0])[0]
        op.freeze(stacked, "layers of a recurrent net")
        batch = op.axes(states[0])[1:-1]
        final = [(stacked, *batch, shown), (stacked, *batch, hidden)]
        return [(*x[:-1], width), *final[: len(op.outputs) - 1]]


def _cell(name: str, gates: int) -> None:
    @rule(f"aten.{name}_cell")
    def cell(op: Op) -> list[Axes]:
        x, w_ih, w_hh = (op.axes(op.args[name]) for name in ("input", "w_ih", "w_hh"))
        states = op.args["hx"] if isinstance(op.args["hx"], list | tuple) else [op.args["hx"]]
        hidden = op.free(w_hh[0].size // gates)
        op.unify(w_ih[1], x[-1])
        op.unify(w_hh[1], hidden)
        biases = (axis for name in ("b_ih", "b_hh") for axis in op.axes(op.args[name]))
        _gated(op, gates, hidden, (w_ih[0], w_hh[0], *biases))
        for state in states:
            op.unify(op.axes(state)[-1], hidden)
        return [(*x[:-1], hidden)] * len(op.outputs)


for _name, _gates in GATES.items():
    _recurrent(_name, _gates)
    _cell(_name, _gates)
