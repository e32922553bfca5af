"""Convolutions in one, two or three dimensions. The number of groups follows from the weight's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from penjing.export.onnx_node import spatial_pads, transpose_crops
from penjing.models.onnx_ops.node import Node, Value, op

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def pad_spatial(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """``x`` with ``value`` around its spatial dimensions."""
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value) if any(map(any, pads)) else x


@op("Conv")
def _conv(node: Node) -> Value:
    x, weight, bias = node.x(0), node.x(1), node.optional(2)
    count = weight.ndim - 2
    if count not in _CONV:
        raise node.error(f"it has {count} spatial dimensions")
    strides = [int(s) for s in node.attr("strides", [1] * count)]
    dilations = [int(d) for d in node.attr("dilations", [1] * count)]
    pads = spatial_pads(node, weight.shape[2:], strides, dilations, x.shape[2:])
    even = all(before == after for before, after in pads)
    x = x if even else pad_spatial(x, pads)
    padding = [before for before, _ in pads] if even else [0] * count
    groups = x.shape[1] // weight.shape[1]
    return _CONV[count](x, weight, bias, strides, padding, dilations, groups)


@op("ConvTranspose")
def _conv_transpose(node: Node) -> Value:
    x, weight, bias = node.x(0), node.x(1), node.optional(2)
    count, groups = weight.ndim - 2, int(node.attr("group", 1))
    if count not in _TRANSPOSED:
        raise node.error(f"it has {count} spatial dimensions")
    strides = [int(s) for s in node.attr("strides", [1] * count)]
    dilations = [int(d) for d in node.attr("dilations", [1] * count)]
    extra = [int(e) for e in node.attr("output_padding", [0] * count)]
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [(n - 1) * s + span for n, s, span in zip(x.shape[2:], strides, spans, strict=True)]
    crops = transpose_crops(node, full, extra, x.shape[2:], strides)
    if all(before == after and before >= 0 for before, after in crops):
        padding = [before for before, _ in crops]
        return _TRANSPOSED[count](x, weight, bias, strides, padding, extra, groups, dilations)
    out = _TRANSPOSED[count](x, weight, None, strides, 0, 0, groups, dilations)
    ends = [(-before, e - after) for (before, after), e in zip(crops, extra, strict=True)]
    out = pad_spatial(out, ends)
    return out if bias is None else out + bias.reshape(-1, *[1] * count)


@op("DeformConv")
def _deform_conv(node: Node) -> Value:
    from torchvision.ops import deform_conv2d

    x, weight = node.x(0), node.x(1)
    if weight.ndim != 4:
        raise node.error("only images of two dimensions are known")
    strides = [int(s) for s in node.attr("strides", [1, 1])]
    dilations = [int(d) for d in node.attr("dilations", [1, 1])]
    pads = spatial_pads(node, weight.shape[2:], strides, dilations, x.shape[2:])
    if any(before != after for before, after in pads):
        raise node.error("its padding is not the same on both sides")
    result: Tensor = deform_conv2d(
        x,
        node.x(2),
        weight,
        node.optional(3),
        stride=(strides[0], strides[1]),
        padding=(pads[0][0], pads[1][0]),
        dilation=(dilations[0], dilations[1]),
        mask=node.optional(4),
    )
    return result


@op("Col2Im")
def _col2im(node: Node) -> Value:
    image, block = node.ints("image_shape", 1) or [], node.ints("block_shape", 2) or []
    if len(image) != 2:
        raise node.error("only images of two dimensions are known")
    pads = [int(p) for p in node.attr("pads", [0] * 4)]
    strides = [int(s) for s in node.attr("strides", [1, 1])]
    dilations = [int(d) for d in node.attr("dilations", [1, 1])]
    if pads[:2] == pads[2:]:
        return F.fold(node.x(), tuple(image), tuple(block), dilations, pads[:2], strides)  # type: ignore[arg-type]
    wide = tuple(n + pads[i] + pads[i + 2] for i, n in enumerate(image))
    out = F.fold(node.x(), wide, tuple(block), dilations, 0, strides)  # type: ignore[arg-type]
    return out[..., pads[0] : pads[0] + image[0], pads[1] : pads[1] + image[1]]
