"""The rule table: coverage, look-up, and what happens to an op that is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.graph import couple, trace
from penjing.graph.rules import RULES, find_rule, rule
from penjing.table import adder

# Every ATen op that torch.export produces for 139 torchvision and timm networks.
ZOO_OPS = """
conv2d.default linear.default flatten.using_ints dropout.default add.Tensor adaptive_avg_pool2d.default
batch_norm.default mul.Tensor relu_.default reshape.default permute.default cat.default gelu.default
layer_norm.default transpose.int mean.dim max_pool2d.default view.default add_.Tensor unbind.int
scaled_dot_product_attention.default softmax.int matmul.default relu.default contiguous.default
unsqueeze.default avg_pool2d.default sigmoid.default select.int slice.Tensor pad.default alias.default
expand.default chunk.default hardsigmoid.default index.Tensor div.Tensor split_with_sizes.default
silu_.default stack.default sub.Tensor _assert_tensor_metadata.default dropout_.default
hardswish_.default to.dtype linalg_vector_norm.default clamp_min.default expand_as.default roll.default
silu.default upsample_bilinear2d.vec arange.default group_norm.default sum.dim_IntList
upsample_nearest2d.vec lift_fresh_copy.default squeeze.dim clamp.default conv3d.default cos.default
einsum.default eq.Scalar exp.default fill_.Tensor hardswish.default hardtanh_.default masked_fill.Scalar
ne.Scalar neg.default new_zeros.default reshape_as.default sin.default split.Tensor type_as.default
adaptive_avg_pool3d.default amax.default conv1d.default div.Tensor_mode hardtanh.default im2col.default
pow.Scalar pow.Tensor_Scalar repeat_interleave.self_int unflatten.int upsample_bicubic2d.vec
zeros.default _upsample_bicubic2d_aa.vec addcmul.default arange.start avg_pool1d.default
bitwise_not.default clone.default col2im.default conv2d.padding conv_transpose2d.input copy_.default
cumsum.default div_.Tensor leaky_relu_.default lstm.input max.dim max_pool3d.default meshgrid.indexing
repeat.default rsqrt.default rsub.Scalar swapaxes.default tanh.default tensor_split.indices tile.default
to.device unfold.default var.dim zero_.default
"""
# Checks that tidying removes before any rule is asked.
REMOVED = {"_assert_tensor_metadata.default"}


@pytest.mark.parametrize("name", [name for name in ZOO_OPS.split() if name not in REMOVED])
def test_every_op_of_the_zoo_has_a_rule(name: str) -> None:
    assert find_rule(f"aten.{name}") is not None


def test_rules_name_ops_that_exist() -> None:
    """Another name, misspelt or of a function of torch that is made of ops, would never be found."""
    aten = [name.split(".")[1] for name in RULES if name.startswith("aten.")]
    ops = torch.ops.aten
    assert [name for name in aten if not hasattr(ops, name) and not hasattr(ops, f"{name}_")] == []


def test_lookup_goes_from_the_full_name_to_the_plain_one() -> None:
    assert find_rule("aten.add_.Tensor") is find_rule("aten.add.Tensor") is RULES["aten.add"]
    assert find_rule("aten.max.other") is not find_rule("aten.max.dim")
    assert find_rule("aten.no_such_op.default") is None


def test_two_rules_for_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match="two rules"):
        rule("aten.add")(lambda op: ())


def test_what_is_defined_again_in_a_notebook_replaces_itself() -> None:
    table: dict[str, Any] = {}
    add = adder(table, "loss ")

    def made(module: str) -> type:
        return type("Mine", (), {"__module__": module})

    cell, again = made("__main__"), made("__main__")
    add("mine")(cell)
    add("mine")(again)
    assert table["mine"] is again
    for other in (made("elsewhere"), lambda: 0):
        with pytest.raises(ValueError, match="two rules for loss mine"):
            add("mine")(other)


class Check(nn.Module):
    """One op between two linears, applied to (batch, 6, channels)."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.a, self.code = nn.Linear(12, 8), code
        width = eval(code, {"torch": torch, "y": torch.zeros(2, 6, 8)}).shape[-1]
        self.b = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        result: Tensor = self.b(eval(self.code, {"torch": torch, "y": y}))
        return result


