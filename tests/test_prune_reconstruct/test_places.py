"""A layer is the same layer however its weight is laid out and wherever its bias is added."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import trace
from penjing.prune import prune
from penjing.prune.places import find_places
from penjing.prune.result import PruneResult

EPS = 1e-3
DATA = [
    F.interpolate(
        torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(seed)),
        scale_factor=3,
        mode="bilinear",
    )
    for seed in range(4)
]


class Plain(nn.Module):
    """As PyTorch writes it: channels first, ``[out, in, …]`` weights, batch norms."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 16, 3, padding=1, bias=bias)
        self.first_norm = nn.BatchNorm2d(16, eps=EPS)
        self.second = nn.Conv2d(16, 12, 3, padding=1, bias=bias)
        self.second_norm = nn.BatchNorm2d(12, eps=EPS)
        self.deep = nn.Conv2d(12, 12, 3, groups=12)
        self.hidden = nn.Linear(12, 20)
        self.head = nn.Linear(20, 5)
        for norm in (self.first_norm, self.second_norm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            norm.running_mean = 0.2 * torch.randn(len(norm.weight))
            norm.running_var = 0.5 + torch.rand(len(norm.weight))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(y)))
        x = F.relu(self.deep(x))
        out: Tensor = self.head(F.relu(self.hidden(x.mean((2, 3)))))
        return out


