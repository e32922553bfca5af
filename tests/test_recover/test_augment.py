from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penjing.errors import RecipeError
from penjing.recover.augment import (
    Augmentation,
    Compose,
    Photometric,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    make_augment,
)
from penjing.recover.mix import mix

ALL: list[Augmentation] = [
    RandomAffine(),
    RandomCrop(),
    RandomCrop(2, "reflect"),
    RandomResizedCrop(),
    RandomFlip(),
    RandomErasing(1.0),
    Photometric(),
    RandAugment(3, 1.0, mirror=True),
    Compose((RandomCrop(), RandomFlip())),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int = 0) -> Tensor:
    return torch.rand(16, 3, 12, 10, generator=seeded(seed))


@pytest.mark.parametrize("augment", ALL, ids=repr)
def test_same_seed_same_batch_shape_kept_range_kept_input_kept(augment: Augmentation) -> None:
    x_NCHW = batch()
    one, two, other = augment(x_NCHW, seeded()), augment(x_NCHW, seeded()), augment(x_NCHW, seeded(1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(x_NCHW, batch())
    assert one.shape == x_NCHW.shape
    assert one.dtype == x_NCHW.dtype
    assert float(one.min()) >= -1e-6
    assert float(one.max()) <= 1 + 1e-6


@pytest.mark.parametrize(
    "still",
    [RandomAffine(0, 0, 0, 0), RandomCrop(0), RandomFlip(0), RandomErasing(0), Photometric(0, 0, 0)]
    + [RandomResizedCrop(1, 1)],
    ids=repr,
)
def test_nothing_asked_nothing_done(still: Augmentation) -> None:
    torch.testing.assert_close(still(batch(), seeded()), batch(), rtol=0, atol=1e-5)


def test_flip_twice_is_the_identity_and_crop_is_a_shift() -> None:
    x_NCHW = batch()
    assert torch.equal(RandomFlip(1)(RandomFlip(1)(x_NCHW, seeded()), seeded()), x_NCHW)
    cropped = RandomCrop(1)(x_NCHW, seeded())
    padded = torch.nn.functional.pad(x_NCHW, (1, 1, 1, 1))
    for image, source in zip(cropped, padded, strict=True):
        windows = [source[:, i : i + 12, j : j + 10] for i in range(3) for j in range(3)]
        assert any(torch.equal(image, window) for window in windows)


def test_a_resized_crop_is_a_part_of_the_asked_area_and_shape() -> None:
    height, width = 30, 30
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x_NCHW = torch.stack((rows, columns)).float().expand(500, 2, height, width)
    y_NCHW = RandomResizedCrop(0.3, 1.5)(x_NCHW, seeded())
    # inside, what was a ramp of one a pixel is a ramp of the part's share of the side
    high_N = (y_NCHW[:, 0, 20, 15] - y_NCHW[:, 0, 10, 15]) / 10
    wide_N = (y_NCHW[:, 1, 15, 20] - y_NCHW[:, 1, 15, 10]) / 10
    torch.testing.assert_close(y_NCHW[:, 0, 15, 20], y_NCHW[:, 0, 15, 10])  # nothing is turned
    area_N, shape_N = high_N * wide_N, wide_N / high_N
    assert float(area_N.min()) > 0.3 - 1e-4
    assert float(area_N.max()) < 1 + 1e-4
    assert float(area_N.mean()) == pytest.approx(0.65, abs=0.03)
    assert float(shape_N.max()) < 1.5 + 1e-4
    assert float(shape_N.min()) > 1 / 1.5 - 1e-4
    assert float(y_NCHW.min()) < 0.1  # and every place of the image is met
    assert float(y_NCHW.max()) > 28.9


def test_a_quarter_turn_on_a_square_is_a_rotation() -> None:
    x_NCHW = torch.rand(1, 1, 8, 8, generator=seeded())
    turn = RandomAffine(90, 0, 0, 0, "zeros")
    turned = [turn(x_NCHW, seeded(seed)) for seed in range(400)]
    nearest = min(float((image - x_NCHW.rot90(1, (2, 3))).abs().mean()) for image in turned)
    assert nearest < 0.03  # some draw comes close to the full angle


def test_erasing_covers_the_asked_share() -> None:
    x_NCHW = torch.rand(400, 1, 40, 40, generator=seeded())
    erased = RandomErasing(1.0, (0.1, 0.1), 2.0)(x_NCHW, seeded())
    share = (erased != x_NCHW).float().mean((1, 2, 3))
    assert float(share.mean()) == pytest.approx(0.1, abs=0.01)
    assert float(
        (RandomErasing(0.3)(x_NCHW, seeded()) != x_NCHW).flatten(1).any(1).float().mean()
    ) == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}], ids=str)
def test_mixing_keeps_probabilities_and_says_what_it_did(options: dict[str, float]) -> None:
    # constant images of value = label, so a mixed image's mean tells its share of each label
    y_N = torch.arange(6)
    x_NCHW = y_N.float()[:, None, None, None].expand(6, 1, 8, 8)
    for seed in range(20):
        mixed, target_NK = mix(x_NCHW, y_N, 6, seeded(seed), **options)
        assert target_NK is not None
        torch.testing.assert_close(target_NK.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), target_NK @ y_N.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(
        mix(x_NCHW, y_N, 6, seeded(), **options)[0], mix(x_NCHW, y_N, 6, seeded(), **options)[0]
    )


def test_names() -> None:
    assert make_augment("flip", {"chance": 0.25}) == RandomFlip(0.25)
    assert make_augment("photos") == Compose((RandomCrop(), RandomFlip()))
    with pytest.raises(RecipeError, match="'photo' is not known"):
        make_augment("photo")
    with pytest.raises(RecipeError, match="It takes chance"):
        make_augment("flip", {"odds": 0.5})
    assert make_augment("erasing", {"area": [0.1, 0.2]}) == RandomErasing(area=(0.1, 0.2))
    for chance in (True, "often"):
        with pytest.raises(RecipeError, match=f"chance is {chance!r}"):
            make_augment("flip", {"chance": chance})
    for options in ({"magnitude": 9}, {"number": 0}):
        with pytest.raises(RecipeError, match="a magnitude from 0 to 1"):
            make_augment("randaugment", options)


def test_a_crop_that_cannot_be_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"with 10 pixels, and images are 12×10.*padding below 10"):
        RandomCrop(10, "reflect")(batch(), seeded())
    with pytest.raises(RecipeError, match=r"smallest 0\.0 and aspect"):
        make_augment("resized_crop", {"smallest": 0})
    with pytest.raises(RecipeError, match="mode is 'edge'"):
        make_augment("crop", {"mode": "edge"})
