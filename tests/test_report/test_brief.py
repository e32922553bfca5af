"""Results show themselves by a sentence and a short table; what is shown is what they hold."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import penjing as pj
from penjing.brief import MOST_ROWS, Brief, InShort


def shown(value: InShort) -> tuple[str, str, str]:
    """As a notebook has it, as `rich.print` does, and as `print` does."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(value)
    return value._repr_html_(), console.export_text(), str(value)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).eval()


def test_text_is_escaped_and_long_tables_are_cut() -> None:
    rows = [(f"<{at}>", "x") for at in range(MOST_ROWS + 5)]
    html = Brief("a < b", ("name", "value"), rows).to_html()
    assert "a &lt; b" in html
    assert "&lt;0&gt;" in html
    assert "<0>" not in html
    assert html.count("<tr>") == MOST_ROWS + 1
    assert "and 5 more" in html
    assert "<table>" not in Brief("alone").to_html()


def test_print_shows_no_network(net: nn.Module) -> None:
    made = pj.prune(net, torch.zeros(2, 6), 0.5)
    assert "Linear(" not in repr(made)
    assert len(str(made).splitlines()) < 20


def test_pruning_and_its_plan(net: nn.Module) -> None:
    made = pj.prune(net, torch.zeros(2, 6), 0.5)
    for text in shown(made):
        assert f"{made.before['params']} → {made.after['params']} params" in text
        assert "10 of 20" in text
    for text in shown(made.plan):
        assert "10 of 20" in text
        assert "criterion magnitude" in text


def test_training(net: nn.Module) -> None:
    x = torch.randn(20, 6)
    data = [(x, (x[:, 0] > 0).long())]
    made = pj.train(net, data, pj.RecoverConfig(epochs=15), val=data)
    for text in shown(made):
        assert "15 steps" in text
        assert "validation" in text
        assert "15" in text
        assert f"{made.history[-1]['train_loss']:.4g}" in text


def test_files(net: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(8, 6)
    made = pj.export(net, tmp_path, formats=("onnx",), example_inputs=x[:2])
    for text in shown(made):
        assert "model.onnx" in text
        assert "agrees" in text
    small = pj.quantize(net, [x], out=tmp_path / "int8.onnx", example_inputs=x[:2])
    for text in shown(small):
        assert f"{small.sqnr_db:.1f} dB" in text
        assert all(layer.name in text for layer in small.layers)
