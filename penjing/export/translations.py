"""ATen ops that torch's ONNX exporter lacks or knows in part: one function each, found by `translations`, or
an edit of the program."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

from penjing.export import orders
from penjing.export.distances import cdist
from penjing.export.embedding_bags import are_even, embedding_bag
from penjing.export.grouped_products import grouped_product, is_grouped


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention with any number of leading dimensions (torch translates four only); a row
    that the mask closes to all gives zeros, as in torch.
    """
    if enable_gqa:
        from onnxscript.function_libs.torch_lib.ops import nn

        mixed = nn.aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    else:
        mixed = _mixed(query, key, value, attn_mask, is_causal, scale)
    if attn_mask is None:
        return mixed
    zero = op.CastLike(op.Constant(value_float=0.0), query)
    opens = op.Where(attn_mask, zero, _lowest(query)) if _is_bool(attn_mask) else attn_mask
    closed = op.Equal(op.ReduceMax(opens, op.Constant(value_ints=[-1])), _lowest(query))
    return op.Where(closed, zero, mixed)


def _mixed(query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: float | None) -> Any:
    rank, width = len(query.shape), query.shape[-1]
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, op.CastLike(op.Constant(value_float=factor), query)), turned)
    if is_causal:
        length, source = query.shape[-2], key.shape[-2]
        lower = op.Constant(value=_tensor(torch.ones(length, source, dtype=torch.bool).tril()))
        scores = op.Where(lower, scores, _lowest(query))
    elif attn_mask is not None and _is_bool(attn_mask):
        scores = op.Where(attn_mask, scores, _lowest(query))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _lowest(like: Any) -> Any:
    return op.CastLike(op.Constant(value_float=float("-inf")), like)


def _is_bool(value: Any) -> bool:
    return str(value.dtype).upper().endswith("BOOL")


