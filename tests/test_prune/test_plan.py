from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from penjing.errors import PruneError
from penjing.prune import AttributeEdit, GroupEdit, Plan


def kept(*positions: int) -> np.ndarray:
    return np.array(positions, dtype=np.int64)


def plan_of(rows: np.ndarray, columns: np.ndarray, size: tuple[int, int] = (8, 6)) -> Plan:
    return Plan(
        shapes={"weight": size, "bias": (size[0],)},
        groups={"weight:0": GroupEdit(size[0], rows)},
        tensors={"weight": {0: rows, 1: columns}, "bias": {0: rows}},
        attributes=(AttributeEdit("", "out_features", size[0], len(rows)),),
        created_by={"criterion": "magnitude"},
    )


PLAN = plan_of(kept(0, 2, 3, 7), kept(1, 4))


def test_json_round_trip(tmp_path: Path) -> None:
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN


def test_a_plan_from_before_branches_is_read() -> None:
    data = PLAN.to_dict()
    del data["branches"]
    assert Plan.from_dict({**data, "version": 1}) == PLAN


def test_a_branch_goes_from_states_and_optimizers() -> None:
    shapes = {"stem": (4,), "body.weight": (4, 4), "body.count": (), "head": (2, 4)}
    plan = Plan(shapes, {}, {"head": {1: kept(0, 2)}}, branches={"body": ("body.weight", "body.count")})
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.new_shapes == {"stem": (4,), "head": (2, 2)}
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    assert plan.slice_state(state).keys() == plan.new_shapes.keys()
    params = {name: nn.Parameter(value) for name, value in state.items() if name != "body.count"}
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    for number, param in enumerate(params.values()):
        param.grad = torch.full_like(param, float(number))
    optimizer.step()
    sliced = plan.slice_optimizer(optimizer.state_dict(), list(params))
    assert sliced["param_groups"][0]["params"] == [0, 1]
    assert torch.equal(sliced["state"][1]["momentum_buffer"], torch.full((2, 2), 2.0))
    damaged = {**plan.to_dict(), "branches": {"body": ["body.other"]}}
    with pytest.raises(PruneError, match="branch holds tensors"):
        Plan.from_dict(damaged)


def test_slices_state_and_leaves_unknown_names() -> None:
    state = {"weight": torch.arange(48.0).reshape(8, 6), "bias": torch.arange(8.0), "other": torch.ones(3)}
    sliced = PLAN.slice_state(state)
    assert torch.equal(sliced["weight"], state["weight"][[0, 2, 3, 7]][:, [1, 4]])
    assert torch.equal(sliced["bias"], torch.tensor([0.0, 2.0, 3.0, 7.0]))
    assert torch.equal(sliced["other"], state["other"])
    assert sliced["other"] is not state["other"]
    assert PLAN.new_shapes == {"weight": (4, 2), "bias": (4,)}


@given(st.data())
def test_composition_is_slicing_twice(data: st.DataObject) -> None:
    def subset(size: int) -> np.ndarray:
        return np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))), dtype=np.int64)

    first = plan_of(subset(8), subset(6))
    rows, columns = first.new_shapes["weight"]
    second = plan_of(subset(rows), subset(columns), (rows, columns))
    both = first.then(second)
    state = {"weight": torch.randn(8, 6), "bias": torch.randn(8)}
    twice = second.slice_state(first.slice_state(state))
    once = both.slice_state(state)
    assert all(torch.equal(once[k], twice[k]) for k in state)
    assert both.shapes == first.shapes
    assert both.new_shapes == second.new_shapes
    assert len(both.groups["weight:0"].kept) == both.new_shapes["bias"][0]
    assert both.attributes == (AttributeEdit("", "out_features", 8, both.new_shapes["bias"][0]),)


def test_composition_refuses_a_plan_for_another_model() -> None:
    with pytest.raises(PruneError, match="another model"):
        PLAN.then(PLAN)


def test_foreign_model_is_refused() -> None:
    PLAN.check(nn.Linear(6, 8))
    with pytest.raises(PruneError, match="another model") as caught:
        PLAN.check(nn.Linear(6, 9))
    assert caught.value.layer == "bias"
    with pytest.raises(PruneError, match="another model"):
        PLAN.check(nn.Sequential(nn.Linear(6, 8)))


def test_foreign_tensor_is_refused() -> None:
    with pytest.raises(PruneError, match="shape"):
        PLAN.slice_state({"weight": torch.ones(3, 3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a plan"),
        ({"version": 99}, "version 99"),
        ({"tensors": {"weight": {"0": "0-99"}}}, "damaged"),
        ({"tensors": {"weight": {"0": ""}}}, "damaged"),
        ({"tensors": {"absent": {"0": "0"}}}, "damaged"),
        ({"groups": {"x": {}}}, "damaged"),
        ({"shapes": {"weight": [8, 6]}, "tensors": {}}, "fingerprint"),
    ],
)
def test_damaged_plans(change: dict[str, object], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        Plan.from_dict({**PLAN.to_dict(), **change})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="cannot read"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PruneError, match="cannot read"):
        Plan.load(tmp_path / "bad.json")


def test_optimizer_errors() -> None:
    state = {"state": {0: {"exp_avg_row": torch.ones(8)}}, "param_groups": [{"params": [0]}]}
    with pytest.raises(PruneError, match="not its parameter's"):
        PLAN.slice_optimizer(state, ["weight"])
    with pytest.raises(PruneError, match="names were given"):
        PLAN.slice_optimizer(state, [])
    with pytest.raises(PruneError, match="unknown parameter"):
        PLAN.slice_optimizer(state, ["nothing"])
