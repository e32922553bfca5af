"""The page on op rules: its table names what there is, its examples are those of the code or run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import penjing as pj
from penjing.graph.rules import RULES, Op

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@torch.library.custom_op("my_ops::gated_linear", mutates_args=())
def gated_linear(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor) -> torch.Tensor:
    return (x @ w_gate.T).sigmoid() * (x @ w_up.T)


@gated_linear.register_fake
def _(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], len(w_gate)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(6, 2)
        self.w_gate, self.w_up = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(gated_linear(self.first(x).relu(), self.w_gate, self.w_up))


def block(word: str) -> str:
    (found,) = (one for one in BLOCKS if word in one)
    return str(found)


def test_the_table_names_what_an_op_has() -> None:
    named = set(re.findall(r"op\.(\w+)", PAGE.partition("## Example")[0]))
    assert len(named) >= 12
    assert not [name for name in named if name not in Op.__annotations__ and not hasattr(Op, name)]


def test_pixel_shuffle_is_the_rule_of_the_code() -> None:
    ours = inspect.getsource(RULES["aten.pixel_shuffle"])
    assert re.sub(r' +""".*"""\n', "", ours) == block("def pixel_shuffle")


def test_the_rule_of_an_op_of_ones_own_prunes_it() -> None:
    model, x = Gated(), torch.randn(3, 4)
    assert "my_ops.gated_linear.default" in {one.op for one in pj.inspect(model, x).frozen}
    before = dict(RULES)
    try:
        exec(compile(block("def gated_linear"), "rules.md", "exec"), {})
        small = pj.prune(model, x, ratio=0.5)
    finally:
        for name in RULES.keys() - before.keys():
            del RULES[name]
    assert not [one for one in small.frozen if one.op]
    assert small.model(x).shape == (3, 2)
    assert small.after["params"] < 0.5 * small.before["params"]


def test_the_lines_of_its_test_are_there() -> None:
    cases = (ROOT / "tests" / "test_graph" / "test_rule_table.py").read_text(encoding="utf-8")
    lines = re.findall(r'^(".*": \[.*?\]),', block('"y.unflatten'), re.MULTILINE)
    assert len(lines) == 2
    assert all(line in cases for line in lines)
