"""The average of the weights, beside buffers that a mean cannot take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penjing.recover import RecoverConfig, train


class Causal(nn.Module):
    """Attention that a mask of -∞, a buffer, keeps from looking ahead."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3]``."""
        x = self.norm(x)
        mixed = (x @ x.mT + self.mask).softmax(-1) @ x
        return self.head(mixed.mean(1))  # type: ignore[no-any-return]


def test_masks_of_infinities_stay_what_they_are() -> None:
    """The way from -∞ to -∞ is NaN, and the averaged network's answers were with it."""
    torch.manual_seed(0)
    model = Causal()
    data = [(torch.randn(8, 6, 8), torch.randint(0, 3, (8,))) for _ in range(4)]
    found = train(model, data, RecoverConfig(epochs=2, ema=0.8)).model
    assert torch.equal(found.get_buffer("mask"), model.mask)
    assert not torch.equal(found.get_buffer("norm.running_mean"), torch.zeros(6))
    assert bool(found(data[0][0]).isfinite().all())
