"""Ops whose result depends on which positions of an axis count: each restricted to the kept ones.

A rule gets the op's call with its masks and returns the restricted result, shaped like the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of one dim.

    Attributes:
        flags: bool (size of the dim,), True where kept.
        watched: Whether removed positions must carry nothing of the input. Not so along an axis that a
            softmax mixes (tokens): a removed token still reads the others, it is only not read.
    """

    flags: Tensor
    watched: bool = True

    @property
    def index(self) -> Tensor:
        """Kept positions."""
        return self.flags.nonzero().squeeze(1)

    def left_out(self, value: Tensor, dim: int) -> Tensor:
        """What the removed positions of a dim hold."""
        return value.index_select(dim, (~self.flags).nonzero().squeeze(1))


Mask = Kept | None  # None where everything is kept
Rule = Callable[["Restricted"], Any]


@dataclass(frozen=True)
class Restricted:
    """One call in the interpreter.

    Attributes:
        node: The node of the original graph.
        args: Its arguments, nodes replaced by their values.
        kwargs: Likewise.
        masks: Masks per dim of the value a node gave, () when it is no tensor; of this very node with
            ``tensor=`` its value.
        watch: Told of every value that is left out: ``watch(node, left out)``.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    masks: Callable[..., tuple[Mask, ...]]
    watch: Callable[[fx.Node, Tensor], None]

    def plain(self) -> Any:
        """The op as it is."""
        return self.node.target(*self.args, **self.kwargs)  # type: ignore[operator]

    def call(self, *args: Any, **changes: Any) -> Any:
        """The op with the leading arguments replaced."""
        rest = self.args[len(args) :]
        return self.node.target(*args, *rest, **{**self.kwargs, **changes})  # type: ignore[operator]

    def mask(self, position: int, dim: int) -> Mask:
        """Mask of one dim of an argument."""
        masks = self.masks(self.node.args[position]) if position < len(self.node.args) else ()
        return masks[dim] if -len(masks) <= dim < len(masks) else None

    def keep(self, value: Tensor, dim: int, mask: Mask) -> Tensor:
        """Only the kept positions of one dim."""
        if mask is None:
            return value
        if mask.watched:
            self.watch(self.node, mask.left_out(value, dim))
        return value.index_select(dim, mask.index)

    def blank(self, value: Tensor, dim: int, mask: Mask) -> Tensor:
        """Zeros at the removed positions of one dim."""
        if mask is None:
            return value
        if mask.watched:
            self.watch(self.node, mask.left_out(value, dim))
        shape = [1] * value.ndim
        shape[dim] = -1
        return torch.where(
            mask.flags.view(shape), value, torch.zeros((), dtype=value.dtype, device=value.device)
        )


def spread(value: Tensor, dim: int, mask: Mask) -> Tensor:
    """Undo `Restricted.keep`: removed positions hold zero."""
    if mask is None:
        return value
    shape = list(value.shape)
    shape[dim] = len(mask.flags)
    return value.new_zeros(shape).index_copy(dim, mask.index, value)


def _dims(call: Restricted, position: int = 1) -> list[int]:
    """The reduced dims: an int, a list, or all."""
    given = call.args[position] if len(call.args) > position else call.kwargs.get("dim")
    ndim = call.args[0].ndim
    if given is None or given == []:
        return list(range(ndim))
    return [d % ndim for d in (given if isinstance(given, Sequence) else [given])]


def reduction(call: Restricted) -> Any:
    """Mean, sum, variance, maximum, norm: over the kept positions only."""
    return _reduced(call, _dims(call))


def norm_reduction(call: Restricted) -> Any:
    """As `reduction`, with the order of the norm before the dims."""
    return _reduced(call, _dims(call, 2))


def last_reduction(call: Restricted) -> Any:
    """As `reduction`, over the last dim where none is named."""
    return _reduced(call, _dims(call) if len(call.args) > 1 or "dim" in call.kwargs else [-1])


def full_reduction(call: Restricted) -> Any:
    """Over everything."""
    return _reduced(call, list(range(call.args[0].ndim)))


def _reduced(call: Restricted, dims: Sequence[int]) -> Any:
    value = call.args[0]
    for dim in dims:
        value = call.keep(value, dim, call.mask(0, dim))
    return call.call(value)


def distance(call: Restricted) -> Any:
    """Of two tensors over the last dim: a removed position would add the op's ``eps``."""
    a, b = (call.keep(call.args[i], -1, call.mask(i, -1)) for i in (0, 1))
    return call.call(a, b)


def feature_distance(call: Restricted) -> Any:
    """Cosine similarity: over one dim of both."""
    dim = int(call.args[2] if len(call.args) > 2 else call.kwargs.get("dim", 1))
    a, b = (call.keep(call.args[i], dim, call.mask(i, dim)) for i in (0, 1))
    return call.call(a, b)


