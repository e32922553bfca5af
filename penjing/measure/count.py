"""Parameters and multiply-accumulates (MACs), as exact integers, by running the network once on one sample.

A dispatch mode sees every ATen op that really runs, below modules and functional calls alike, so attention,
einsum, recurrent layers and parameters used without a module are counted; a cost belongs to the parameter
that entered the op. One MAC is one multiplication with its addition (two FLOPs). Elementwise ops, norms and
pools count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from penjing.errors import MeasureError
from penjing.graph.inputs import bind_inputs
from penjing.graph.remembered import own_copies
from penjing.graph.views import eval_view


@dataclass(frozen=True)
class LayerCount:
    """What one layer holds and does.

    Attributes:
        name: Dotted name of the module (or of a parameter that has no module of its own).
        op: The ATen op that does the multiplications, or "" when there are none.
        num_params: Elements of the parameters directly in it; a shared parameter counts where it is first.
        num_macs: Multiply-accumulates for one sample.
    """

    name: str
    op: str
    num_params: int
    num_macs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "op": self.op, "num_params": self.num_params, "num_macs": self.num_macs}


@dataclass(frozen=True)
class Count:
    """Totals and layers, in order of execution.

    Attributes:
        num_params: Elements of all parameters, shared ones once.
        num_macs: Multiply-accumulates for one sample.
        layers: Those with parameters or MACs.
        uncounted: Ops outside ATen that ran, whose cost is not known.
    """

    num_params: int
    num_macs: int
    layers: tuple[LayerCount, ...]
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "num_params": self.num_params,
            "num_macs": self.num_macs,
            "layers": [layer.to_dict() for layer in self.layers],
            "uncounted": list(self.uncounted),
        }


Rule = Callable[[tuple[Any, ...], Any], int]


def _matrices(first: int, second: int) -> Rule:
    # (…, n, k) @ (…, k, m): every output element takes k products.
    return lambda args, out: int(args[first].numel() * args[second].shape[-1])


def _convolution(args: tuple[Any, ...], out: Any) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    per_position = (
        weight.numel() // weight.shape[0]
    )  # in_channels / groups · kernel (transposed: out_channels / …)
    return int((x if transposed else out).numel() * per_position)


def _attention(args: tuple[Any, ...], out: Any) -> int:
    q, k, v = args[0], args[1], args[2]
    scores = q.numel() // q.shape[-1] * k.shape[-2]
    return int(scores * (q.shape[-1] + v.shape[-1]))


def _recurrent(args: tuple[Any, ...], out: Any) -> int:
    x, w_input, w_hidden = args[0], args[1], args[2]
    return int(x.numel() // x.shape[-1] * (w_input.numel() + w_hidden.numel()))


def _trilinear(args: tuple[Any, ...], out: Any) -> int:
    # sum of x1 · x2 · x3 over the broadcast volume: bilinear layers.
    a, b, c, e1, e2, e3 = args[:6]
    shape = np.broadcast_shapes(*(_unsqueezed(x.shape, e) for x, e in ((a, e1), (b, e2), (c, e3))))
    return math.prod(shape)


def _unsqueezed(shape: torch.Size, dims: list[int]) -> tuple[int, ...]:
    sizes = list(shape)
    for dim in sorted(dims):
        sizes.insert(dim, 1)
    return tuple(sizes)


_RULES: dict[str, Rule] = {
    "aten.mm": _matrices(0, 1),
    "aten.bmm": _matrices(0, 1),
    "aten.addmm": _matrices(1, 2),
    "aten.baddbmm": _matrices(1, 2),
    "aten.addbmm": _matrices(1, 2),
    "aten._addmm_activation": _matrices(1, 2),
    "aten.mv": lambda args, out: int(args[0].numel()),
    "aten.addmv": lambda args, out: int(args[1].numel()),
    "aten.dot": lambda args, out: int(args[0].numel()),
    "aten.linear": lambda args, out: int(args[0].numel() * args[1].shape[0]),
    "aten.convolution": _convolution,
    "aten._convolution": _convolution,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention": _attention,
    "aten._scaled_dot_product_efficient_attention": _attention,
    "aten._scaled_dot_product_cudnn_attention": _attention,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    "aten.mkldnn_rnn_layer": _recurrent,
    "aten._trilinear": _trilinear,
    "aten._grouped_mm": _matrices(0, 1),
    "transformers.grouped_mm_fallback": _matrices(0, 1),
}


# A parameter in another memory layout or number format is still that parameter (Keras turns its kernels so).
_COPIES = ("aten.clone", "aten._to_copy")


@dataclass
class _Seen:
    macs: dict[str, int] = field(default_factory=dict)
    ops: dict[str, str] = field(default_factory=dict)
    uncounted: dict[str, None] = field(default_factory=dict)
    batches: set[int] = field(default_factory=set)  # of convolutions; without one, they are given one of 1


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, owners: Mapping[int, str], stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners, self.stack, self.seen = dict(owners), stack, _Seen()
        # kept while counting, so that nothing else takes their place in memory
        self.copies: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name in _COPIES and (owner := self.owners.get(_storage(args[0]))) is not None:
            self.owners.setdefault(_storage(out), owner)
            self.copies.append(out)
        rule = _RULES.get(name)
        if rule is not None:
            layer = self._layer(args)
            self.seen.macs[layer] = self.seen.macs.get(layer, 0) + rule(args, out)
            self.seen.ops.setdefault(layer, name)
            if rule is _convolution:
                self.seen.batches.add(args[0].shape[0])
        elif func.namespace not in ("aten", "prim", "prims", "profiler"):
            self.seen.uncounted[name] = None
        return out

    def _layer(self, args: tuple[Any, ...]) -> str:
        # A view of a parameter (its transpose, a chunk of it) shares the parameter's storage.
        for arg in args:
            if isinstance(arg, Tensor):
                owner = self.owners.get(_storage(arg))
                if owner is not None:
                    return owner
        return self.stack[-1] if self.stack else ""


def count(model: nn.Module, example_inputs: Any) -> Count:
    """Count parameters and the MACs of one sample.

    Args:
        model: Any module; it is run once in eval mode without gradients and left as it was.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. Only the first sample
            is run where every tensor's dimension 0 can be cut to it, else MACs are divided by the batch,
            which the outputs then have in front, too.

    Raises:
        MeasureError: if the forward refuses the inputs.
    """
    args, kwargs, size = first_sample(model, example_inputs)
    batch = 1
    try:
        seen, _ = _run(model, args, kwargs)
    except Exception as first:
        # Some networks bake their batch size: run them as they were given.
        args, kwargs = bind_inputs(model, example_inputs)
        try:
            seen, outputs = _run(model, args, kwargs)
        except Exception as error:
            raise MeasureError(
                f"the forward refuses the example inputs ({type(error).__name__}: {error})",
                layer=type(model).__name__,
                remedy="Give example inputs that the model accepts",
            ) from first
        if size in outputs and (not seen.batches or any(found % size == 0 for found in seen.batches)):
            batch = size  # and no dimension of a sample, such as the channels of one image
    params = _params_by_layer(model)
    order = [*seen.macs, *(name for name in params if name not in seen.macs)]
    layers = tuple(
        LayerCount(name, seen.ops.get(name, ""), params.get(name, 0), seen.macs.get(name, 0) // batch)
        for name in order
    )
    return Count(
        num_params=sum(p.numel() for p in model.parameters()),
        num_macs=sum(layer.num_macs for layer in layers),
        layers=layers,
        uncounted=tuple(seen.uncounted),
    )


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Seen, set[int]]:
    """What ran, and the lengths of the outputs."""
    owners = {_storage(param): layer_of(name) for name, param in model.named_parameters() if param.numel()}
    stack: list[str] = []
    counter = _Counter(owners, stack)
    with eval_view(model), _module_names(model, stack), torch.no_grad(), counter:
        output = model(*own_copies(args), **own_copies(kwargs))
    leaves = pytree.tree_leaves(output)
    return counter.seen, {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}


@contextmanager
def _module_names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor looks at; tells meta tensors apart too, whose address is 0."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def layer_of(parameter: str) -> str:
    """``conv.weight`` → ``conv``; a parameter of the top module, which has no dot, names itself."""
    return parameter.rpartition(".")[0] or parameter


def _params_by_layer(model: nn.Module) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name, param in model.named_parameters():
        layer = layer_of(name)
        totals[layer] = totals.get(layer, 0) + param.numel()
    return totals


def first_sample(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Positional and keyword arguments of one sample, and how many samples there were."""
    args, kwargs = bind_inputs(model, example_inputs)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    batch = tensors[0].shape[0] if tensors else 1

    def cut(leaf: Any) -> Any:
        return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch else leaf

    args, kwargs = pytree.tree_map(cut, (args, kwargs))
    return args, kwargs, batch
