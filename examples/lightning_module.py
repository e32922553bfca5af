"""Recovery by PyTorch Lightning: the pruned network in a `LightningModule`, the original as its teacher.

``pip install lightning``, then ``python examples/lightning_module.py``.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj

TEMPERATURE = 4.0


class Recovery(lightning.LightningModule):
    """Cross-entropy and the teacher's answers (Hinton et al. 2015).

    The teacher is kept out of the module's own parameters, so that it is neither trained nor saved.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.student, self.lr = student, lr
        self._teacher = [teacher.eval()]

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        z = self.student(x)
        with torch.no_grad():
            soft = F.softmax(self._teacher[0].to(self.device)(x) / TEMPERATURE, 1)
        kept = F.kl_div(F.log_softmax(z / TEMPERATURE, 1), soft, reduction="batchmean")
        return 0.1 * F.cross_entropy(z, y) + 0.9 * TEMPERATURE**2 * kept

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def main(epochs: int = 3) -> float:
    """Train, prune, recover; gives the share answered right."""
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    y = (x[:, :6].sum(1) > x[:, 6:].sum(1)).long()
    batches = DataLoader(TensorDataset(x, y), batch_size=40, shuffle=True)
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    original = pj.train(net, [(x, y)] * 10, pj.RecoverConfig(epochs=5, lr=0.1)).model

    small = pj.prune(original, x[:2], budget=pj.Budget(macs=0.3), scope="global")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Recovery(small.model.train(), original), batches)
    right = float((small.model.eval()(x).argmax(1) == y).float().mean())
    print(f"{small.in_short().title}; {right:.1%} right")
    return right


if __name__ == "__main__":
    main()
