"""Packed sequences while a network is traced: padded ones, whose sizes no value makes.

Packing lays the valid steps of all sequences in a row, so its sizes follow from the lengths, and no graph
can hold them. Here the rows of every step stay, and what is not valid is left out where it would be seen: a
recurrent layer walks backward from each sequence's own end, its last state is that of the last valid step,
and what comes out is padded again as torch does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from penjing.errors import TraceError

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class Lengths:
    """Stands for the batch sizes of a packed sequence whose data is ``[steps * batch, ...]``.

    Args:
        lengths_B: Valid steps of each sequence.
        steps: Rows of the padded sequences.
        batch: Their number.
    """

    device = torch.device("cpu")  # as torch asks of batch sizes

    def __init__(self, lengths_B: Tensor, steps: Any, batch: Any) -> None:
        self.lengths_B, self.steps, self.batch = lengths_B, steps, batch

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented  # what does not take it has `Padded` to ask, or cannot be followed

    def __getitem__(self, step: Any) -> Any:
        """How many sequences have the step, which is known of the first one alone."""
        if step != 0:
            raise TraceError(
                "the forward computes with the batch sizes of a packed sequence, which follow from values",
                remedy="Pad it (pad_packed_sequence) and compute with the lengths",
            )
        return self.batch

    def size(self, dim: int = 0) -> Any:
        """The number of steps, those included that are padding in every sequence."""
        return self.steps

    def valid_TB(self) -> Tensor:
        """Which steps are valid."""
        steps_T = torch.arange(self.steps, device=self.lengths_B.device)
        return steps_T[:, None] < self.lengths_B[None, :]

    def mirrored_TB(self) -> Tensor:
        """Where each step is found when every sequence is read from its own end; padding stays in place."""
        steps_T1 = torch.arange(self.steps, device=self.lengths_B.device)[:, None]
        return torch.where(self.valid_TB(), self.lengths_B[None, :] - 1 - steps_T1, steps_T1)


_SIZES = ((nn.RNNBase, "get_expected_hidden_size"), (nn.LSTM, "get_expected_cell_size"))


def _size_of_state(own: Callable[..., Any]) -> Callable[..., Any]:
    def size(layer: nn.RNNBase, x: Tensor, batch_sizes: Any) -> Any:
        if not isinstance(batch_sizes, Lengths):
            return own(layer, x, batch_sizes)
        stacked, _, width = own(layer, x, [1])
        return stacked, batch_sizes.batch, width

    return size


class Padded(TorchFunctionMode):
    """Follows what packs, pads and walks along packed sequences with padded ones.

    Attributes:
        met: Whether anything was packed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __enter__(self) -> Padded:
        """Besides, sizes of states are told as they are, where torch makes them numbers."""
        self._own = [(kind, name, vars(kind)[name]) for kind, name in _SIZES]
        for kind, name, own in self._own:
            setattr(kind, name, _size_of_state(own))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *raised: object) -> None:
        """Torch's own again."""
        for kind, name, own in self._own:
            setattr(kind, name, own)
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            self.met = True
            return _pack(*args, **(kwargs or {}))
        if len(args) > 1 and isinstance(args[1], Lengths):
            if name == "_pad_packed_sequence":
                return _pad(*args, **(kwargs or {}))
            if name in _GATES:
                return _walk(name, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def check_shapes(own: Any, traced: Any, name: str) -> None:
    """That nothing packed, and nothing as long as the longest sequence, comes out.

    Args:
        own: What the forward gives.
        traced: What its graph gives for the same inputs.
        name: Of the model, for the error.

    Raises:
        TraceError: where a tensor has another shape.
    """
    pairs = zip(pytree.tree_leaves(own), pytree.tree_leaves(traced), strict=False)
    for its, here in pairs:
        if isinstance(its, Tensor) and isinstance(here, Tensor) and its.shape != here.shape:
            raise TraceError(
                f"the forward packs sequences and gives {[*its.shape]}, a shape that follows from their "
                f"lengths, where padded ones give {[*here.shape]}",
                layer=name,
                remedy="Give back padded sequences, and examples of which the longest fills its rows "
                "(or pass total_length to pad_packed_sequence)",
            )


def _pack(padded: Tensor, lengths_B: Tensor, batch_first: bool) -> tuple[Tensor, Lengths]:
    x = padded.transpose(0, 1) if batch_first else padded
    return x.flatten(0, 1), Lengths(lengths_B.to(padded.device), x.shape[0], x.shape[1])


def _pad(
    data: Tensor, lengths: Lengths, batch_first: bool, padding_value: float, total_length: int = -1
) -> tuple[Tensor, Tensor]:
    x = data.reshape(lengths.steps, lengths.batch, *data.shape[1:])
    valid_TB = lengths.valid_TB()
    x = torch.where(valid_TB.reshape(*valid_TB.shape, *[1] * (x.dim() - 2)), x, padding_value)
    if total_length > 0:
        x = F.pad(x, (*[0] * (2 * x.dim() - 1), total_length - lengths.steps), value=padding_value)
    return (x.transpose(0, 1) if batch_first else x), lengths.lengths_B


def _walk(
    kind: str,
    data: Tensor,
    lengths: Lengths,
    hx: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """All layers and directions of a recurrent net, each as an op of one layer and direction."""
    x = data.reshape(lengths.steps, lengths.batch, *data.shape[1:])
    starts = list(hx) if isinstance(hx, list | tuple) else [hx]
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    ends: list[list[Tensor]] = [[] for _ in starts]
    for layer in range(num_layers):
        outs = []
        for direction in range(directions):
            at = layer * directions + direction
            own = list(weights[at * each : (at + 1) * each])
            start = [state[at : at + 1] for state in starts]
            y, last = _one_way(kind, x, lengths, start, own, has_biases, backward=direction == 1)
            outs.append(y)
            for kept, state in zip(ends, last, strict=True):
                kept.append(state)
        x = torch.cat(outs, -1) if directions == 2 else outs[0]
        if training and dropout and layer + 1 < num_layers:
            x = F.dropout(x, dropout, training)
    return (x.flatten(0, 1), *(torch.stack(states) for states in ends))


def _one_way(
    kind: str,
    x: Tensor,
    lengths: Lengths,
    start: Sequence[Tensor],
    weights: list[Tensor],
    has_biases: bool,
    *,
    backward: bool,
) -> tuple[Tensor, list[Tensor]]:
    if backward:
        x = _taken(x, lengths.mirrored_TB())
    op = getattr(torch, kind)
    hx = list(start) if kind == "lstm" else start[0]
    y = op(x, hx, weights, has_biases, 1, 0.0, False, False, False)[0]
    ends = [_taken(y, lengths.lengths_B[None, :] - 1)[0]]
    if kind == "lstm":
        ends.append(_last_cell(x, y, lengths, start, weights, has_biases))
    return (_taken(y, lengths.mirrored_TB()) if backward else y), ends


def _last_cell(
    x: Tensor,
    y: Tensor,
    lengths: Lengths,
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
) -> Tensor:
    """The cell at each sequence's last valid step, which the op does not give: what each step writes, as
    much of it as the forget gates of the steps after it leave."""
    before = torch.cat([start[0], y[:-1]])
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if has_biases else (None, None)
    enter, forget, write, _ = (F.linear(x, w_ih, b_ih) + F.linear(before, w_hh, b_hh)).chunk(4, -1)
    valid = lengths.valid_TB()[..., None]
    kept_log = torch.where(valid, F.logsigmoid(forget), 0.0).cumsum(0)
    whole_log = kept_log[-1:]
    written = torch.where(valid, torch.sigmoid(enter) * torch.tanh(write), 0.0)
    return start[1][0] * whole_log[0].exp() + (written * (whole_log - kept_log).exp()).sum(0)


def _taken(x: Tensor, steps_TB: Tensor) -> Tensor:
    """The given step of each sequence, for every step asked for."""
    return x.gather(0, steps_TB[..., None].expand(*steps_TB.shape, x.shape[-1]))
