"""Ops across a pruned axis: the pruned network is the masked original, and nothing is frozen for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.graph import couple, trace
from penjing.prune import prune
from penjing.prune.masked import masked_equivalence

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

OPS = [
    *("h + h.median(1, keepdim=True)[0]", "h + h.nanmedian(1, keepdim=True)[0]", "h + h.median()"),
    *("h + h.quantile(0.3, 1, keepdim=True)", "h + h.nanquantile(0.3, 0, keepdim=True)"),
    *("h + h.quantile(0.3)", "h + h.quantile(torch.tensor([0.2, 0.7]), dim=1, keepdim=True).sum(0)"),
    *("h + torch.round(4 * h).mode(1, keepdim=True)[0]", "h + torch.round(4 * h).mode()[0][:, None]"),
    *("h * torch.cdist(h, h + 1).mean()", "h * torch.pdist(h).mean()"),
    *("h * F.cosine_similarity(h, h + 1)[:, None]", "h * F.pairwise_distance(h, h + 1)[:, None]"),
    *("h * F.mse_loss(h, h + 1)", "h * F.l1_loss(h, 1 - h, reduction='sum') / 99"),
    *("h * F.smooth_l1_loss(h, 1 - h, reduction='none')", "h * F.huber_loss(h, h.exp())"),
    *("h * F.binary_cross_entropy_with_logits(h, h.sigmoid())", "h * F.poisson_nll_loss(h, h + 1)"),
    *("h * F.binary_cross_entropy(h.sigmoid(), (h + 1).sigmoid())",),
    *("h * F.kl_div(F.log_softmax(h, 1), F.softmax(2 * h, 1), reduction='batchmean')",),
    *("torch.special.ndtr(h)", "torch.polygamma(1, h + 1)", "torch.special.gammainc(h + 1, h)"),
    *("torch.lgamma(h + 1)", "torch.special.psi(h + 1)", "torch.erfinv(h.tanh())"),
]


class Net(nn.Module):
    """One op between two layers."""

    def __init__(self, code: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.code = nn.Linear(6, 16), nn.Linear(16, 4), code

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        result: Tensor = self.b(eval(self.code, {"torch": torch, "F": F, "h": h}))
        return result


@pytest.mark.parametrize("code", OPS)
def test_what_is_across_an_axis_is_across_its_kept_slots(code: str) -> None:
    model = Net(code).eval()
    made = prune(model, X, 0.5)
    assert made.after["params"] < 0.6 * made.before["params"]
    assert masked_equivalence(model, made, X) < 1e-4


class Own(nn.Module):
    """Gives its own loss beside its scores."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.loss = nn.Linear(6, 16), nn.Linear(16, 4), loss

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.b(torch.relu(self.a(x)))
        if self.loss == "nll":
            return F.nll_loss(F.log_softmax(scores, 1), labels), scores
        target = F.one_hot(labels, 4).float() if self.loss == "probabilities" else labels
        return F.cross_entropy(scores, target, weight=torch.arange(1.0, 5.0), reduction="sum"), scores


@pytest.mark.parametrize("loss", ["labels", "probabilities", "nll"])
def test_a_network_with_its_own_loss_is_pruned_up_to_its_classes(loss: str) -> None:
    model, inputs = Own(loss).eval(), (X, torch.arange(8) % 4)
    made = prune(model, inputs, 0.5)
    assert not [frozen for frozen in made.frozen if frozen.kind == "unsolved"]
    assert made.after["params"] < 0.6 * made.before["params"]
    assert masked_equivalence(model, made, inputs) < 1e-4


def test_the_classes_of_a_loss_stay_where_it_is_all_that_is_given() -> None:
    class Alone(Own):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, labels)[0]

    coupling = couple(trace(Alone("labels").eval(), (X, torch.arange(8) % 4)))
    assert [group.size for group in coupling.groups] == [16]
    assert any("classes of a loss" in frozen.reason for frozen in coupling.frozen)
