"""Recovery in a training loop of one's own: prune once, train as always, the original as teacher."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import penjing as pj


def distil(student: nn.Module, teacher: nn.Module, batches: list, epochs: int, lr: float = 0.05) -> None:
    """A plain loop: cross-entropy and the teacher's answers (Hinton et al. 2015), at temperature 4."""
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9)
    teacher.eval()
    for _ in range(epochs):
        student.train()
        for x, y in batches:
            z = student(x)
            with torch.no_grad():
                soft = F.softmax(teacher(x) / 4, 1)
            loss = 0.1 * F.cross_entropy(z, y) + 0.9 * 16 * F.kl_div(
                F.log_softmax(z / 4, 1), soft, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    y = (x[:, :6].sum(1) > x[:, 6:].sum(1)).long()
    batches = [(x[i : i + 40], y[i : i + 40]) for i in range(0, 400, 40)]
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    original = pj.train(net, batches, pj.RecoverConfig(epochs=5, lr=0.1)).model

    small = pj.prune(original, x[:2], budget=pj.Budget(macs=0.3), scope="global")
    distil(small.model, original, batches, epochs=3)
    right = float((small.model.eval()(x).argmax(1) == y).float().mean())
    print(f"{small.before['macs']:,} → {small.after['macs']:,} MACs, {right:.1%} right")


if __name__ == "__main__":
    main()
