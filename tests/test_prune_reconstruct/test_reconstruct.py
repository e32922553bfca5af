from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import DataError, PruneError
from penjing.prune import Budget, prune
from penjing.prune.recalibrate import rebase_, recalibrate
from penjing.prune.reconstruct import ReconstructConfig, reconstruct


def images(count: int = 4, size: int = 32, channels: int = 3, seed: int = 0) -> list[Tensor]:
    """Batches of smooth random images: channels and pixels hang together, as in real ones."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.randn(size, channels, 4, 4, generator=generator) for _ in range(count))
    return [F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False) for x in coarse]


def settle(model: nn.Module, data: list[Tensor]) -> nn.Module:
    """Give the batch norms statistics and the norms scales as a trained network has them."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return recalibrate(model, data).eval()


def vgg() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(48, 10),
    )


class Depthwise(nn.Module):
    """A grouped and a depthwise convolution, a linear attention projection, a residual with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1)
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.point(F.relu(self.deep(F.relu(self.grouped(x))))).flatten(2).transpose(1, 2)
        x = x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))
        out: Tensor = self.head(x.mean(1))
        return out


class Block(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stride = out // width
        self.conv1 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.pad = (out - width) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + shortcut)


class Residual(nn.Module):
    """Residual blocks, one of them with a strided, zero-padded shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(Block(12, 12), Block(12, 24), Block(24, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return out


def error(a: nn.Module, b: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        return float(sum((a(x) - b(x)).square().sum() for x in data))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "residual": Residual,
    "grouped and transformer": Depthwise,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_error_falls_on_data_the_fit_has_not_seen(make: Callable[[], nn.Module]) -> None:
    data, unseen = images(), images(seed=9)
    teacher = settle(make().eval(), data)
    pruned = prune(teacher, data[0][:2], ratio=0.3)
    before = copy.deepcopy(pruned.model.state_dict())
    original = copy.deepcopy(teacher.state_dict())
    result = reconstruct(pruned.model, teacher, pruned.plan, data)
    assert error(result.model, teacher, unseen) < 0.7 * error(pruned.model, teacher, unseen)
    assert result.error_after < result.error_before
    assert result.layers
    assert not result.notes
    assert all(layer.error_after <= layer.error_before for layer in result.layers)
    json.dumps(result.to_dict(), allow_nan=False)
    # neither argument is changed
    assert all(torch.equal(before[name], value) for name, value in pruned.model.state_dict().items())
    assert all(torch.equal(original[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("max_features", [2560, 8], ids=["moments", "samples"])
def test_channels_that_are_combinations_of_kept_ones_are_recovered_exactly(max_features: int) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(20, 24), nn.Linear(24, 16), nn.Linear(16, 5)).double()
    with (
        torch.no_grad()
    ):  # rows 12… of the first layer, and 8… of the second, are combinations of those before
        for layer, kept in ((teacher[1], 12), (teacher[2], 8)):
            assert isinstance(layer, nn.Linear)
            mixing = torch.randn(len(layer.weight) - kept, kept).double() / kept
            layer.weight[kept:] = mixing @ layer.weight[:kept]
            layer.bias[kept:] = mixing @ layer.bias[:kept] + 1.5  # and a constant, for the bias to take up
    plan = {
        "1.weight": {0: range(12)},
        "1.bias": {0: range(12)},
        "2.weight": {0: range(8), 1: range(12)},
        "2.bias": {0: range(8)},
        "3.weight": {1: range(8)},
    }
    student = nn.Sequential(nn.Flatten(), nn.Linear(20, 12), nn.Linear(12, 8), nn.Linear(8, 5)).double()
    state = teacher.state_dict()
    for name, dims in plan.items():
        for dim, kept_range in dims.items():
            state[name] = state[name].index_select(dim, torch.tensor(list(kept_range)))
    student.load_state_dict(state)
    data = [torch.randn(40, 20).double() for _ in range(4)]
    config = ReconstructConfig(ridges=(1e-9,), max_features=max_features)
    result = reconstruct(student, teacher, plan, data, config)
    assert result.error_before > 0.1
    assert result.error_after < 1e-10
    x = torch.randn(50, 20).double()
    torch.testing.assert_close(result.model(x), teacher(x), rtol=1e-4, atol=1e-4)


def test_an_unpruned_student_stays_as_it_is() -> None:
    data = images(2)
    teacher = settle(vgg().eval(), data)
    config = ReconstructConfig(layers="all", rebase_norms=False)
    result = reconstruct(teacher, teacher, {}, data, config)
    assert result.layers == ()  # there is nothing to fit
    assert result.error_after == result.error_before == 0
    assert all(
        torch.equal(a, b) for a, b in zip(result.model.parameters(), teacher.parameters(), strict=True)
    )


def test_correcting_the_drift_of_the_shortcut_beats_ignoring_it() -> None:
    data, unseen = images(6), images(seed=9)
    teacher = settle(Residual().eval(), data)
    inner = ["bn1.weight", "*.bn2.weight"]
    pruned = prune(teacher, data[0][:2], ratio=0.4, ignore=inner)
    readers = ReconstructConfig(layers="pruned")
    with_drift = reconstruct(pruned.model, teacher, pruned.plan, data, readers)
    readers = ReconstructConfig(layers="pruned", drift=False)
    without = reconstruct(pruned.model, teacher, pruned.plan, data, readers)
    assert {layer.target for layer in with_drift.layers} == {"sum"}
    assert {layer.target for layer in without.layers} == {"output"}
    assert error(with_drift.model, teacher, unseen) < error(without.model, teacher, unseen)
    # layers that read whole but drifted inputs have something to make good, too
    everything = reconstruct(pruned.model, teacher, pruned.plan, data)
    assert len(everything.layers) > len(with_drift.layers)
    assert error(everything.model, teacher, unseen) < error(with_drift.model, teacher, unseen)


@pytest.mark.parametrize("make", [vgg, Residual])
def test_looking_through_the_relu_beats_meeting_what_it_cuts_off(make: Callable[[], nn.Module]) -> None:
    data, unseen = images(6), images(seed=9)
    teacher = settle(make().eval(), data)
    pruned = prune(teacher, data[0][:2], ratio=0.4)
    seeing = reconstruct(pruned.model, teacher, pruned.plan, data)
    blind = reconstruct(pruned.model, teacher, pruned.plan, data, ReconstructConfig(through_relu=False))
    assert error(seeing.model, teacher, unseen) < error(blind.model, teacher, unseen)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_blocks_fitted_as_a_whole_come_closer_on_data_they_have_not_seen(
    make: Callable[[], nn.Module],
) -> None:
    data, unseen = images(8), images(seed=9)
    teacher = settle(make().eval(), data)
    pruned = prune(teacher, data[0][:2], ratios={"*:*": 0.4})  # ids: every factor of a product, too
    layers = reconstruct(pruned.model, teacher, pruned.plan, data)
    blocks = reconstruct(pruned.model, teacher, pruned.plan, data, ReconstructConfig(block_steps=100))
    assert error(blocks.model, teacher, unseen) < error(layers.model, teacher, unseen)
    assert not layers.blocks
    assert all(block.error_after <= block.error_before for block in blocks.blocks)
    assert any(block.error_after < 0.95 * block.error_before for block in blocks.blocks)
    assert all(not p.requires_grad or p.grad is None for p in blocks.model.parameters())
    json.dumps(blocks.to_dict(), allow_nan=False)


def test_a_shuffle_written_anew_does_not_hinder_the_refit() -> None:
    """Pruning writes a shuffle of unequal groups as an index, which the original has not."""

    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(24, 5)
            self.deep, self.point = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 24, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            n, c, h, w = x.shape
            x = x.reshape(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
            return self.head(F.relu(self.point(F.relu(self.deep(x)))).mean((2, 3)))  # type: ignore[no-any-return]

    data, unseen = images(6), images(seed=9)
    teacher = Shuffle().eval()
    pruned = prune(teacher, data[0][:2], ratio=0.4)
    assert any("index" in name for name, _ in pruned.model.named_buffers())
    refitted = reconstruct(pruned.model, teacher, pruned.plan, data)
    assert {layer.layer for layer in refitted.layers} == {
        "stem.weight", "deep.weight", "point.weight", "head.weight",
    }  # fmt: skip
    assert error(refitted.model, teacher, unseen) < 0.5 * error(pruned.model, teacher, unseen)


def test_rebased_norms_give_the_same_function_and_hold_the_true_statistics() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6).eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    x = 3 * torch.randn(8, 6, 5, 5) + 2
    before = norm(x)
    rebase_(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, [x[:3], x[3:]])
    torch.testing.assert_close(norm(x), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.train()(x), before, rtol=1e-3, atol=1e-4)  # training starts from it


def test_recalibration_measures_the_data() -> None:
    data = images(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    done = recalibrate(model, data)
    with torch.no_grad():
        y = torch.stack([model[0](x) for x in data])
    expected = y.mean((0, 1, 3, 4))
    torch.testing.assert_close(done[1].running_mean, expected, rtol=1e-4, atol=1e-5)  # type: ignore[index]
    assert torch.equal(model[1].running_mean, torch.zeros(4))  # type: ignore[arg-type]
    assert done.training
    assert done[1].momentum == 0.1  # type: ignore[index]


def test_wrong_arguments_are_named() -> None:
    data = images(2)
    teacher = vgg().eval()
    pruned = prune(teacher, data[0][:2], ratio=0.3)
    with pytest.raises(DataError, match="fewer than two samples"):
        reconstruct(pruned.model, teacher, pruned.plan, [])
    with pytest.raises(DataError, match="NaN"):
        reconstruct(pruned.model, teacher, pruned.plan, [data[0] * float("nan")])
    with pytest.raises(PruneError, match=r"different things|operations"):
        reconstruct(pruned.model, nn.Sequential(*list(vgg())[:-2]), pruned.plan, data)
    with pytest.raises(PruneError, match="the plan keeps"):
        reconstruct(pruned.model, teacher, {"4.weight": {1: range(8)}}, data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refitted_about_as_well_as_single(dtype: torch.dtype) -> None:
    """Through the ReLU, too: the same network in float32 bounds what can be reached."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(256, 6)
    left = []
    for kind in (torch.float32, dtype):
        fitted = prune(net.to(kind), x[:2].to(kind), data=[x.to(kind)], reconstruct=True).reconstruction
        assert fitted.error_after < fitted.error_before / 2
        left.append(fitted.error_after)
    assert left[1] < 1.1 * left[0]


def test_samples_that_come_class_by_class_are_told_wherever_they_are_measured_on() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data = [(torch.randn(16, 6), torch.full((16,), label // 4)) for label in range(16)]
    said: list[str] = []
    made = prune(
        model,
        data[0][0],
        criterion="obs",
        scope="sensitivity",
        budget=Budget(params=0.6),
        data=data,
        reconstruct={"max_samples": 64},
        listen=lambda event: said.append(event.message) if event.kind == "warning" else None,
    )
    told = [line for line in said if "class by class (label 0 alone)" in line]
    assert len(told) == 2  # of the widths, and of the refit; the scores take all there is
    assert made.reconstruction is not None
    assert told[-1] in made.reconstruction.notes