# op, and the sizes of the groups that the 8 channels between the linears end up in
CASES = {
    "y.sin() * 2 + y": [8],
    "y.clamp(0, 1).masked_fill(y > 1, 0.0)": [8],
    "torch.where(y > 0, y, torch.zeros_like(y))": [8],
    "y.masked_fill((y > 0) & (y < 1) | (y > 2), 0.0)": [8],
    "y.masked_fill((y > 0).__iand__(y < 1), 0.0)": [8],
    "y.softmax(-1)": [8],
    "y.softmax(1)": [8],
    "y.mean(1, keepdim=True).expand_as(y) - y": [8],
    "y / y.norm(dim=-1, keepdim=True)": [8],
    "y.amax(-1, keepdim=True) + y": [8],
    "y.var(-1, keepdim=True).rsqrt() * y": [8],
    "torch.stack([y, y], -1).flatten(-2)": [8],
    "torch.stack([y, y], -2).flatten(-2)": [8],
    "y.repeat(1, 1, 2)": [8, 2],
    "y.repeat_interleave(2, -1)": [8, 2],
    "y.unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)": [8],
    "torch.cat([y, y], -1).unflatten(-1, (4, 4)).transpose(-1, -2).flatten(-2)": [8],
    "y.unflatten(-1, (4, 2)).flatten(-2)": [4, 2],
    "y.unflatten(-1, (4, 2))[..., 0]": [4],
    "y.unflatten(-1, (2, 4)).sum(-2)": [2, 4],
    "y[..., 2:6]": [2, 4, 2],
    "y[..., 3]. unsqueeze(-1)": [3, 4],
    "torch.cat([y[..., :4], y[..., 4:].flip(-1)], -1)": [4, 4],
    "torch.cat([-y[..., 4:], y[..., :4]], -1) + y": [4],
    "torch.nn.functional.pad(y, (1, 2))": [8, 2],
    "torch.nn.functional.pad(y, (-1, -2))": [5, 2],
    "y.cumsum(1)": [8],
    "y.cumsum(-1)": [],
    "y.topk(8, -1)[0]": [],
    "torch.fft.rfft(y, dim=1).abs()": [8],
    "torch.fft.rfft(y, dim=-1).abs()": [],
    "torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (4, 2)))).flatten(-2)": [4],
    "torch.fft.irfft(torch.fft.rfft(y, dim=1).conj(), dim=1)": [8],
    "(1j * y).conj().imag": [8],
    "torch.stft(y[..., 0], 4, window=torch.ones(4), return_complex=True).abs()": [7],
    "torch.arctan2(torch.arctan(y), y.negative())": [8],
    "torch.linalg.matmul(y.tanh(), torch.ones(8, 5))": [8, 5],
    "torch.logaddexp2(y, torch.special.erfcx(y))": [8],
    "torch.cat([y[..., :4], y.transpose(1, 2).flipud().fliplr().transpose(1, 2)[..., 4:]], -1)": [4, 4],
    "torch.diff(y, dim=1, prepend=y[:, :1] * 2)": [8],
    "torch.diff(y)": [],
    "torch.cumulative_trapezoid(y, dim=1)": [8],
    "torch.trapezoid(y, dim=1)": [8],
    "y.movedim(1, -1).movedim(1, -1)": [8],
    "y.tensor_split((3, 5), -1)[1]": [3, 2, 3],
    "y @ torch.ones(8, 5)": [8, 5],
    "torch.nn.functional.layer_norm(y, (8,))": [8],
    "torch.nn.functional.rms_norm(y, (8,))": [8],
    "torch.nn.functional.avg_pool1d(y.transpose(1, 2), 2).transpose(1, 2)": [8],
    "torch.nn.functional.interpolate(y.transpose(1, 2), size=9).transpose(1, 2)": [8],
    "torch.nn.functional.max_unpool1d(*torch.nn.functional.max_pool1d("
    "y.transpose(1, 2), 2, return_indices=True), 2).transpose(1, 2)": [8],
    "y.unfold(1, 2, 2).flatten(-2)": [8],
    "y.gather(1, torch.zeros_like(y).long())": [8],
    "y.tril()": [],
}


@pytest.mark.parametrize("code", CASES)
def test_groups_through_one_op(code: str) -> None:
    coupling = couple(trace(Check(code).eval(), torch.randn(2, 6, 12)))
    assert not [f for f in coupling.frozen if f.kind == "unsolved"]
    assert sorted(group.size for group in coupling.groups) == sorted(CASES[code])
