from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import DataError, PruneError
from penjing.prune import sparsify
from penjing.prune.moments import Moments
from penjing.prune.sparse_layers import sparsegpt, wanda
from penjing.prune.sparsity import Method

BY_INPUT: list[Method] = ["wanda", "sparsegpt"]


def rows(features: int, count: int = 400, *, mixed: bool = True, groups: int = 1) -> Tensor:
    """Input rows ``[G, R, F]``: correlated, of unequal scale; or independent and alike."""
    generator = torch.Generator().manual_seed(0)
    x_GRF = torch.randn(groups, count, features, generator=generator, dtype=torch.float64)
    if not mixed:
        q_RF: Tensor = torch.linalg.qr(x_GRF[0])[0]
        return q_RF[None].mul_(count**0.5)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    mixing /= features**0.5
    mixing.diagonal().add_(torch.linspace(0.1, 5, features, dtype=torch.float64))
    return x_GRF @ mixing


def moments_of(x_GRF: Tensor) -> Moments:
    moments = Moments(x_GRF.shape[0], x_GRF.shape[2], 0)
    moments.add(x_GRF, x_GRF[:, :, :0])
    return moments


def weights(outputs: int = 10, features: int = 24, groups: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(groups, outputs, features, generator=generator, dtype=torch.float64)


def test_with_independent_inputs_of_one_scale_both_are_magnitude() -> None:
    w_GOF, moments = weights(), moments_of(rows(24, mixed=False))
    smallest = w_GOF.abs().flatten().argsort()[:120]
    by_tensor = w_GOF.clone().flatten()
    by_tensor[smallest] = 0
    assert torch.allclose(sparsegpt(w_GOF, moments, 0.5, None).flatten(), by_tensor, atol=1e-9)
    order = w_GOF.abs().argsort(-1)[..., :12]
    assert torch.equal(wanda(w_GOF, moments, 0.5, None), w_GOF.scatter(-1, order, 0.0))


def test_a_column_that_is_always_zero_goes_first_with_wanda() -> None:
    x_GRF = rows(24)
    x_GRF[:, :, 5] = 0
    assert bool((wanda(weights(), moments_of(x_GRF), 0.05, None)[0, :, 5] == 0).all())


@pytest.mark.parametrize("nm", [None, (2, 4), (1, 8)])
def test_sparsegpt_keeps_the_output_closer_than_wanda_and_wanda_closer_than_magnitude(
    nm: tuple[int, int] | None,
) -> None:
    x_GRF, w_GOF = rows(48, groups=2), weights(30, 48, groups=2)
    moments = moments_of(x_GRF)
    alike = moments_of(rows(48, mixed=False))
    flat = Moments(2, 48, 0)
    flat.count, flat.xx_GFF = alike.count, alike.xx_GFF.expand(2, -1, -1).clone()

    def error(found: Tensor) -> float:
        return float(((found - w_GOF) @ x_GRF.transpose(1, 2)).square().sum())

    plain, by_norm = wanda(w_GOF, flat, 0.5, nm), wanda(w_GOF, moments, 0.5, nm)
    assert error(sparsegpt(w_GOF, moments, 0.5, nm)) < error(by_norm)
    assert error(by_norm) < error(plain)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.77])
def test_zeros_are_counted_exactly(ratio: float) -> None:
    w_GOF, moments = weights(7, 300), moments_of(rows(300, 900))
    assert int((sparsegpt(w_GOF, moments, ratio, None) == 0).sum()) == int(ratio * w_GOF.numel() + 1e-9)
    assert int((wanda(w_GOF, moments, ratio, None) == 0).sum()) == 7 * int(ratio * 300 + 1e-9)
    for method in (wanda, sparsegpt):
        found = method(w_GOF, moments, ratio, (2, 4))
        assert bool(((found.reshape(-1, 4) == 0).sum(1) == 2).all())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(4 * 81, 10),
    ).eval()


def images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    coarse = (torch.randn(32, 4, 2, 2, generator=generator) for _ in range(count))
    scale = torch.tensor([0.1, 2.0, 1.0, 0.3])[:, None, None]
    return [scale * nn.functional.interpolate(x, scale_factor=4, mode="bilinear") for x in coarse]


@pytest.mark.parametrize("method", BY_INPUT)
@pytest.mark.parametrize("nm", [None, (2, 4)])
def test_a_network_keeps_its_output_better_than_by_magnitude(
    method: Method, nm: tuple[int, int] | None
) -> None:
    model, data = net(), images()
    by_input = sparsify(model, 0.5, nm=nm, method=method, data=data)
    plain = sparsify(model, 0.5, nm=nm)
    with torch.no_grad():
        errors = [
            sum(float((one.model(x) - model(x)).square().sum()) for x in data) for one in (by_input, plain)
        ]
    assert errors[0] < errors[1]
    assert by_input.masks.keys() == plain.masks.keys()
    assert list(by_input.notes) == ["5.weight is masked by magnitude"]
    for name, mask in by_input.masks.items():
        weight = by_input.model.get_parameter(name)
        assert by_input.zeros[name] == int((weight == 0).sum()) == int((~mask).sum())
        assert by_input.zeros[name] == (mask.numel() // 2)
    told = by_input.to_dict()
    assert told["zeros"] == sum(by_input.zeros.values())
    assert "do not make dense kernels faster" in told["speed"]


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(PruneError, match="needs data"):
        sparsify(net(), 0.5, method="wanda")
    with pytest.raises(PruneError, match="unknown method"):
        sparsify(net(), 0.5, method="sparse-gpt")  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="5:4"):
        sparsify(net(), nm=(5, 4))
    with pytest.raises(PruneError, match="not in"):
        sparsify(net(), 1.0, method="wanda", data=images())
    with pytest.raises(DataError, match="fewer than two"):
        sparsify(net(), 0.5, method="wanda", data=[])
    spoilt = images()
    spoilt[1][3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        sparsify(net(), 0.5, method="sparsegpt", data=spoilt)
    odd = sparsify(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8)), nm=(2, 4))
    assert list(odd.masks) == ["1.weight"]
    assert odd.notes == ("0.weight is left out: its fan-in is not a multiple of 4",)


def test_the_lengths_of_normed_filters_stay() -> None:
    sparse = sparsify(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), 0.5)
    assert list(sparse.masks) == ["parametrizations.weight.original1"]
    weight = sparse.model.weight
    assert isinstance(weight, Tensor)
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert bool(weight.flatten(1).any(1).all())
