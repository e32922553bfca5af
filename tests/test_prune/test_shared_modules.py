"""A module that stands in several places is one module: its numbers follow wherever it is called from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import penjing as pj
from penjing.graph import trace
from penjing.graph.module_paths import module_stack
from penjing.prune.masked import masked_equivalence


class Windows(nn.Module):
    """Convolutions of two windows, each on its share of the channels (as CoaT's relative positions)."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = [4, 8]
        self.convs = nn.ModuleList([nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(8, 8, 5, padding=2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class Block(nn.Module):
    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.up, self.windows, self.down = nn.Conv1d(6, 12, 1), windows, nn.Conv1d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.down(self.windows(self.up(x)))
        return made


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.windows = Windows()
        self.blocks = nn.Sequential(Block(self.windows), Block(self.windows))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.blocks(x).mean(2))
        return made


def test_its_numbers_follow() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 6, 16)
    result = pj.prune(model, x, ratio=0.5)
    assert result.in_place, result.reason
    assert isinstance(result.model, Net)
    assert result.model.windows is result.model.blocks[1].windows
    assert result.model.windows.splits == [2, 4]
    assert masked_equivalence(model, result.plan, x) < 1e-5


def test_it_has_one_path_in_the_graph() -> None:
    graph = trace(Net().eval(), torch.randn(2, 6, 16))
    splits = [node for node in graph.module.graph.nodes if "split" in str(node.target)]
    assert [module_stack(node)[-1] for node in splits] == ["windows", "windows"]
