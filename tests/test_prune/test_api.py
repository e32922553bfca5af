"""`prune`, `apply` and `apply_` as a user calls them."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from penjing.errors import DataError, PenjingError, PruneError, TraceError
from penjing.events import Event
from penjing.graph import GraphModel, couple, trace
from penjing.measure import count
from penjing.prune import Budget, Plan, apply, apply_, masked_equivalence, prune
from penjing.prune.compare import relative_error, run
from penjing.prune.cost import Cost
from penjing.prune.criteria import Criterion, Material
from penjing.prune.criteria.base import Normalisation, Scores
from penjing.prune.slots import by_leaf
from penjing.prune.worth import per_cost


def mlp(width: int = 10) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Baked(nn.Module):
    """A class that cannot follow: a width is written into its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.drop, self.out = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(F.relu(self.inp(x)).reshape(x.shape[0], 8)))  # type: ignore[no-any-return]


def test_widths_and_classes() -> None:
    result = prune(mlp(), X, ratio=0.5)
    assert result.in_place
    assert isinstance(result.model, nn.Sequential)
    linears = [module for module in result.model if isinstance(module, nn.Linear)]
    first, second, last = linears
    assert (first.out_features, second.in_features, second.out_features, last.in_features) == (5, 5, 4, 4)
    assert (first.in_features, last.out_features) == (6, 3)
    assert result.before == {"params": 185, "macs": 164}
    assert result.after == {"params": 74, "macs": 62}
    assert masked_equivalence(mlp(), result, X) <= 1e-5
    json.dumps(result.to_dict(), allow_nan=False)


