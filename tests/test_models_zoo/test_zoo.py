from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penjing.data import Loader, Split, open_data
from penjing.errors import RecipeError
from penjing.measure import accuracy
from penjing.models import build, names

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = [name for name in names() if name != "glyph_vgg"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 24)])
def test_networks_map_images_to_logits_and_train(name: str, channels: int, size: int) -> None:
    model = build(name, 7, channels, size)
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 7)
    logits.square().mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_fixes_the_weights_and_leaves_the_global_state(name: str) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (build(name, 5, 1, 16, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_demo_network_has_100_million_parameters_most_of_them_linear() -> None:
    model = build("glyph_vgg", 100, 1, 32)
    total = sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters())
    assert total >= 100_000_000
    assert linear / total > 0.95


def test_options_change_the_network() -> None:
    model = build("vgg_small", 3, 1, 32, widths=(4, 8), convs=(1, 2), hidden=(10,), norm_hidden=True)
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() > 1]
    assert shapes == [(4, 1, 3, 3), (8, 4, 3, 3), (8, 8, 3, 3), (10, 8 * 8 * 8), (3, 10)]


def test_mistakes_are_named_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'glyph_vgg'"):
        build("glyph_vg", 10)
    with pytest.raises(RecipeError, match=r"no option 'width'.*Did you mean 'widths'"):
        build("vgg_small", 10, width=3)
    with pytest.raises(RecipeError, match="It takes none"):
        build("resnet20", 10, widths=3)
    with pytest.raises(RecipeError, match="num_classes is 0"):
        build("mlp", 0)
    with pytest.raises(RecipeError, match="halve an image of 4 pixels"):
        build("vgg_small", 10, 1, 4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet56", marks=pytest.mark.slow)])
def test_published_checkpoints_load_and_classify(name: str) -> None:
    file, data = SHARED / f"{name}-cifar10.safetensors", SHARED / "cifar10-test.parquet"
    if not file.is_file() or not data.is_file():
        pytest.skip("the checkpoints are not beside the project")
    model = build(name, 10)
    model.load_state_dict(load_file(file))
    split = open_data(data).val  # a tenth of the file, class by class
    assert isinstance(split, Split)
    found = accuracy(model, Loader(split, 250, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert found.high > 0.917
    assert found.value > 0.88