class Turned(nn.Module):
    """The same as Keras writes it: channels last, ``[…, in, out]`` weights, biases and norms by formulas."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        held: dict[str, Tensor] = {}
        for name, layer in plain.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                held |= {f"{name}_gamma": layer.weight.detach(), f"{name}_beta": layer.bias.detach()}
                self.register_buffer(f"{name}_mean", layer.running_mean.clone())
                self.register_buffer(f"{name}_var", layer.running_var.clone())
                continue
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            weight = layer.weight.detach()
            turned = weight.T if weight.dim() == 2 else weight.permute(2, 3, 1, 0)
            if name == "deep":
                turned = weight.permute(2, 3, 0, 1)  # [height, width, channels, 1]
            held[f"{name}_kernel"] = turned.contiguous()
            if layer.bias is not None:
                held[f"{name}_bias"] = layer.bias.detach().clone()
        for name, value in held.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def part(self, name: str) -> Any:
        return getattr(self, name, None)

    def conv(self, name: str, x_NHWC: Tensor, padding: int = 1) -> Tensor:
        kernel = self.part(f"{name}_kernel")
        groups = 1
        if name == "deep":
            groups = kernel.shape[2]
            kernel = kernel.reshape(*kernel.shape[:2], 1, groups)
        kernel_OIHW = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        x_NCHW = x_NHWC.permute(0, 3, 1, 2).contiguous()
        y_NHWC = F.conv2d(x_NCHW, kernel_OIHW, padding=padding, groups=groups).permute(0, 2, 3, 1)
        bias = self.part(f"{name}_bias")
        return y_NHWC if bias is None else y_NHWC + bias.reshape(1, 1, 1, -1)

    def norm(self, name: str, x_NHWC: Tensor) -> Tensor:
        gamma, beta, mean, var = (
            self.part(f"{name}_{part}").reshape(1, 1, 1, -1) for part in ("gamma", "beta", "mean", "var")
        )
        out: Tensor = x_NHWC.subtract(mean).mul_(var.add(EPS).rsqrt_().mul(gamma)).add_(beta)
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv("stem", x.permute(0, 2, 3, 1)))
        y = F.relu(self.norm("first_norm", self.conv("first", x)))
        x = F.relu(x + self.norm("second_norm", self.conv("second", y)))
        x = F.relu(self.conv("deep", x, padding=0))
        x = F.relu(x.mean((1, 2)) @ self.part("hidden_kernel") + self.part("hidden_bias"))
        return torch.addmm(self.part("head_bias"), x, self.part("head_kernel"))


def pruned(model: nn.Module, criterion: str) -> PruneResult:
    return prune(model, DATA[0][:2], 0.4, criterion=criterion, data=DATA, reconstruct=True)


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
@pytest.mark.parametrize("bias", [False, True])
def test_layout_changes_neither_choice_nor_refit(bias: bool, criterion: str) -> None:
    plain = Plain(bias).eval()
    turned = Turned(plain).eval()
    x = DATA[1]
    torch.testing.assert_close(turned(x), plain(x), rtol=1e-4, atol=1e-5)
    one, other = pruned(plain, criterion), pruned(turned, criterion)
    assert one.after["params"] == other.after["params"]
    assert not other.reconstruction.notes
    assert other.reconstruction.error_after < 0.5 * other.reconstruction.error_before
    torch.testing.assert_close(other.model(x), one.model(x), rtol=1e-3, atol=1e-3)
    for norm in ("first_norm", "second_norm"):  # whose statistics are those of the refitted network
        mine, its = one.model.get_submodule(norm), other.model
        assert isinstance(mine, nn.BatchNorm2d)
        for name, part in (
            ("mean", "running_mean"),
            ("var", "running_var"),
            ("gamma", "weight"),
            ("beta", "bias"),
        ):
            torch.testing.assert_close(
                getattr(its, f"{norm}_{name}"), getattr(mine, part), rtol=1e-3, atol=1e-3
            )


def test_every_layer_is_found_with_what_follows_it() -> None:
    plain = find_places(trace(Plain(False).eval(), DATA[0][:2]))
    turned = find_places(trace(Turned(Plain(False)).eval(), DATA[0][:2]))
    assert len(plain) == len(turned) == 6
    for mine, its in zip(plain.values(), turned.values(), strict=True):
        assert mine.patches == its.patches
        assert mine.behind.bounds == its.behind.bounds
        assert (mine.behind.norm is None, mine.behind.total is None) == (
            its.behind.norm is None,
            its.behind.total is None,
        )
        assert (mine.behind.shift is None) == (its.behind.shift is None)


def test_the_kernel_is_the_weight_itself() -> None:
    plain = Plain(True).eval()
    graph = trace(copy.deepcopy(Turned(plain)).eval(), DATA[0][:2])
    for name, place in find_places(graph).items():
        kernel = place.kernel(graph.params)
        its = plain.get_submodule(name.removesuffix("_kernel")).weight
        assert isinstance(its, Tensor)
        torch.testing.assert_close(kernel, its)
        with torch.no_grad():
            kernel.add_(1)
        torch.testing.assert_close(place.kernel(graph.params), its + 1)


class Mixer(nn.Module):
    """A branch that works along another axis: its sum is read in another layout than its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(9, 24), nn.Linear(24, 9)
        self.head = nn.Linear(3 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x_NCP = x.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(2)
        x_NPC = x_NCP.transpose(1, 2)
        y_NCP = self.down(F.gelu(self.up(x_NPC.transpose(1, 2))))
        out: Tensor = self.head((x_NPC + y_NCP.transpose(1, 2)).flatten(1))
        return out


def test_a_sum_in_another_layout_is_aimed_at() -> None:
    model = Mixer().eval()
    place = find_places(trace(model, DATA[0][:2]))["down.weight"]
    assert place.behind.total is not None
    assert place.behind.turn == (0, 2, 1)
    made = pruned(model, "magnitude")
    assert {fit.target for fit in made.reconstruction.layers if fit.layer == "down.weight"} == {"sum"}
    assert made.reconstruction.error_after < 0.5 * made.reconstruction.error_before


class Fixed(nn.Module):
    """A product with a matrix that is no parameter, and one with a weight that two layers share.

    And a vector is added that is no parameter either.
    """

    basis: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.shared = nn.Linear(27, 24, bias=False), nn.Linear(24, 24)
        self.head = nn.Linear(16, 5)
        self.register_buffer("basis", torch.randn(24, 16))
        self.register_buffer("offset", torch.randn(24), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.avg_pool2d(x, 4).flatten(1)) + self.offset)
        x = F.relu(self.shared(F.relu(self.shared(x))))
        out: Tensor = self.head(x @ self.basis)
        return out


def test_what_is_no_layer_of_its_own_is_no_place() -> None:
    model = Fixed().eval()
    places = find_places(trace(model, DATA[0][:2]))
    assert list(places) == ["up.weight", "head.weight"]
    assert places["up.weight"].behind.shift is None
    made = pruned(model, "obs")
    assert made.after["params"] < made.before["params"]


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_along_a_line_and_through_a_volume_are_refitted(rank: int) -> None:
    torch.manual_seed(0)
    conv, norm, pool = (
        (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
        (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    )[rank == 3]
    model = nn.Sequential(
        *(conv(2, 12, 3, padding="same"), norm(12), nn.ReLU(), conv(12, 12, 4, padding="same"), nn.ReLU()),
        *(pool(1), nn.Flatten(), nn.Linear(12, 5)),
    ).eval()
    data = [F.avg_pool3d(torch.randn(16, 2, 8, 8, 8), 3, 1, 1) for _ in range(3)]
    data = [x if rank == 3 else x[..., 0, 0] for x in data]
    made = prune(model, data[0][:2], 0.4, data=data, reconstruct=True).reconstruction
    assert not made.notes
    assert made.error_after < 0.5 * made.error_before