class Computed(nn.Module):
    """An expression in ``x`` (2, 6) between two linears of width 8."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.a, self.code = nn.Linear(6, 8), code
        self.w, self.v = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        names = {"torch": torch, "y": self.a(x), "w": self.w, "v": self.v}
        return eval(self.code, names)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("code", "macs"),
    [
        ("torch.einsum('bi,ij,jk,k->bk', y, w, v, v[0])", 6 * 8 + 8 * 5 + 5 * 7),  # the last one is a factor
        ("(y @ w) @ (y @ w).t()", 6 * 8 + 2 * 8 * 5 + 5),  # every sample meets every sample
        ("y.view(2, 8) @ w", 6 * 8 + 8 * 5),  # the batch is fixed
    ],
)
def test_macs_are_those_of_one_sample(code: str, macs: int) -> None:
    result = prune(Computed(code), X)
    assert result.before["macs"] == macs == count(Computed(code), X).num_macs
    assert result.after["macs"] == count(result.model, X).num_macs


def test_an_einsum_of_many_operands_leaves_the_batch_free() -> None:
    assert trace(Computed("torch.einsum('bi,ij,jk->bk', y, w, v)"), X).batch_dim


def test_removed_queries_still_read_what_is_kept() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.key = nn.Parameter(torch.randn(6, 8)), nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            key = self.key(x)
            mixed = (self.queries @ key.transpose(1, 2)).softmax(-1) @ key
            return mixed.mean((1, 2))  # type: ignore[no-any-return]

    model, x = Queries(), torch.randn(2, 5, 3)
    result = prune(model, x)
    assert result.model.get_parameter("queries").shape[0] == 3
    assert masked_equivalence(model, result, x) <= 1e-4


def test_a_class_that_cannot_follow_comes_back_as_a_graph() -> None:
    torch.manual_seed(0)
    model = Baked().train()
    result = prune(model, X)
    assert not result.in_place
    assert result.reason
    assert result.model.training
    assert set(result.model.state_dict()) == set(model.state_dict())
    assert masked_equivalence(model, result, X) <= 1e-5
    many = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))  # so that some unit is active
    assert not torch.equal(result.model(many), result.model(many))  # dropout works
    result.model.eval()
    assert torch.equal(result.model(X), result.model(X))
    assert result.model(torch.randn(5, 6)).shape == (5, 3)
    again = apply(model, Plan.from_dict(result.plan.to_dict()), X)
    assert not again.in_place
    assert again.reason == result.reason
    with pytest.raises(PruneError, match="cannot follow"):
        apply_(model, result.plan, X)


class Draws(nn.Module):
    """Its dropout is always on (SpeechT5's prenet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y * torch.bernoulli(torch.full_like(y, 0.5))
        y = 2 * y if torch.compiler.is_compiling() else y + y  # else its calls are compared one by one
        return self.b(y)  # type: ignore[no-any-return]


def test_a_forward_that_draws_random_numbers_is_told() -> None:
    torch.manual_seed(0)
    assert "draws random numbers in eval mode" in prune(Draws(), X).reason


def test_a_traced_graph_is_pruned_like_a_class() -> None:
    plain = GraphModel(trace(mlp(), X))
    result = prune(plain, X)
    assert result.in_place
    assert torch.equal(result.model(X), prune(mlp(), X).model(X))
    baked = prune(prune(Baked(), X).model, X)
    assert not baked.in_place
    assert "a traced graph itself" in baked.reason


class Ordered(nn.Module):
    """A constant order of the channels in a buffer of the state dict."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.inp(x))[:, self.order])  # type: ignore[no-any-return]


def test_an_index_buffer_follows() -> None:
    model = Ordered()
    result = prune(model, X)
    assert result.in_place
    order = result.model.state_dict()["order"].tolist()
    assert sorted(order) == [0, 1, 2, 3]
    assert result.plan.values == {"order": order}
    assert masked_equivalence(model, result, X) <= 1e-5
    sliced = Plan.from_dict(result.plan.to_dict()).slice_state(model.state_dict())
    assert all(torch.equal(sliced[k], v) for k, v in result.model.state_dict().items())


class Auxiliary(nn.Module):
    """A branch that only training takes, in one of two ways."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.inp, self.out, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.traceable = traceable

    def forward(self, x: Tensor) -> Tensor:
        first = x[0, 0]
        x = F.relu(self.inp(x))
        y = self.out(x)
        if self.training and (self.traceable or bool(first > 0)):
            return y + self.aux(x)  # type: ignore[no-any-return]
        return y  # type: ignore[no-any-return]


def test_a_branch_of_training_only_follows() -> None:
    model = Auxiliary(True).train()
    result = prune(model, X)
    assert result.in_place
    assert not any(f.kind == "unused" for f in result.frozen)
    assert result.model.training
    assert result.model.get_parameter("aux.weight").shape == (3, 4)
    masked = copy.deepcopy(model)
    gone = np.setdiff1d(np.arange(8), result.plan.tensors["inp.weight"][0])
    with torch.no_grad():
        for tensor in (masked.inp.weight, masked.inp.bias):
            tensor[gone] = 0
    assert relative_error(result.model(X), masked(X)) <= 1e-5
    assert masked_equivalence(model, result, X) <= 1e-5


def test_a_branch_of_training_that_cannot_be_traced_is_not_broken() -> None:
    model = Auxiliary(False).train()
    inputs = X.clone()
    inputs[0, 0] = 1.0
    result = prune(model, inputs)
    assert not result.in_place
    assert "in training mode" in result.reason
    assert {p for f in result.frozen if f.kind == "unused" for p in f.params} >= {"aux.weight:0"}
    result.model(inputs).sum().backward()
    assert masked_equivalence(model, result, inputs) <= 1e-5


class Fused(nn.Module):
    """Attention that lets the fused op take its scale from the head size."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.qkv, self.out, self.width = nn.Linear(6, 48), nn.Linear(16, 3), width

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.width * self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class ByHand(Fused):
    """The same, computed from the head size."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.width * self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [1.0, 1e-4])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Fused, r"scales by 1/√\(head size\)"),
        (ByHand, r"computes with 2 at \S*test_api.py:\d+ where the original has 2.82843"),
    ],
)
def test_a_class_whose_attention_would_scale_anew_is_not_trusted(
    width: float, kind: type[Fused], reason: str
) -> None:
    """However small the difference on these inputs: attention that is nearly uniform hides it."""
    x = torch.randn(2, 5, 6)
    model = kind(width)
    result = prune(model, x)
    assert not result.in_place
    assert re.search(reason, result.reason)
    assert masked_equivalence(model, result, x) <= 1e-5
    whole_heads = prune(model, x, ratio=0, ratios={"qkv.weight": 0.0})
    assert whole_heads.in_place