def loss(call: Restricted) -> Any:
    """Losses averaged or summed over the kept positions of every dim; elementwise ones as they are."""
    names = [argument.name for argument in call.node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    if given.get("reduction", 1) == 0:
        return call.plain()
    kept = list(call.args)
    for place, value in enumerate(kept):
        for dim in range(value.ndim if isinstance(value, Tensor) else 0):
            kept[place] = call.keep(kept[place], dim, call.mask(place, dim))
    return call.call(*kept)


def softmax(call: Restricted) -> Any:
    """Removed positions get no probability."""
    dim = int(call.args[1]) % call.args[0].ndim
    mask = call.mask(0, dim)
    return spread(call.call(call.keep(call.args[0], dim, mask)), dim, mask)


def cumulative(call: Restricted) -> Any:
    """Removed positions add nothing."""
    dim = int(call.args[1]) % call.args[0].ndim
    return call.call(call.blank(call.args[0], dim, call.mask(0, dim)))


def layer_norm(call: Restricted) -> Any:
    """Layer and RMS norm over the kept positions of the normalised dims."""
    x, shape = call.args[0], call.args[1]
    affine = [call.args[i] if len(call.args) > i else None for i in (2, 3)]
    first = x.ndim - len(shape)
    masks = [call.mask(0, first + i) for i in range(len(shape))]
    for i, mask in enumerate(masks):
        x = call.keep(x, first + i, mask)
        for j, tensor in enumerate(affine):
            if isinstance(tensor, Tensor) and mask is not None:
                affine[j] = tensor.index_select(i, mask.index)
    out = call.call(x, list(x.shape[first:]), *affine[: max(len(call.args) - 2, 0)])
    for i, mask in enumerate(masks):
        out = spread(out, first + i, mask)
    return out


def group_norm(call: Restricted) -> Any:
    """Group norm over the kept channels of each group that has any."""
    x, groups = call.args[0], int(call.args[1])
    mask = call.mask(0, 1)
    others = [(d, call.mask(0, d)) for d in range(2, x.ndim)]
    if mask is None and all(m is None for _, m in others):
        return call.plain()
    weight, bias = (call.args[i] if len(call.args) > i else None for i in (2, 3))
    eps = call.args[4] if len(call.args) > 4 else call.kwargs.get("eps", 1e-5)
    if mask is not None:
        left = mask.flags.view(groups, -1).any(dim=1)
        groups = int(left.sum())
        index = mask.index
        weight, bias = (t if t is None else t.index_select(0, index) for t in (weight, bias))
    for dim, m in ((1, mask), *others):
        x = call.keep(x, dim, m)
    out = F.group_norm(x, groups, weight, bias, eps)
    for dim, m in ((1, mask), *others):
        out = spread(out, dim, m)
    return out


def batch_statistics(call: Restricted) -> Any:
    """Batch and instance norm that compute their statistics: over the kept positions of every dim but the
    channels.
    """
    x = call.args[0]
    masks = [(d, call.mask(0, d)) for d in range(x.ndim) if d != 1]
    out = x
    for dim, mask in masks:
        out = call.keep(out, dim, mask)
    out = call.call(out)
    for dim, mask in masks:
        out = spread(out, dim, mask)
    return out


def contraction(call: Restricted) -> Any:
    """Matrix products of two computed values: removed positions of the summed dim add nothing."""
    return call.call(call.blank(call.args[0], call.args[0].ndim - 1, call.mask(0, -1)))


def affine(call: Restricted) -> Any:
    """Linear layers and convolutions; with a weight that is itself computed, removed channels add nothing."""
    weight = call.node.args[1]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return call.plain()
    x = call.args[0]
    is_linear = "linear" in str(call.node.target)
    dim = x.ndim - 1 if is_linear else 1
    return call.call(call.blank(x, dim, call.mask(0, dim)))


def attention(call: Restricted) -> Any:
    """Scaled dot-product attention: the original's scale, queries and values over kept positions."""
    q, k, v = call.args[:3]
    scale = call.kwargs.get("scale")
    q = call.blank(q, q.ndim - 1, call.mask(0, -1))
    keys = call.mask(1, -2)
    if keys is None:
        return call.call(q)
    k, v = call.keep(k, k.ndim - 2, keys), call.keep(v, v.ndim - 2, call.mask(2, -2))
    bias = call.args[3] if len(call.args) > 3 else call.kwargs.get("attn_mask")
    if bias is not None:
        bias = bias.index_select(bias.ndim - 1, keys.index)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def broadcast(call: Restricted) -> Any:
    """Elementwise ops of several tensors: what is broadcast along an axis does not reach its removed
    positions (the mean that a layer norm written by hand subtracts).
    """
    operands = [(i, value) for i, value in enumerate(call.args) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(value.shape for _, value in operands))  # type: ignore[no-untyped-call]
    blanked = []
    for dim in range(-len(shape), 0):
        wide = [i for i, value in operands if value.ndim >= -dim and value.shape[dim] == shape[dim]]
        mask = next((mask for i in wide if (mask := call.mask(i, dim)) is not None), None)
        if mask is not None and mask.watched and len(wide) < len(operands):
            for i in wide:
                call.watch(call.node, mask.left_out(call.args[i], dim))
            blanked.append((dim, (~mask.flags).nonzero().squeeze(1)))
    result = call.plain()
    for dim, removed in blanked:
        result.index_fill_(dim, removed, 0)  # of an op in place, what others see of its argument too
    return result


def copies(call: Restricted) -> Any:
    """Expanded and repeated values: there are no copies at removed positions."""
    source, result = call.args[0], call.plain()
    for dim, mask in enumerate(call.masks(call.node, tensor=result), start=-result.ndim):
        if mask is not None and (source.ndim < -dim or source.shape[dim] != result.shape[dim]):
            result = spread(result.index_select(dim, mask.index), dim, mask)
    return result


def einsum(call: Restricted) -> Any:
    """Removed positions of any dim of any operand add nothing."""
    operands = []
    for node, value in zip(call.node.args[1], call.args[1], strict=True):  # type: ignore[arg-type]
        masks = call.masks(node)
        for dim in range(value.ndim):
            value = call.blank(value, dim, masks[dim] if masks else None)
        operands.append(value)
    return call.call(call.args[0], operands)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "mean.dim", "sum.dim_IntList", "var.dim", "var.correction", "std.dim", "std.correction",
            "var_mean.dim", "var_mean.correction", "std_mean.dim", "std_mean.correction", "amax.default",
            "amin.default", "logsumexp.default", "special_logsumexp.default", "prod.dim_int", "max.dim",
            "min.dim", "any.dim", "all.dim", "median.dim", "nanmedian.dim",
        ),
        reduction,
    ),
    **dict.fromkeys((
            "linalg_vector_norm.default", "norm.ScalarOpt_dim", "linalg_norm.default", "linalg_norm.ord_str",
            "linalg_matrix_norm.default", "quantile.default", "quantile.scalar", "nanquantile.default",
            "nanquantile.scalar",
        ),
        norm_reduction,
    ),
    **dict.fromkeys((
            "mean.default", "sum.default", "var.default", "std.default", "max.default", "min.default",
            "median.default", "nanmedian.default",
        ),
        full_reduction,
    ),
    **dict.fromkeys(
        (
            "softmax.int", "log_softmax.int", "_softmax.default", "special_softmax.default",
            "special_log_softmax.default",
        ),
        softmax,
    ),
    **dict.fromkeys(("cumsum.default",), cumulative),
    **dict.fromkeys(("layer_norm.default", "rms_norm.default"), layer_norm),
    **dict.fromkeys(("group_norm.default",), group_norm),
    **dict.fromkeys(("batch_norm.default", "instance_norm.default"), batch_statistics),
    **dict.fromkeys(("matmul.default", "bmm.default", "mm.default"), contraction),
    **dict.fromkeys(
        (
            "linear.default", "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding",
            "conv2d.padding", "conv3d.padding", "conv_transpose1d.default", "conv_transpose2d.input",
            "conv_transpose3d.input",
        ),
        affine,
    ),
    **dict.fromkeys(
        (
            "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add_.Tensor", "sub_.Tensor",
            "mul_.Tensor", "div_.Tensor", "maximum.default", "minimum.default", "where.self",
            "masked_fill.Scalar", "masked_fill.Tensor", "masked_fill_.Scalar", "masked_fill_.Tensor",
        ),
        broadcast,
    ),
    **dict.fromkeys(
        (
            "expand.default", "expand_as.default", "broadcast_to.default", "repeat.default", "tile.default",
            "repeat_interleave.self_int",
        ),
        copies,
    ),
    "scaled_dot_product_attention.default": attention,
    "einsum.default": einsum,
    **dict.fromkeys(("pairwise_distance.default", "cdist.default"), distance),
    "cosine_similarity.default": feature_distance,
    "mode.default": last_reduction,
    **dict.fromkeys(
        (
            "mse_loss.default", "l1_loss.default", "smooth_l1_loss.default", "huber_loss.default",
            "soft_margin_loss.default", "binary_cross_entropy.default",
            "binary_cross_entropy_with_logits.default", "kl_div.default", "poisson_nll_loss.default",
            "cross_entropy_loss.default", "nll_loss.default", "nll_loss_nd.default", "nll_loss2d.default",
        ),
        loss,
    ),
}  # fmt: skip
