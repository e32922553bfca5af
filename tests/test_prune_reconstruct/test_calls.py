"""Layers that are called several times: heads on several levels, encoders of two inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import trace
from penjing.prune import prune
from penjing.prune.places import find_places
from penjing.prune.recalibrate import recalibrate
from penjing.prune.reconstruct import ReconstructConfig, reconstruct


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) @ mixing(shape[-1])


def mixing(size: int) -> Tensor:
    """Inputs hang together, as real ones do."""
    mixed: Tensor = torch.randn(size, size, generator=torch.Generator().manual_seed(7)) / size**0.5
    return mixed


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.out = nn.Linear(12, 40), nn.Linear(40, 40, bias=False), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        out: Tensor = self.out(F.gelu(x + self.two(x)))
        return out


class Siamese(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(a), self.encoder(b)


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_an_encoder_of_two_inputs_is_refitted_as_of_one_that_sees_both(criterion: str) -> None:
    """Two calls are two batches to the layers in them."""
    a, b = [[drawn(64, 12, seed=10 * side + at) for at in range(3)] for side in range(2)]
    whole = Encoder().eval()
    both, pairs = [*a, *b], [({"a": x, "b": y}, 0) for x, y in zip(a, b, strict=True)]
    twice = Siamese(copy.deepcopy(whole)).eval()
    fitted = {}
    for name, net, data in (("once", whole, both), ("twice", twice, pairs)):
        made = prune(
            net, data[0] if name == "once" else data[0][0], ratio=0.5, criterion=criterion, data=data
        )
        fitted[name] = made, reconstruct(made.model, net, made.plan, data)
    (first, one), (second, two) = fitted["once"], fitted["twice"]
    assert [layer.layer for layer in two.layers] == ["encoder." + layer.layer for layer in one.layers]
    assert not two.notes
    for mine, its in zip(first.plan.groups.values(), second.plan.groups.values(), strict=True):
        assert mine.kept.tolist() == its.kept.tolist()
    theirs = two.model.get_submodule("encoder").state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)
    assert two.error_after < 0.5 * two.error_before


class Block(nn.Module):
    """A residual block whose shortcut is a convolution, too."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, out, 3, 2, 1), nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.short, self.norm = nn.Conv2d(width, out, 1, 2, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.two(F.relu(self.one(x)))) + self.short(x))


class Pyramid(nn.Module):
    """A head on three levels, with a norm of its own on each, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.levels = nn.ModuleList([Block(3, 16), Block(16, 16), Block(16, 16)])
        self.head, self.norms = (
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ModuleList(nn.BatchNorm2d(24) for _ in range(3)),
        )
        self.out = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for level, norm in zip(self.levels, self.norms, strict=True):
            x = level(x)
            found.append(self.out(F.relu(norm(self.head(x)))))
        return found


class Pair(nn.Module):
    """Residual blocks, called on two images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(Block(3, 16), Block(16, 24))
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.body(side).mean((2, 3)) for side in (x[:, :3], x[:, 3:]))
        out: Tensor = self.head((left - right).abs())
        return out


@pytest.mark.parametrize(("make", "channels"), [(Pyramid, 3), (Pair, 6)])
def test_shared_convolutions_are_fitted_to_all_their_calls(
    make: Callable[[], nn.Module], channels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.randn(32, channels, 4, 4, generator=generator) for _ in range(4)]
    data = [F.interpolate(x, scale_factor=6, mode="bilinear", align_corners=False) for x in coarse]
    net = recalibrate(make(), data).eval()
    made = prune(net, data[0][:2], ratio=0.4)
    found = reconstruct(made.model, net, made.plan, data)
    weights = {name for name, value in net.named_parameters() if value.dim() > 1}
    assert {layer.layer for layer in found.layers} >= weights - {
        "levels.0.one.weight",
        "levels.0.short.weight",
    }
    assert not found.notes
    assert all(layer.error_after <= layer.error_before for layer in found.layers)
    assert found.error_after < 0.6 * found.error_before
    by_blocks = reconstruct(made.model, net, made.plan, data, ReconstructConfig(block_steps=5))
    assert by_blocks.error_after < by_blocks.error_before


class Again(nn.Module):
    """One layer reads what it gave; two others stand in turn before one another; a last one does neither."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(12, 24)
        self.again, self.f, self.g, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.wide(x))
        x = F.gelu(self.again(F.gelu(self.again(x))))
        x = self.f(F.gelu(self.g(x))) + self.g(F.gelu(self.f(x)))
        out: Tensor = self.out(x) * self.out(x.abs())
        return out


def test_what_has_no_order_is_left_out_and_said() -> None:
    net, data = Again().eval(), [drawn(64, 12, seed=at) for at in range(3)]
    assert set(find_places(trace(net, data[0]))) == {"wide.weight", "out.weight"}
    made = prune(net, data[0], ratio=0.5)
    found = reconstruct(made.model, net, made.plan, data)
    said = {note.split()[0] for note in found.notes}
    assert said == {"again.weight", "f.weight", "g.weight"}
    assert all("one behind another" in note for note in found.notes)
    assert [layer.layer for layer in found.layers if layer.method != "kept"] == ["out.weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        out: Tensor = (x + self.down(F.gelu(self.up(x)))) @ self.words.weight.T
        return out


def test_entries_of_an_embedding_are_not_said_to_read() -> None:
    net = Tied().eval()
    data = [torch.randint(0, 30, (16, 8), generator=torch.Generator().manual_seed(at)) for at in range(3)]
    made = prune(net, data[0], ratio=0.25)
    assert "words.weight" in made.plan.tensors
    plain = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 8)).eval()
    other = prune(plain, data[0], ratio=0.25)
    assert "words.weight reads" in " ".join(reconstruct(made.model, net, made.plan, data).notes)
    assert not reconstruct(other.model, plain, other.plan, data).notes


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_weights_that_a_norm_computes_are_told(norm: Callable[[nn.Module], nn.Module]) -> None:
    """With what to do: they are not refitted."""
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(6, 12)), nn.ReLU(), norm(nn.Linear(12, 3))).eval()
    data = [torch.randn(32, 6) for _ in range(2)]
    made = prune(net, data[0], ratio=0.5, data=data, reconstruct=True)
    assert made.reconstruction is not None
    assert any("take weight or spectral norm off" in note for note in made.reconstruction.notes)