class Counted(Fused):
    """The same with a number of heads that may change."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("budget", [None, Budget(params=0.6)])
def test_heads_go_whole_where_the_class_takes_their_size_for_granted(budget: Budget | None) -> None:
    x, model = torch.randn(2, 5, 6), Counted()
    result = prune(model, x, budget=budget)
    assert result.in_place, result.reason
    assert [len(edit.kept) for edit in result.plan.groups.values()] == [1]  # of the two heads
    assert masked_equivalence(model, result, x) <= 1e-5
    asked = prune(model, x, ratio=0, ratios={"qkv.weight": 0.5})
    assert "scales by 1/√(head size)" in asked.reason


@pytest.mark.parametrize(("heads", "ratio", "left"), [(4, 0.5, 2), (4, 0.3, 3), (3, 0.5, 2)])
def test_a_stream_of_heads_keeps_as_much_as_its_heads(heads: int, ratio: float, left: int) -> None:
    """``embed_dim`` of attention is the width of the stream and what its heads hold together."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8 * heads, heads, 20, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 8 * heads), layer, nn.Linear(8 * heads, 3))
    x = torch.randn(2, 5, 6)
    result = prune(model, x, ratio=ratio)
    assert result.in_place, result.reason
    attention = result.model.get_submodule("1.self_attn")
    assert isinstance(attention, nn.MultiheadAttention)
    assert (attention.num_heads, attention.embed_dim) == (left, 8 * left)
    assert masked_equivalence(model, result, x) <= 1e-5


