"""What is computed from weights alone and has no op in files is worked out when they are written."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import penjing as pj
from penjing.export.folding import fold_weights


class Orthogonal(nn.Module):
    """Parametrizations by Householder products and by an exponential."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.turned = parametrizations.orthogonal(nn.Linear(8, 8))
        self.exp = parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="matrix_exp")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.exp(torch.relu(self.turned(torch.relu(self.first(x)))))
        return out


class Invertible(nn.Module):
    """A convolution that also gives its determinant, as in flows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(6, 6))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.slogdet(self.weight.double())[1].float() * x.shape[2] * x.shape[3]
        return nn.functional.conv2d(x, self.weight[:, :, None, None]), x.sum((1, 2, 3)) + volume


class Counting(nn.Module):
    """A forward that draws, and one whose buffer it changes: neither is known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        out: Tensor = x * self.calls.exp() + torch.rand(3) + self.scale.exp()
        return out


@pytest.mark.parametrize(("model", "shape"), [(Orthogonal, (4, 6)), (Invertible, (2, 6, 5, 4))])
def test_files_hold_it(model: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    formats = ("onnx", "saved_model", "litert")
    made = pj.export(model().eval(), tmp_path / "out", formats=formats, example_inputs=torch.randn(*shape))
    for file in made.files:
        assert file.verification.relative < 1e-5
        assert [row.batch for row in file.verification.rows] == [1, 3, 8]


def test_pruned_and_in_int8(tmp_path: Path) -> None:
    model, x = Orthogonal().eval(), torch.randn(32, 6)
    small = pj.prune(model, x, 0.5)
    made = pj.quantize(small.model, [x], out=tmp_path / "m.onnx", example_inputs=x, time_it=False)
    assert made.num_quantized == 3
    assert len([n for n in onnx.load(made.path).graph.node if n.op_type in ("MatMul", "Gemm")]) == 3


class Writing(nn.Module):
    """A copy of a weight that the input is written into."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        copy = self.weight.exp()
        copy[0].add_(x[0])
        return x @ copy @ torch.matrix_exp(self.weight)


def test_what_is_written_into_is_not_known() -> None:
    model, x = Writing(), torch.randn(2, 3)
    program = torch.export.export(model, (x,), strict=False)
    fold_weights(program)
    folded = [value for name, value in program.state_dict.items() if name.startswith("folded")]
    assert len(folded) == 1
    torch.testing.assert_close(folded[0], torch.matrix_exp(model.weight.detach()))


def test_only_what_weights_alone_decide() -> None:
    program = torch.export.export(Counting(), (torch.randn(2, 3),), strict=False)
    program = program.run_decompositions({})
    assert fold_weights(program) == 1
    left = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert left.count("aten.exp.default") == 1  # of the calls, not of the scale
    assert any("rand" in target for target in left)
    torch.testing.assert_close(program.state_dict["folded_0"], torch.ones(3).exp())
