"""What it is worth in recovery to hold every block to the original's: agreement with it, by weight.

A network is trained on some of the CIFAR-10 training images (ResNet-20 comes with weights that have seen all
of them), pruned by magnitude without a refit, and recovered with 0.1 · cross-entropy + 0.9 · KD and each
weight of the blocks' error. Judged on training images that were held out: unseen by all but the given
ResNet-20.

    python bench/held_blocks.py --network vit --images 12000 --epochs 3 --weights 0 10 40
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.data import open_data
from penjing.data.split import Loader, Split
from penjing.measure import count
from penjing.models import build
from penjing.models.weights import load_weights
from penjing.prune import Budget, prune
from penjing.recover import RecoverConfig, recover, train
from penjing.recover.augment import make_augment

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXAMPLE = torch.zeros(2, 3, 32, 32)
_ADAM = {"optimizer": "adamw", "lr": 1e-3}
OPTIONS: dict[str, dict[str, Any]] = {"resnet20": {}, "vit": _ADAM, "mobilenet": _ADAM}


class Block(nn.Module):
    """A block of a vision transformer with heads of 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` both."""
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, -1, 32).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Vit(nn.Module):
    """A vision transformer for small images: 64 patches of 4 × 4."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, width, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, 3, 32, 32]`` to scores ``[N, 10]``."""
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def mobilenet() -> nn.Module:
    """timm's MobileNetV2 of half the width, two strides less."""
    import timm

    model: Any = timm.create_model("mobilenetv2_050", num_classes=10)
    model.conv_stem.stride = model.blocks[1][0].conv_dw.stride = (1, 1)
    network: nn.Module = model
    return network


def original(
    name: str, data: Path, train_data: Loader, val: list[tuple[Tensor, Tensor]], epochs: int
) -> nn.Module:
    """The network with its weights: given, or trained here."""
    torch.manual_seed(0)
    if name == "resnet20":
        model = build("resnet20", 10, 3, 32)
        load_weights(model, data / "resnet20-cifar10.safetensors")
        return model.eval()
    config = RecoverConfig(epochs=epochs, optimizer="adamw", lr=2e-3, weight_decay=0.05)
    return train(Vit() if name == "vit" else mobilenet(), train_data, config, val=val).model


@torch.no_grad()
def compare(model: nn.Module, dense: nn.Module, val: list[tuple[Tensor, Tensor]]) -> str:
    """Accuracy, agreement with the original and KL divergence from it, in words."""
    scores, theirs = (torch.cat([net(x) for x, _ in val]) for net in (model.eval(), dense))
    labels = torch.cat([y for _, y in val])
    right, same = (float((scores.argmax(1) == other).float().mean()) for other in (labels, theirs.argmax(1)))
    divergence = F.kl_div(
        scores.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return (
        f"accuracy {right:.2%}, agreement {same:.2%}, divergence {float(divergence):.4f}, n = {len(labels)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--network", choices=list(OPTIONS), default="resnet20")
    parser.add_argument("--images", type=int, default=8000, help="training images")
    parser.add_argument("--macs", type=float, default=0.4, help="share that is kept")
    parser.add_argument("--train-epochs", type=int, default=10, help="of a network that is trained here")
    parser.add_argument("--epochs", type=int, default=2, help="of recovery")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 10.0, 40.0])
    args = parser.parse_args()
    bundle = open_data(args.data / "cifar10-train.parquet")
    assert isinstance(bundle.train, Split)
    assert isinstance(bundle.val, Split)
    images = bundle.train.subset(np.arange(args.images)).load()
    augment = make_augment("photos")
    feed = Loader(images, 64, shuffle=True, augment=augment, drop_last=True, mean=_MEAN, std=_STD)
    val = list(Loader(bundle.val, 250, mean=_MEAN, std=_STD))
    dense = original(args.network, args.data, feed, val, args.train_epochs)
    print(f"{args.network}: {compare(dense, dense, val)}", flush=True)
    pruned = prune(dense, _EXAMPLE, budget=Budget(macs=args.macs))
    kept = count(pruned.model, _EXAMPLE).num_macs / count(dense, _EXAMPLE).num_macs
    print(f"pruned to {kept:.3f} of the MACs: {compare(pruned.model, dense, val)}", flush=True)
    for weight in args.weights:
        losses = {"ce": 0.1, "kd": 0.9, "mse": {"weight": weight, "layers": "blocks"}}
        if not weight:
            del losses["mse"]
        config = RecoverConfig.parse({"epochs": args.epochs, "losses": losses, **OPTIONS[args.network]})
        began = time.process_time()
        done = recover(pruned.model, dense, feed, config, val=val, plan=pruned.plan)
        spent = time.process_time() - began
        print(f"blocks weigh {weight:g}: {compare(done.model, dense, val)}, {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