class Translator(nn.Module):
    """Its transformer checks the width of what it is given and hands on; ``limit`` is that by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(6, 16), nn.Linear(6, 16)
        self.both = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)
        self.head, self.limit = nn.Linear(16, 3), 16

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mixed = self.both(self.source(source), self.target(target[:, : self.limit]))
        return self.head(mixed)  # type: ignore[no-any-return]


def test_a_width_that_is_only_checked_follows() -> None:
    torch.manual_seed(0)
    model, x = Translator(), (torch.randn(2, 5, 6), torch.randn(2, 4, 6))
    result = prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    small = result.model
    assert isinstance(small, Translator)
    assert (small.both.d_model, small.limit) == (8, 16)
    assert masked_equivalence(model, result, x) <= 1e-5


class HandWritten(nn.Module):
    """Attention as it is mostly written: what the heads hold together takes the shape of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.wide, self.narrow = nn.Linear(24, 40), nn.Linear(40, 24)
        self.attention, self.head = Shaped(self.qkv, self.proj), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x)
        x = x + self.narrow(torch.relu(self.wide(x)))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Shaped(nn.Module):
    def __init__(self, qkv: nn.Linear, proj: nn.Linear) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = qkv, proj, 6

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        shape = (b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{"ratio": 0.3}, {"budget": Budget(macs=0.5), "scope": "global"}])
def test_heads_together_keep_the_width_of_the_stream(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = HandWritten(), torch.randn(2, 4, 5)
    heard: list[Event] = []
    result = prune(model, x, **options, listen=heard.append)
    assert result.in_place, result.reason
    small = result.model
    assert isinstance(small, HandWritten)
    said = "so that the class serves, groups keep other numbers than scores alone give"
    assert said in result.evened
    assert result.to_dict()["evened"] == result.evened
    assert result.evened in str(result)
    assert [e.message for e in heard if e.kind == "note"] == [result.evened]
    kept = {row["id"]: row["kept"] for row in result.to_dict()["groups"]}
    named = re.findall(r"([\w.:#]+) (\d+) instead of (\d+)", result.evened)
    assert named
    for name, now, alone in named:
        assert now != alone
        assert int(now) in {n for key, n in kept.items() if key.replace(".weight:0", "") == name}
    assert not prune(model.wide, torch.randn(2, 24), prune_outputs=True, ratio=0.5).evened
    width, heads = small.stem.out_features, small.attention.num_heads
    assert 1 <= heads < 6
    assert width < 24
    assert width == small.proj.in_features == heads * (width // heads)
    assert masked_equivalence(model, result, x) <= 1e-5
    torn = prune(model, x, ratio=0, ratios={"qkv.bias": 0.5, "stem.bias": 0.25})
    assert "the width that attention is given, 24, would have to be" in torn.reason


def test_ratios_of_single_groups_go_with_measured_sensitivity() -> None:
    options: dict[str, Any] = {"scope": "sensitivity", "budget": Budget(params=0.6), "data": [X]}
    result = prune(mlp(), X, ratios={"0.weight": 0.1}, **options)
    assert len(result.plan.groups["0.weight:0"].kept) == 9
    assert result.after["params"] <= 0.6 * result.before["params"]


class Heads(nn.Module):
    """Attention with one number for the head size of queries, keys and values; ``place`` has it by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(8, 24)
        self.out, self.head_dim, self.place = nn.Linear(24, 3), 6, 6

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (torch.stack(part.chunk(2, -1), -1).flatten(-2) for part in (q, k))  # pairs, as rotations do
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
        return self.out(mixed * self.place)  # type: ignore[no-any-return]


@pytest.mark.parametrize("budget", [None, Budget(params=0.5)])
def test_one_head_size_for_queries_and_values(budget: Budget | None) -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 5, 8)
    result = prune(model, x, budget=budget, scope="local" if budget is None else "global")
    assert result.in_place, result.reason
    assert isinstance(result.model, Heads)
    assert (result.model.head_dim, result.model.place) == (4, 6)
    assert masked_equivalence(model, result, x) <= 1e-5
    asked = prune(model, x, ratio=0, ratios={"v.weight": 0.5})
    assert not asked.in_place
    assert "head_dim, 6, would have to be 3 and 6 at once" in asked.reason


def test_apply_in_place_keeps_the_parameters_objects() -> None:
    model = mlp()
    result = prune(model, X)
    params = dict(model.named_parameters())
    assert apply_(model, result.plan, X) is model
    assert all(params[n] is p for n, p in model.named_parameters())
    assert relative_error(run(model, X), run(result.model, X)) == 0
    assert model[0].out_features == 5


def test_foreign_plans_are_refused() -> None:
    plan = prune(mlp(), X).plan
    with pytest.raises(PruneError, match="another model"):
        apply(mlp(12), plan, X)
    with pytest.raises(PruneError, match="another model"):
        apply(Baked(), plan, X)


def test_flags_dtype_and_requires_grad_are_kept() -> None:
    model = mlp().double().train()
    model[0].weight.requires_grad_(False)
    model[3].eval()
    result = prune(model, X.double())
    assert result.model[0].weight.requires_grad is False  # type: ignore[index]
    assert result.model[2].weight.requires_grad is True  # type: ignore[index]
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]
    assert all(p.dtype == torch.float64 for p in result.model.parameters())


def test_shared_modules_stay_shared() -> None:
    inner = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(6, 8), inner, nn.ReLU(), inner, nn.Linear(8, 3))
    result = prune(model, X)
    assert result.in_place
    assert result.model[1] is result.model[3]  # type: ignore[index]


def test_ignore_and_own_ratios() -> None:
    kept = {k: len(e.kept) for k, e in prune(mlp(), X, ignore=["0.*"]).plan.groups.items()}
    assert kept == {"2.weight:0": 4}
    with pytest.raises(PruneError, match=r"'0.weigth' matches no parameter") as caught:
        prune(mlp(), X, ignore=["0.weigth"])
    assert "0.weight" in caught.value.remedy
    kept = {k: len(e.kept) for k, e in prune(mlp(), X, ratios={"2.weight": 0.25}).plan.groups.items()}
    assert kept["2.weight:0"] == 6  # the last match: both groups hold a dim of 2.weight
    assert kept["0.weight:0"] == 8


@pytest.mark.parametrize(("groups", "left"), [(32, (16, 32)), (8, (4, 32)), (4, (4, 32))])
@pytest.mark.parametrize("own", [{}, {"1.weight": 0.5}])
def test_a_ratio_is_what_a_product_loses(groups: int, left: tuple[int, int], own: dict[str, float]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(groups, 64), nn.Conv2d(64, 5, 1))
    x = torch.randn(2, 3, 6, 6)
    result = prune(model, x, ratio=0.0 if own else 0.5, ratios=own)
    norm = result.model.get_submodule("1")
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == left
    assert masked_equivalence(model, result, x) <= 1e-5


def test_a_ratio_of_an_id_chooses_the_factor() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(8, 64), nn.Conv2d(64, 5, 1))
    x = torch.randn(2, 3, 6, 6)
    ids = [group.id for group in couple(trace(model, x)).groups]
    left = []
    for named in (ids[:1], ids[1:], ids):
        result = prune(model, x, ratio=0.5, ratios=dict.fromkeys(named, 0.25))
        norm = result.model.get_submodule("1")
        assert isinstance(norm, nn.GroupNorm)
        left.append((norm.num_groups, norm.num_channels))
    assert left == [(6, 48), (8, 48), (6, 36)]


def test_round_to_and_min_slots() -> None:
    kept = {k: len(e.kept) for k, e in prune(mlp(), X, ratio=0.5, round_to=4).plan.groups.items()}
    assert kept == {"0.weight:0": 8, "2.weight:0": 4}
    kept = {k: len(e.kept) for k, e in prune(mlp(), X, ratio=0.9, min_slots=3).plan.groups.items()}
    assert kept == {"0.weight:0": 3, "2.weight:0": 3}


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("budget", [Budget(params=0.3), Budget(params=100), Budget(macs=0.5)])
def test_budgets_are_met_exactly(scope: str, budget: Budget) -> None:
    model = mlp(40)
    result = prune(model, X, budget=budget, scope=scope)  # type: ignore[arg-type]
    assert result.after["params"] == sum(p.numel() for p in result.model.parameters())
    limits = budget.limits(dict(result.before))
    one_slot = {"params": 6 + 1 + 8, "macs": 6 + 8}  # the dearest slot there is: row, bias and column
    for name, limit in limits.items():
        assert limit - one_slot[name] < result.after[name] <= limit


def test_budget_out_of_reach() -> None:
    with pytest.raises(PruneError, match="out of reach"):
        prune(mlp(), X, budget=Budget(params=3))


def test_outputs_only_when_asked() -> None:
    result = prune(mlp(), X, prune_outputs=True)
    assert run(result.model, X).shape == (2, 2)
    assert run(prune(mlp(), X).model, X).shape == (2, 3)


def test_wrong_options() -> None:
    with pytest.raises(PruneError, match="ratio"):
        prune(mlp(), X, ratio=1.5)
    with pytest.raises(PruneError, match="unknown criterion"):
        prune(mlp(), X, criterion="nothing")
    with pytest.raises(PruneError, match="needs data"):
        prune(mlp(), X, reconstruct=True)
    with pytest.raises(TraceError):
        prune(mlp(), torch.randn(2, 7))
    broken = mlp()
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("nan")
    with pytest.raises(TraceError, match="NaN"):
        prune(broken, X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0.5}, r"budget is 0\.5\. Say of what"),
        ({"budget": {"parms": 0.5}}, r"did you mean 'params'"),
        ({"reconstruct": {"max_sample": 16}, "data": [X]}, r"did you mean 'max_samples'"),
        ({"reconstruct": "yes", "data": [X]}, r"reconstruct is 'yes'"),
        ({"branches": 1.5}, r"branches 1\.5\. Give a number"),
        ({"round_to": 2.5}, r"round_to is 2\.5"),
        ({"min_slots": 1.5}, r"min_slots is 1\.5"),
        ({"model": None}, r"model is a NoneType"),
        ({"criterion": "taylor", "reconstruct": True, "data": iter([X])}, "data can be iterated only once"),
    ],
)
def test_bad_options_are_named_before_any_work(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"model": mlp(), "example_inputs": "never looked at", **options}
    with pytest.raises(PenjingError, match=words):
        prune(**given)


def test_options_may_be_mappings() -> None:
    result = prune(mlp(), X, budget={"params": 0.5})
    assert result.after == prune(mlp(), X, budget=Budget(params=0.5)).after
    fitted = prune(mlp(), X, data=[torch.randn(64, 6)], reconstruct={"max_samples": 16}).reconstruction
    assert fitted.num_samples == 16


def test_a_path_is_no_plan() -> None:
    with pytest.raises(PruneError, match=r"plan is 'plan\.json'\. Give a Plan; Plan\.load"):
        apply(mlp(), "plan.json", X)  # type: ignore[arg-type]


def test_a_width_of_one() -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 3))
    result = prune(model, X)
    assert not result.plan.tensors
    assert torch.equal(run(result.model, X), run(model, X))


def test_hooks_and_extra_attributes_survive() -> None:
    model = mlp()
    model.label = "mine"  # type: ignore[assignment]
    result = prune(copy.deepcopy(model), X)
    assert result.model.label == "mine"


class Windowed(nn.Module):
    """Looks at no more tokens than it is wide, by chance; notes its width; and views by it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.window = self.noted = self.width = 16

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.mix(self.embed(tokens)).relu()[:, -self.window :]
        return self.head(x.view(-1, x.shape[1], self.width).mean(1))  # type: ignore[no-any-return]


def test_a_number_of_a_pruned_size_by_chance_stays() -> None:
    torch.manual_seed(0)
    model, tokens = Windowed(), torch.arange(10).view(2, 5) % 9
    result = prune(model, tokens)
    small = result.model
    assert isinstance(small, Windowed)
    assert (small.window, small.noted, small.width) == (16, 8, 8)
    assert "window" not in {edit.name for edit in result.plan.attributes}
    again = apply(model, result.plan, tokens).model
    longer = torch.arange(28).view(2, 14) % 9
    assert torch.equal(run(again, longer), run(small, longer))
    assert masked_equivalence(model, result, longer) <= 1e-5


class Fusible(nn.Module):
    """Two branches that a method makes one layer of the sizes it noted; its forward reads none of them."""

    def __init__(self, in_chs: int, out_chs: int, groups: int, in_plane: int) -> None:
        super().__init__()
        self.in_chs, self.out_chs, self.groups, self.in_plane = in_chs, out_chs, groups, in_plane
        self.large = nn.Conv2d(in_chs, out_chs, 3, padding=1, groups=groups)
        self.small = nn.Conv2d(in_chs, out_chs, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x[:, :, : self.in_plane]))

    def fused(self) -> nn.Conv2d:
        layer = nn.Conv2d(self.in_chs, self.out_chs, 3, padding=1, groups=self.groups)
        weight = self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1))
        layer.load_state_dict({"weight": weight, "bias": self.large.bias})
        return layer


