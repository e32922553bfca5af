"""Normalisations and softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.models.onnx_ops.node import Node, Value, op


@op("BatchNormalization")
def _batch_norm(node: Node) -> list[Value]:
    """In training mode it uses the batch's statistics and updates the running ones.

    ONNX's momentum weighs the old statistics, torch's the new ones.
    """
    if node.attr("training_mode", 0):
        raise node.error("it was exported in training mode")
    momentum = 1.0 - float(node.attr("momentum", 0.9))
    eps = float(node.attr("epsilon", 1e-5))
    mean, var = node.x(3), node.x(4)
    if mean.requires_grad or var.requires_grad:  # computed from a weight: weight standardisation
        shape = (1, -1, *(1,) * (node.rank() - 2))
        scale = node.x(1) * (var + eps).rsqrt()
        return [node.x(0) * scale.reshape(shape) + (node.x(2) - mean * scale).reshape(shape)]
    return [F.batch_norm(node.x(0), mean, var, node.x(1), node.x(2), node.training, momentum, eps)]


@op("InstanceNormalization")
def _instance_norm(node: Node) -> Value:
    return F.instance_norm(node.x(0), weight=node.x(1), bias=node.x(2), eps=float(node.attr("epsilon", 1e-5)))


@op("GroupNormalization")
def _group_norm(node: Node) -> Value:
    x, scale, bias, groups = node.x(0), node.x(1), node.x(2), int(node.attr("num_groups"))
    if node.opset < 21:  # one scale a group before, one a channel since
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, float(node.attr("epsilon", 1e-5)))


@op("LayerNormalization")
def _layer_norm(node: Node) -> Value:
    if node.num_outputs > 1:
        raise node.error("its mean and deviation are used")
    x, scale, bias = node.x(0), node.x(1), node.optional(2)
    sizes, eps = x.shape[node.axis(-1) :], float(node.attr("epsilon", 1e-5))
    if scale.shape == sizes and (bias is None or bias.shape == sizes):
        return F.layer_norm(x, sizes, scale, bias, eps)
    out = F.layer_norm(x, sizes, None, None, eps) * scale
    return out if bias is None else out + bias


@op("RMSNormalization")
def _rms_norm(node: Node) -> Value:
    x, scale = node.x(0), node.x(1)
    sizes, eps = x.shape[node.axis(-1) :], float(node.attr("epsilon", 1e-5))
    return (
        F.rms_norm(x, sizes, scale, eps) if scale.shape == sizes else F.rms_norm(x, sizes, None, eps) * scale
    )


@op("LpNormalization")
def _lp_norm(node: Node) -> Value:
    return F.normalize(node.x(), float(node.attr("p", 2)), node.axis(-1))


@op("MeanVarianceNormalization")
def _mean_variance_norm(node: Node) -> Value:
    x, axes = node.x(), [int(a) for a in node.attr("axes", [0, 2, 3])]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.pow(2).mean(axes, keepdim=True) + 1e-9).sqrt()


@op("LRN")
def _lrn(node: Node) -> Value:
    alpha, beta = float(node.attr("alpha", 1e-4)), float(node.attr("beta", 0.75))
    return F.local_response_norm(node.x(), int(node.attr("size")), alpha, beta, float(node.attr("bias", 1.0)))


def _over_axis(node: Node, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Before op set 13, everything from ``axis`` on counts as one axis."""
    x = node.x()
    if node.opset >= 13:
        return function(x, node.axis(-1))
    axis = node.axis(1)
    if axis == x.ndim - 1 or all(isinstance(n, int) and n == 1 for n in x.shape[axis + 1 :]):
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


@op("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Value:
    return _over_axis(node, F.softmax if node.op == "Softmax" else F.log_softmax)


@op("Hardmax")
def _hardmax(node: Node) -> Value:
    def one_hot(x: Tensor, axis: int) -> Tensor:
        return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)

    return _over_axis(node, one_hot)
