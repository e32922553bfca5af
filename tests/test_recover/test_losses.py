from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from penjing.errors import RecoverError
from penjing.recover import RecoverConfig, feature_specs, recover
from penjing.recover.config import LossTerm
from penjing.recover.losses import Answers, FeatureLoss, LogitLoss, loss_names, make_loss
from penjing.recover.losses.dkd import DecoupledDistillation
from penjing.recover.losses.mse import FeatureError
from penjing.recover.objective import Objective

N, K, C = 6, 5, 7
LOGIT = [name for name in loss_names() if isinstance(make_loss(name), LogitLoss)]
FEATURE = [name for name in loss_names() if isinstance(make_loss(name), FeatureLoss)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def target(seed: int = 0) -> Tensor:
    return torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(seed))


def by_logits(name: str, student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    return make_loss(name, options)(Answers(student, target(), teacher, temperature=3.0))


def by_features(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    answers = Answers(draw(0, N, K), student_features={"a": student}, teacher_features={"a": teacher})
    return make_loss(name)(answers)


def test_the_registry_knows_them_all() -> None:
    assert set(loss_names()) == {
        "ce",
        "kd",
        "outputs",
        "dkd",
        "dist",
        "mse",
        "cosine",
        "at",
        "rkd",
        "sp",
        "fitnet",
    }
    with pytest.raises(ValueError, match="did you mean 'dist'"):
        make_loss("dst")
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        make_loss("kd", {"temperatur": 2.0})


@pytest.mark.parametrize("name", LOGIT)
def test_equal_logits_cost_nothing_and_pull_nowhere(name: str) -> None:
    student = draw(1, N, K).requires_grad_()
    value = by_logits(name, student, student.detach().clone())
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert float(gradient.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("shape", "name"),
    [(shape, name) for shape in ((N, C), (N, C, 4, 3)) for name in FEATURE if len(shape) > 2 or name != "at"],
    ids=str,
)
def test_equal_features_cost_nothing_and_pull_nowhere(name: str, shape: tuple[int, ...]) -> None:
    student = draw(1, *shape).requires_grad_()
    value = by_features(name, student, student.detach().clone())
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert float(gradient.abs().max()) < 1e-3


@pytest.mark.parametrize("name", LOGIT)
@given(seed=st.integers(0, 500))
@settings(max_examples=10, deadline=None)
def test_logit_losses_are_not_negative_finite_and_fall_along_their_gradient(name: str, seed: int) -> None:
    student, teacher = (3 * draw(seed, N, K)).requires_grad_(), 3 * draw(seed + 1, N, K)
    value = by_logits(name, student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) >= -1e-5
    assert bool(torch.isfinite(gradient).all())
    step = student.detach() - 1e-3 * gradient / gradient.norm()
    assert float(by_logits(name, step, teacher)) < float(value.detach())


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    student, teacher = draw(1, N, K), draw(2, N, K)
    moved = by_logits(name, student + draw(3, N, 1), teacher - 4)
    torch.testing.assert_close(moved, by_logits(name, student, teacher), rtol=1e-4, atol=1e-5)


def test_kd_is_the_divergence_and_its_gradient_does_not_shrink_with_temperature() -> None:
    student, teacher = draw(1, N, K).requires_grad_(), draw(2, N, K)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    by_hand = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(by_logits("kd", student, teacher, temperature=2.0), by_hand)
    sizes = []
    for t in (20.0, 200.0):
        (gradient,) = torch.autograd.grad(by_logits("kd", student, teacher, temperature=t), student)
        sizes.append(float(gradient.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@given(seed=st.integers(0, 500), t=st.sampled_from([1.0, 4.0]))
@settings(max_examples=20, deadline=None)
def test_kd_is_the_decoupled_parts_put_together(seed: int, t: float) -> None:
    answers = Answers(2 * draw(seed, N, K), target(seed), 2 * draw(seed + 1, N, K), temperature=t)
    tckd_N, nckd_N, p_target_N = DecoupledDistillation().parts(answers)
    together = t * t * (tckd_N + (1 - p_target_N) * nckd_N).mean()
    torch.testing.assert_close(together, make_loss("kd")(answers), rtol=1e-3, atol=1e-5)


def test_ce_smooths_and_takes_probabilities() -> None:
    logits, y_N = draw(1, N, K), target()
    hard = make_loss("ce")(Answers(logits, y_N))
    torch.testing.assert_close(hard, make_loss("ce")(Answers(logits, F.one_hot(y_N, K).float())))
    smooth = 0.8 * F.one_hot(y_N, K) + 0.2 / K
    torch.testing.assert_close(
        make_loss("ce")(Answers(logits, y_N, label_smoothing=0.2)), make_loss("ce")(Answers(logits, smooth))
    )


def test_dist_sees_relations_only() -> None:
    p = draw(1, N, K).softmax(1)
    # (1 - a) p + a / K is an affine map of every row and column of the probabilities
    mixed = (0.3 * p + 0.7 / K).log()
    torch.testing.assert_close(
        by_logits("dist", mixed, p.log(), temperature=1.0), torch.tensor(0.0), rtol=0, atol=1e-4
    )


def rotation(size: int) -> Tensor:
    q: Tensor = torch.linalg.qr(draw(5, size, size)).Q
    return q


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("at", lambda x: 3 * x),
        ("at", lambda x: x[:, torch.randperm(C)] * -1),
        ("sp", lambda x: 3 * x),
        ("sp", lambda x: torch.einsum("dc,nchw->ndhw", rotation(C), x)),
        ("rkd", lambda x: 3 * x),
        ("rkd", lambda x: x + 2),
        ("rkd", lambda x: torch.einsum("dc,nchw->ndhw", rotation(C), x)),
        ("cosine", lambda x: x * (1 + torch.arange(N)[:, None, None, None])),
    ],
)
def test_invariances(name: str, change: object) -> None:
    assert callable(change)
    student, teacher = draw(1, N, C, 4, 3), draw(2, N, C, 4, 3)
    value = by_features(name, student, teacher)
    torch.testing.assert_close(by_features(name, change(student), teacher), value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(by_features(name, student, change(teacher)), value, rtol=1e-3, atol=1e-5)
    assert float(value) > 1e-3


@pytest.mark.parametrize("name", ["at", "rkd", "sp"])
def test_widths_may_differ_where_channels_are_not_compared(name: str) -> None:
    assert float(by_features(name, draw(1, N, 3, 4, 3), draw(2, N, C, 4, 3))) > 0


class Pair(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, K)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.b(F.relu(self.a(x)))))
        return out


def test_features_are_lined_up_by_the_plan() -> None:
    kept = torch.tensor([0, 2, 5])
    teacher, student = Pair(C), Pair(3)
    plan = {"a.weight": {0: kept}, "a.bias": {0: kept}, "b.weight": {0: kept, 1: kept}, "b.bias": {0: kept}}
    plan["head.weight"] = {1: kept}
    for name, parameter in student.named_parameters():
        value = dict(teacher.named_parameters())[name].detach()
        for dim, positions in plan.get(name, {}).items():
            value = value.index_select(dim, positions)
        parameter.data = value.clone()
    (spec,) = feature_specs(student, teacher, ["a"], plan)
    assert torch.equal(spec.kept[-1], kept)
    (last,) = feature_specs(student, teacher, [], plan)
    assert (last.layer, last.side) == ("head", "input")
    data = [(draw(seed, N, 4), target(seed)) for seed in range(3)]
    config = RecoverConfig.parse({"epochs": 1, "losses": [{"name": "mse", "options": {"layers": ["a"]}}]})
    result = recover(student, teacher, data, config, plan=plan)
    # the first layer's kept channels see the same input: nothing to learn
    assert result.history[0]["train_loss"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(RecoverError, match="no plan says which"):
        recover(student, teacher, data, config)
    with pytest.raises(RecoverError, match="matches 'z'"):
        feature_specs(student, teacher, ["z*"[:1]], plan)


def test_ramps_and_several_terms() -> None:
    config = RecoverConfig(
        losses=(LossTerm(name="ce", weight=2, ramp="fall"), LossTerm(name="kd", weight=3, ramp="rise"))
    )
    objective = Objective(config, config.losses, nn.Linear(1, K), None, None, example=lambda: None)
    logits, other, y_N = draw(1, N, K), draw(2, N, K), target()
    for progress in (0.0, 0.25, 1.0):
        total, parts = objective([logits], {}, [[other]], {}, y_N, progress)
        expected = 2 * (1 - progress) * parts["ce"] + 3 * progress * parts["kd"]
        torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("relative", [True, False])
def test_mse_is_the_mean_squared_error_in_any_format(dtype: torch.dtype, relative: bool) -> None:
    """Value and gradient are those of the formula, in the format the features come in."""
    torch.manual_seed(0)
    student = torch.randn(4, 16, 9, 9, dtype=dtype).requires_grad_()
    teacher = torch.randn(4, 16, 9, 9, dtype=dtype)
    found = FeatureError(relative=relative).compare(student, teacher)
    found.backward()  # type: ignore[no-untyped-call]
    exact = student.detach().double().requires_grad_()
    wanted = (exact - teacher.double()).square().mean()
    wanted = wanted / teacher.double().square().mean() if relative else wanted
    wanted.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert exact.grad is not None
    assert student.grad.dtype == dtype
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=2 * tolerance, atol=tolerance * 1e-3)
    assert FeatureError(relative=relative).compare(teacher, teacher) == 0