def test_sizes_that_only_other_methods_read_follow() -> None:
    torch.manual_seed(0)
    stem, wide = nn.Conv2d(3, 8, 1), Fusible(8, 16, 8, in_plane=8)  # a plane of 8 by 8, by chance
    model = nn.Sequential(stem, wide, Fusible(16, 16, 1, in_plane=16), nn.Flatten(), nn.Linear(16 * 64, 3))
    x = torch.randn(2, 3, 8, 8)
    ratios = {"2.large.weight:0": 0.25}
    result = prune(model, x, ratio=0.5, ratios=ratios)
    assert result.in_place, result.reason
    for small in (result.model, apply(model, result.plan, x).model):
        for block in (small[1], small[2]):  # type: ignore[index]
            values = torch.randn(2, block.in_chs, 8, 8)
            torch.testing.assert_close(F.relu(block.fused()(values)), block(values))
    sizes = [(block.in_chs, block.out_chs, block.groups, block.in_plane) for block in result.model[1:3]]  # type: ignore[index]
    assert sizes == [(4, 8, 4, 8), (8, 12, 1, 16)]


class Branches(nn.Module):
    """Two hidden layers that count alike in the output, one behind a dear input."""

    def __init__(self, dear: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cheap, self.dear = nn.Linear(4, 16), nn.Linear(dear, 16)
        self.read_cheap, self.read_dear = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.read_cheap(F.relu(self.cheap(x))) + self.read_dear(F.relu(self.dear(y)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bound", ["params", "macs", "bytes"])
def test_damage_that_adds_up_is_weighed_against_the_saving(bound: str) -> None:
    torch.manual_seed(1)
    model = Branches(400)
    data = [((torch.randn(64, 4), torch.randn(64, 400) / 10), torch.zeros(64)) for _ in range(2)]
    example = (torch.zeros(2, 4), torch.zeros(2, 400))
    budget = Budget.model_validate({bound: 0.5})
    result = prune(model, example, criterion="obs", scope="global", budget=budget, data=data)
    cheap, dear = (result.model.get_submodule(name).out_features for name in ("cheap", "dear"))
    assert isinstance(cheap, int)
    assert isinstance(dear, int)
    assert cheap == 16, "what saves next to nothing stays"
    assert dear < 9


def test_per_cost_keeps_the_order_within_a_group() -> None:
    graph = trace(mlp(), X)
    coupling = couple(graph)
    rng = np.random.default_rng(0)
    scores = {group.id: rng.random(group.size) for group in coupling.groups}
    weighed = per_cost(graph, coupling, scores, Budget(params=0.5, macs=0.5))
    for name, row in scores.items():
        assert (np.argsort(row) == np.argsort(weighed[name])).all()
        assert np.ptp(weighed[name] / row) < 1e-9 * float(weighed[name].max())


@dataclass(frozen=True)
class Damages(Criterion):
    """Parts of one damage, a thousand times as high in every second group."""

    normalisation: Normalisation = "none"
    adds_up: ClassVar[bool] = True

    def raw_scores(self, material: Material) -> list[Scores]:
        groups = material.coupling.groups
        return [1000.0 ** (at % 2) * np.linspace(1, 2, group.size) for at, group in enumerate(groups)]


def test_under_a_ratio_damages_are_relative_to_their_group() -> None:
    """A ratio counts slots: those that do little each would all go before any that does more."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def kept(**options: Any) -> list[int]:
        small = prune(model, torch.zeros(2, 6), criterion=Damages(), scope="global", **options).model
        return [len(small.get_submodule(name).weight) for name in ("0", "2")]  # type: ignore[arg-type]

    assert kept(ratio=0.4) == [10, 7]
    assert kept(budget={"params": 0.7}) == [10, 12], "under a budget they compare as they are"


def test_damage_at_many_positions_counts_less() -> None:
    """Equal damages for equal savings weigh by how many positions they serve: 16 × 16 early, 4 × 4 late."""
    early = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1, bias=False)]
    late = [nn.Conv2d(5, 12, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(12, 6, 1, bias=False)]
    model = nn.Sequential(*early, nn.AvgPool2d(4), *late)
    graph = trace(model, torch.zeros(2, 3, 16, 16))
    coupling = couple(graph)
    scores = {group.id: np.ones(group.size) for group in coupling.groups}
    budget, cost = Budget(macs=0.5), Cost(graph, coupling)
    weighed = per_cost(graph, coupling, scores, budget)
    worth = {}
    for group in coupling.groups:
        one_left = by_leaf(coupling, {group.id: np.arange(1)})
        saved = (cost.macs({}) - cost.macs(one_left)) / (group.size - 1)
        worth[group.size] = weighed[group.id][0] * saved
    assert worth[12] / worth[8] == pytest.approx((16 * 16 / (4 * 4)) ** 0.6)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_is_copied_and_pruned() -> None:
    """It keeps its last weight as a plain tensor with a history, which cannot be deep-copied."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 10)), nn.ReLU(), nn.Linear(10, 3)).eval()
    model(X)
    result = prune(model, X)
    assert result.after["params"] < result.before["params"]
    assert masked_equivalence(model, result, X) <= 1e-5


def test_one_pattern_needs_no_list() -> None:
    assert prune(mlp(), X, ignore="2.weight").after == prune(mlp(), X, ignore=["2.weight"]).after
    with pytest.raises(PruneError, match=r"'3\.weight' matches no parameter"):
        prune(mlp(), X, ignore="3.weight")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"round_to": 64}, "round_to=64"),
        ({"ratio": 0.0}, "nothing was removed"),
        ({"budget": {"params": 10**7, "macs": 1.0}}, "within the budget (params 10,000,000, macs 1)"),
    ],
)
def test_nothing_removed_is_said(options: dict[str, Any], words: str) -> None:
    heard: list[Event] = []
    result = prune(mlp(), X, **options, listen=heard.append)
    assert result.after == result.before
    assert any(words in event.message for event in heard if event.kind == "warning")


