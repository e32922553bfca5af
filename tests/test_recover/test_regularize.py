from __future__ import annotations

from typing import Any

import pytest
import torch
from recover_kit import Batches, equal, network
from torch import Tensor, nn

from penjing.errors import RecipeError, RecoverError
from penjing.graph import GraphModel, trace
from penjing.prune import prune, sparsify
from penjing.recover import RecoverConfig, recover, train
from penjing.recover.regularize import make_regularizer, regularizer_names
from penjing.recover.regularize.slots import SlotGroup, slot_groups

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def groups_of(model: nn.Module) -> list[SlotGroup]:
    return slot_groups(model, IMAGES)


def norms(model: nn.Module) -> Tensor:
    params = dict(model.named_parameters())
    return torch.cat([group.norms(params) for group in groups_of(model)])


def trained(regularize: Any, epochs: int = 3, **options: Any) -> nn.Module:
    config = RecoverConfig.parse(
        {"epochs": epochs, "lr": 0.05, "weight_decay": 0.0, "regularize": regularize, **options}
    )
    return train(network(), Batches(), config).model


def test_slots_own_every_weight_that_goes_with_them() -> None:
    model = network(width=6)
    params = dict(model.named_parameters())
    channels, hidden = groups_of(model)
    # 9 weights and a bias of the convolution, two of the norm, 16 columns of the first linear layer
    assert channels.weights_S.tolist() == [9 + 1 + 2 + 16 * 12] * 6
    by_hand = torch.cat([params["0.weight"][2].flatten(), params["6.weight"][:, 32:48].flatten()])
    rest = torch.stack([params["0.bias"][2], params["1.weight"][2], params["1.bias"][2]])
    wanted = torch.cat([by_hand, rest]).double().norm()
    assert channels.norms(params)[2].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert hidden.size == 12


def test_scaling_slots_multiplies_their_norms_and_nothing_else() -> None:
    model = network()
    params = dict(model.named_parameters())
    channels = groups_of(model)[0]
    before = channels.norms(params)
    factor = torch.linspace(0.1, 2, channels.size, dtype=torch.float64)
    head = params["8.weight"].clone()
    channels.scale_(factor, params)
    assert torch.allclose(channels.norms(params), before * factor, rtol=1e-6)
    assert torch.equal(params["8.weight"], head)


SHRINKING = {
    "group_lasso": {"group_lasso": {"strength": 0.02}},
    "group_norm": {"group_norm": {"strength": 0.3}},
    "growing": {"growing": {"strength": 3.0}},
}


@pytest.mark.parametrize("regularize", SHRINKING.values(), ids=SHRINKING.keys())
def test_penalised_norms_fall_below_those_without(regularize: Any) -> None:
    free, held = norms(trained(())), norms(trained(regularize))
    assert held.sum() < 0.9 * free.sum()


def test_group_lasso_without_a_loss_that_resists_takes_the_same_off_every_norm() -> None:
    model = network()
    params = dict(model.named_parameters())
    state = groups_of(model)[:1]
    before, lasso = state[0].norms(params), make_regularizer("group_lasso", {"strength": 0.3})
    lasso.step_(params, state, 0.1)
    taken = before - state[0].norms(params)
    assert torch.allclose(taken, 0.03 * state[0].weights_S.sqrt(), rtol=1e-5)
    lasso.step_(params, state, 1e6)
    assert float(state[0].norms(params).max()) == 0


def test_group_lasso_leaves_exact_zeros_whose_removal_changes_nothing() -> None:
    model = trained({"group_lasso": {"strength": 0.12}}, epochs=6)
    channels, hidden = groups_of(model)
    params = dict(model.named_parameters())
    zeros = {group.id: int((group.norms(params) == 0).sum()) for group in (channels, hidden)}
    assert 0 < sum(zeros.values()) < channels.size + hidden.size
    ratios = {key: count / size for (key, count), size in zip(zeros.items(), (6, 12), strict=True) if count}
    small = prune(model, IMAGES, ratio=0.0, ratios=ratios)
    assert small.after["params"] < small.before["params"]
    assert torch.allclose(small.model(IMAGES), model(IMAGES), atol=1e-6)