def antialiased(cubic: bool) -> Callable[..., Any]:
    """Resizing with antialiasing by the factors that were given, which torch's translation replaces by the
    ratios of the rounded sizes.
    """
    from onnxscript.function_libs.torch_lib.ops import nn

    by_size = nn.aten__upsample_bicubic2d_aa if cubic else nn.aten__upsample_bilinear2d_aa

    def resize(
        x: Any,
        output_size: Any,
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Any:
        if align_corners or scales_h is None or scales_w is None:
            return by_size(x, output_size, align_corners)
        return op.Resize(
            x,
            None,
            op.Constant(value_floats=[1.0, 1.0, scales_h, scales_w]),
            mode="cubic" if cubic else "linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            cubic_coeff_a=-0.5,
            exclude_outside=1,
        )

    return resize


def _tensor(tensor: torch.Tensor) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(tensor.numpy())


def adaptive_max_pool(x: Any, output_size: Any) -> tuple[Any, Any]:
    """``aten.adaptive_max_pool1d`` to ``3d``: the largest of each window, without its place."""
    x = _adaptive(x, output_size, op.ReduceMax)
    return x, op.Identity(x)


def adaptive_mean_pool(x: Any, output_size: Any) -> Any:
    """``aten.adaptive_avg_pool1d`` to ``3d``: the mean of each window. torch has those of one and two
    dimensions, but with windows that stay as they are in the example where the size is free."""
    return _adaptive(x, output_size, op.ReduceMean)


def _adaptive(x: Any, output_size: Any, reduce: Callable[..., Any]) -> Any:
    """Windows as even as they can be, dimension by dimension: they may overlap by one."""
    wanted = output_size if isinstance(output_size, (list, tuple)) else [output_size]
    sizes = list(x.shape)
    for dim, count in enumerate(wanted, len(sizes) - len(wanted)):
        size = sizes[dim]
        axes = op.Constant(value_ints=[dim])
        if count == 1:
            x = reduce(x, axes, keepdims=1)
            continue
        free = None if isinstance(size, int) else op.Shape(x, start=dim, end=dim + 1)
        parts = []
        for at in range(count):
            if free is None:
                ends = ([at * size // count], [-(-(at + 1) * size // count)])
                start, stop = (op.Constant(value_ints=end) for end in ends)
            else:
                start, stop = (_share(free, at, count), _share(free, at + 1, count, up=True))
            parts.append(reduce(op.Slice(x, start, stop, axes), axes, keepdims=1))
        x = op.Concat(*parts, axis=dim)
    return x


def _share(size: Any, parts: int, of: int, up: bool = False) -> Any:
    """So many of ``of`` parts of a size known to the caller of the file, rounded down or up."""
    total = op.Mul(size, op.Constant(value_ints=[parts]))
    more = op.Add(total, op.Constant(value_ints=[of - 1])) if up else total
    return op.Div(more, op.Constant(value_ints=[of]))


def hypot(a: Any, b: Any) -> Any:
    """``aten.hypot``: the length of a right triangle's longest side."""
    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


def copysign(a: Any, b: Any) -> Any:
    """``aten.copysign``: ``|a|`` with the sign of ``b``; that of a negative zero is not seen."""
    zero = op.CastLike(op.Constant(value_float=0.0), b)
    size = op.Abs(a)
    return op.Where(op.Less(b, zero), op.Neg(size), size)


def hstack(tensors: Any) -> Any:
    """``aten.hstack``: joined side by side."""
    return op.Concat(*tensors, axis=min(1, len(tensors[0].shape) - 1))


def vstack(tensors: Any) -> Any:
    """``aten.vstack``: joined row upon row."""
    return op.Concat(*(_lifted(tensor, {1: [0]}) for tensor in tensors), axis=0)


def dstack(tensors: Any) -> Any:
    """``aten.dstack``: joined in depth."""
    return op.Concat(*(_lifted(tensor, {1: [0, 2], 2: [2]}) for tensor in tensors), axis=2)


def _lifted(tensor: Any, missing: dict[int, list[int]]) -> Any:
    axes = missing.get(len(tensor.shape))
    return op.Unsqueeze(tensor, op.Constant(value_ints=axes)) if axes else tensor


def rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any) -> Any:
    """``aten.rrelu`` in inference: the slope is the middle of its range."""
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


def but_for_nan(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``aten.fmax`` and ``fmin``: where one of both is NaN, the other."""

    def translate(a: Any, b: Any) -> Any:
        return op.Where(op.IsNaN(a), b, op.Where(op.IsNaN(b), a, choose(a, b)))

    return translate


def scatter_reduce(self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """``aten.scatter_reduce``, with the mean, which ONNX has not (torch's own translation keeps one value
    of several)."""
    if reduce != "mean":
        from onnxscript.function_libs.torch_lib.ops import core

        return core.aten_scatter_reduce(self, dim, index, src, reduce, include_self)
    zero, one = (op.CastLike(op.Constant(value_float=value), src) for value in (0.0, 1.0))
    before = op.Expand(one if include_self else zero, op.Shape(self))
    count = op.ScatterElements(before, index, op.Expand(one, op.Shape(src)), axis=dim, reduction="add")
    begun = self if include_self else op.Where(op.Greater(count, zero), zero, self)
    total = op.ScatterElements(begun, index, src, axis=dim, reduction="add")
    return op.Div(total, op.Max(count, one))


_aten = torch.ops.aten
ALWAYS: dict[Any, Callable[..., Any]] = {
    _aten._neg_view.default: lambda self: op.Neg(self),  # the imaginary part of a conjugate
    _aten._adaptive_avg_pool3d.default: adaptive_mean_pool,
    _aten.adaptive_avg_pool3d.default: adaptive_mean_pool,
    _aten.bucketize.Tensor: orders.bucketize,
    _aten.cdist.default: cdist,
    _aten.copysign.Tensor: copysign,
    _aten.cummax.default: orders.running(op.Greater),
    _aten.cummin.default: orders.running(op.Less),
    _aten.cumprod.default: orders.cumprod,
    _aten.dstack.default: dstack,
    _aten.fmax.default: but_for_nan(op.Max),
    _aten.fmin.default: but_for_nan(op.Min),
    _aten.hstack.default: hstack,
    _aten.hypot.default: hypot,
    _aten.kthvalue.default: orders.kthvalue,
    _aten.median.dim: orders.median,
    _aten.rrelu.default: rrelu,
    _aten.scatter_reduce.two: scatter_reduce,
    _aten.searchsorted.Tensor: orders.searchsorted,
    _aten.sort.stable: orders.stable_sort,
    _aten.vstack.default: vstack,
}
"""Where torch has none, or a wrong one."""

_ADAPTIVE_MEANS = tuple(
    getattr(_aten, name).default
    for name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
)
_ADAPTIVE = tuple(getattr(_aten, f"adaptive_max_pool{dims}d").default for dims in (1, 2, 3))


def translations(program: torch.export.ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """The functions that this program needs in place of torch's own."""
    aten = torch.ops.aten
    sdpa = aten.scaled_dot_product_attention.default
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    found = dict(ALWAYS)
    given = set(program.graph_signature.user_inputs)
    attentions = [node for node in calls if node.target is sdpa]
    if any(node.args[0].meta["val"].dim() != 4 or _may_close(node, given) for node in attentions):
        found[sdpa] = attention
    if any("2d_aa." in str(node.target) for node in calls):
        found[aten._upsample_bilinear2d_aa.default] = antialiased(cubic=False)
        found[aten._upsample_bicubic2d_aa.default] = antialiased(cubic=True)
    for target in _ADAPTIVE:
        places = [user for node in calls if node.target is target for user in node.users if user.args[1] == 1]
        if not any(place.users for place in places):
            found[target] = adaptive_max_pool
    means = [node for node in calls if node.target in _ADAPTIVE_MEANS]
    if any(_slides_over_free_sizes(node) for node in means):
        found |= dict.fromkeys(_ADAPTIVE_MEANS, adaptive_mean_pool)
    found |= {node.target: grouped_product for node in calls if is_grouped(node)}
    clamps = [node for node in calls if node.target is aten.clamp.Tensor]
    if clamps and all(map(_is_between_numbers, clamps)):
        found[aten.clamp.Tensor] = _clip
    bags = [node for node in calls if node.target is aten.embedding_bag.padding_idx]
    if bags:
        found[aten.embedding_bag.padding_idx] = embedding_bag(even=all(map(are_even, bags)))
    return found


def _is_between_numbers(clamp: torch.fx.Node) -> bool:
    """Whether both bounds are single numbers of the type of what is clamped."""
    values = [arg.meta["val"] for arg in clamp.args if isinstance(arg, torch.fx.Node)]
    alike = len({value.dtype for value in values}) == 1
    return len(values) == 3 and alike and all(value.dim() == 0 for value in values[1:])


def _clip(x: Any, low: Any, high: Any) -> Any:
    """``clamp(x, low, high)``. Torch writes it as a maximum and a minimum, which its optimizer puts together
    under names made of x's: two of one x would share their bounds."""
    return op.Clip(x, low, high)


def _slides_over_free_sizes(pool: torch.fx.Node) -> bool:
    """Whether an adaptive pooling takes the means of windows whose sizes the caller of the file chooses."""
    x, wanted = pool.args[0].meta["val"], pool.args[1]  # type: ignore[union-attr]
    counts = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    sizes = x.shape[x.dim() - len(counts) :]
    return any(
        isinstance(size, torch.SymInt) and count != 1 for size, count in zip(sizes, counts, strict=True)
    )


def _may_close(attention: torch.fx.Node, given: set[Any]) -> bool:
    """Whether its mask is computed, or given: what is stored was looked at by whoever stored it."""
    mask = attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
    return isinstance(mask, torch.fx.Node) and (mask.op == "call_function" or mask.name in given)


def even_bounds(program: torch.export.ExportedProgram) -> None:
    """Make both bounds of ``clamp(0, 0.5)`` floats: torch's exporter finds no op that takes one of each."""
    for node in program.graph.nodes:
        if str(node.target) in ("aten.clamp.default", "aten.clamp_.default", "aten.clip.default"):
            bounds = node.args[1:]
            if any(isinstance(bound, float) for bound in bounds):
                node.args = (node.args[0], *(None if bound is None else float(bound) for bound in bounds))


def slice_splits(program: torch.export.ExportedProgram) -> None:
    """Write splits at computed sizes, such as the batch's, as slices: torch's optimizer fails on one,
    TensorFlow on several."""
    aten = torch.ops.aten
    graph = program.graph
    found = False
    for target in (aten.split.Tensor, aten.split_with_sizes.default):
        for node in graph.find_nodes(op="call_function", target=target):
            x, sizes = node.args[:2]
            if not any(
                isinstance(size, torch.fx.Node) for size in (sizes if isinstance(sizes, list) else [sizes])
            ):
                continue
            found = True
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            for part in list(node.users):
                with graph.inserting_before(part):
                    bounds = [_bound(graph, sizes, index) for index in (part.args[1], part.args[1] + 1)]
                    piece = graph.call_function(aten.slice.Tensor, (x, dim, *bounds))
                piece.meta = dict(part.meta)
                part.replace_all_uses_with(piece)
                graph.erase_node(part)
            graph.erase_node(node)
    if found:
        program.graph_module.recompile()


def _bound(graph: torch.fx.Graph, sizes: Any, index: int) -> Any:
    """Where part ``index`` of a split begins: at so many sizes, or at the sum of those before it."""
    if not isinstance(sizes, list):
        return _symbolic(graph, operator.mul, sizes, index)
    place: Any = 0
    for size in sizes[:index]:
        place = _symbolic(graph, operator.add, place, size)
    return place


def _symbolic(graph: torch.fx.Graph, op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """A node for a number that may depend on the batch; a number where it does not."""
    known = [side.meta["val"] if isinstance(side, torch.fx.Node) else side for side in (left, right)]
    if all(isinstance(value, int) for value in known):
        return op(*known)
    node = graph.call_function(op, (left, right))
    node.meta["val"] = op(*known)
    return node
