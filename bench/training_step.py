"""Images a second of the recovery loop beside a plain fp32 PyTorch loop, on one network and the same batches.

    python bench/training_step.py --depth 56 --rounds 4 --threads 1

Both train with cross-entropy and SGD with momentum, on noise: only time is measured. The loops take turns,
and the best turn of each counts. What `precision="auto"` would choose is printed too.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.models import build
from penjing.recover import RecoverConfig, recover
from penjing.recover.precision import can_gain, choose, speedup

Batches = list[tuple[Tensor, Tensor]]


def plain(model: nn.Module, batches: Batches) -> float:
    """Images a second of the loop that a tutorial would show."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    began = time.perf_counter()
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return sum(len(y) for _, y in batches) / (time.perf_counter() - began)


def ours(model: nn.Module, batches: Batches, precision: str) -> float:
    """Images a second of `penjing.recover`, one epoch."""
    config = RecoverConfig.parse(
        {"epochs": 1, "lr": 1e-3, "precision": precision, "recalibrate": 0, "losses": {"ce": 1.0}}
    )
    return float(recover(model, None, batches, config).timing[0]["samples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=56, choices=(20, 56))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(f"resnet{args.depth}", 10, 3, 32)
    batches = [
        (torch.randn(args.batch_size, 3, 32, 32), torch.randint(0, 10, (args.batch_size,)))
        for _ in range(args.batches)
    ]
    device = torch.device("cpu")
    precisions = ["fp32", *(["bf16"] if can_gain(device) else [])]
    best: dict[str, float] = {}
    for _ in range(args.rounds):
        found = {"plain fp32 loop": plain(model, batches)}
        found |= {f"recover, {name}": ours(model, batches, name) for name in precisions}
        best = {name: max(rate, best.get(name, 0.0)) for name, rate in found.items()}
    for name, rate in best.items():
        print(f"{name:18} {rate:8.1f} images/s  {rate / best['plain fp32 loop']:.2f}x")
    if can_gain(device):
        x = batches[0][0].contiguous(memory_format=torch.channels_last)
        probe = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        gain = speedup(probe, lambda asked: asked(x), device)
        print(f"auto: bf16 {gain:.2f} times as fast as fp32, so {choose(gain)}")


if __name__ == "__main__":
    main()
