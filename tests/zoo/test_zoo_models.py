"""Real architectures with random weights at small input sizes: everything the zoo bench checks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from penjing.graph import couple, trace
from penjing.prune import allocate, make_criterion, masked_equivalence, prune, prune_slots
from penjing.prune.criteria import Material

ROOT = Path(__file__).parents[2]


def bench() -> ModuleType:
    """The bench as a module: its check of one model is the check here."""
    name = "zoo_bench"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / "zoo.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


QUICK = {
    "torchvision:mobilenet_v3_small": (2, 3, 64, 64),
    "torchvision:shufflenet_v2_x0_5": (2, 3, 64, 64),
    "torchvision:squeezenet1_1": (2, 3, 64, 64),
    "torchvision:resnet18": (2, 3, 64, 64),
    "timm:vit_tiny_patch16_224": (2, 3, 224, 224),
}
SLOW = {
    "torchvision:densenet121": (2, 3, 64, 64),
    "torchvision:googlenet": (2, 3, 128, 128),
    "torchvision:lraspp_mobilenet_v3_large": (2, 3, 128, 128),
    "timm:swin_tiny_patch4_window7_224": (2, 3, 224, 224),
    "timm:convnext_atto": (2, 3, 64, 64),
    "timm:resnest14d": (2, 3, 64, 64),
    "timm:efficientvit_b0": (2, 3, 64, 64),
}


def check(key: str, shape: tuple[int, ...]) -> dict[str, Any]:
    source, name = key.split(":")
    pytest.importorskip(source)
    kind = "seg" if name.startswith("lraspp") else "cls"
    row: dict[str, Any] = bench().check(
        {"source": source, "name": name, "kind": kind, "input": shape}, 0.5, False
    )
    assert not row["failure"], row["failure"]
    return row


@pytest.mark.parametrize("key", QUICK)
def test_quick(key: str) -> None:
    row = check(key, QUICK[key])
    assert row["ok"], row
    assert row["removed"] >= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("key", SLOW)
def test_slow(key: str) -> None:
    row = check(key, SLOW[key])
    assert row["ok"], row
    assert row["removed"] >= 0.4  # of GoogLeNet, too: half of it are classifiers that only training reads


def test_cifar_resnet_with_zero_padded_shortcuts() -> None:
    from penjing.models import build

    model = build("resnet20", num_classes=10, in_channels=3, image_size=32)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = prune(model, x, criterion="random")
    assert result.after["params"] <= 0.6 * result.before["params"]
    assert masked_equivalence(model, result, x) <= 1e-4


def test_time_does_not_grow_with_width() -> None:
    """Planning works on axes, not channels: a wider network takes about the same time."""
    import time

    from small_wide import wide

    def seconds(width: int) -> tuple[int, float]:
        model, x = wide(width)
        graph = trace(model, x)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            groups = couple(graph).groups
            best = min(best, time.process_time() - start)
        return len(groups), best

    (few, narrow), (many, broad) = seconds(16), seconds(256)
    assert few == many
    assert broad <= 3 * narrow + 0.02


def test_pruning_to_chosen_slots_is_what_prune_does() -> None:
    from penjing.models import build

    model = build("resnet20", num_classes=10, in_channels=3, image_size=32)
    x = torch.randn(2, 3, 32, 32)
    graph = trace(model, x)
    coupling = couple(graph)
    kept = allocate(coupling.groups, make_criterion("magnitude").scores(Material(model, graph, coupling)))
    ours = prune_slots(model, x, graph, coupling, kept).model.state_dict()
    theirs = prune(model, x).model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