def test_growing_empties_the_smallest_slots_only() -> None:
    start = network()
    params = dict(start.named_parameters())
    chosen = [g.norms(params).argsort(stable=True)[: g.size // 2] for g in groups_of(start)]
    config = {"growing": {"ratio": 0.5, "strength": 20.0}}
    model = trained(config, epochs=6, schedule="constant", lr=0.02)
    after = dict(model.named_parameters())
    for group, gone in zip(groups_of(model), chosen, strict=True):
        norm = group.norms(after)
        kept = torch.ones(group.size, dtype=torch.bool)
        kept[gone] = False
        assert float(norm[gone].max()) < 0.05 * float(norm[kept].mean())
    small = prune(model, IMAGES, ratio=0.5)
    assert torch.allclose(
        small.model(IMAGES), model(IMAGES), atol=0.05 * float(model(IMAGES).detach().abs().max())
    )


def test_slimming_shrinks_scales_of_norms_only() -> None:
    free, held = trained(()), trained({"slimming": {"strength": 0.2}})
    assert held.get_parameter("1.weight").abs().sum() < 0.8 * free.get_parameter("1.weight").abs().sum()
    with pytest.raises(RecoverError, match="needs batch norms"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), Batches(), RecoverConfig.parse(SLIM))


SLIM = {"regularize": "slimming"}


def test_slimming_sees_the_norms_of_a_traced_graph() -> None:
    options = {
        "epochs": 1,
        "dropout": 0.0,
        "precision": "fp32",
        "regularize": {"slimming": {"strength": 0.2}},
    }
    graph = GraphModel(trace(network().eval(), IMAGES))
    mine, its = (train(one, Batches(), RecoverConfig.parse(options)).model for one in (network(), graph))
    assert torch.allclose(mine.get_parameter("1.weight"), its.get_parameter("1.weight"), rtol=1e-4)


def test_soft_silences_slots_whose_removal_changes_nothing() -> None:
    model = trained({"soft": {"ratio": 0.5}})
    small = prune(model, IMAGES, ratio=0.5)
    assert small.after["params"] < 0.6 * small.before["params"]
    assert torch.allclose(small.model(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_masked_weights_stay_zero_through_recovery(method: Any) -> None:
    dense = network()
    sparse = sparsify(dense, 0.6, method=method, data=Batches(2))
    config = RecoverConfig.parse({"epochs": 2, "lr": 0.05, "regularize": "keep_zeros", "ema": 0.5})
    result = recover(sparse.model, dense, Batches(), config)
    params = dict(result.model.named_parameters())
    for name, mask in sparse.masks.items():
        assert bool((params[name][~mask] == 0).all())
        assert not torch.equal(params[name], sparse.model.get_parameter(name))
    # without it the zeros are trained away
    plain = recover(sparse.model, dense, Batches(), RecoverConfig(epochs=1, lr=0.05)).model
    assert int((plain.get_parameter("6.weight") == 0).sum()) < sparse.zeros["6.weight"] / 2


@pytest.mark.parametrize("name", regularizer_names())
def test_runs_are_the_same_every_time(name: str) -> None:
    assert equal(trained(name, epochs=2), trained(name, epochs=2))


def test_names_and_options_are_checked_early() -> None:
    with pytest.raises(RecipeError, match="did you mean 'group_lasso'"):
        RecoverConfig.parse({"regularize": "group_laso"})
    with pytest.raises(RecipeError, match="strenght"):
        RecoverConfig.parse({"regularize": {"slimming": {"strenght": 1}}})
    with pytest.raises(RecipeError, match="ratio"):
        RecoverConfig.parse({"regularize": {"soft": {"ratio": 1.5}}})
    again = RecoverConfig.parse(RecoverConfig.parse({"regularize": ["soft", "slimming"]}).to_dict())
    assert [term.name for term in again.regularize] == ["soft", "slimming"]


def test_a_network_without_groups_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(RecoverError, match="no group of slots"):
        train(model, Batches(), RecoverConfig.parse({"regularize": "group_lasso"}))