def test_what_is_neither_a_fraction_nor_a_count_is_refused() -> None:
    assert Budget(params=2.0).limits({"params": 100}) == {"params": 2}
    with pytest.raises(ValueError, match=r"1\.5 is neither"):
        Budget(params=1.5)
    with pytest.raises(PruneError, match="not in \\[0, 1\\)"):
        prune(mlp(), X, ratio="0.5")  # type: ignore[arg-type]


class Stream(IterableDataset[Tensor]):
    """Samples without a number of them."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("data", [DataLoader(Stream(), batch_size=8), torch.randn(4, 8, 6)])
def test_data_whose_truth_cannot_be_asked_refits(data: Any) -> None:
    assert prune(mlp(), X, data=data, reconstruct=True).reconstruction.num_samples == 32


def test_data_that_does_not_fit_is_blamed_itself() -> None:
    """Not the example inputs, which are right; labels by their number; an empty example by its emptiness."""
    with pytest.raises(DataError, match="what the data gives"):
        prune(mlp(), X, reconstruct=True, data=[torch.randn(4, 5)])
    labelled = [(X, torch.tensor([0, 7]))]
    with pytest.raises(DataError, match="batch 0: label 7 is outside"):
        prune(mlp(), X, criterion="taylor", data=labelled)
    assert (
        prune(mlp(), X, criterion={"name": "taylor", "ignore_index": 7}, data=labelled).after["params"] == 74
    )
    with pytest.raises(TraceError, match="no sample"):
        prune(mlp(), X[:0])
    values = [(X, torch.randn(2, 3))]  # no classes: the mean of squares serves
    assert prune(mlp(), X, criterion="taylor", data=values).after["params"] == 74


class Projected(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, batch_first=True, proj_size=size)
        self.head = nn.Linear(size or 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.rnn(x)[0])
        return answer


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("size", [0, 4])
def test_a_recurrent_layer_follows_with_its_projection(size: int) -> None:
    result = prune(Projected(size), torch.randn(2, 5, 6))
    assert result.in_place
    assert isinstance(result.model, Projected)
    assert (result.model.rnn.hidden_size, result.model.rnn.proj_size) == (4, size // 2)
