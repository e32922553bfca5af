"""Frames in the batch: clips laid end to end in it, or folded into it for a while."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_networks import build

from penjing.errors import ExportError
from penjing.export import OnnxRunner, export_onnx
from penjing.graph import couple, trace
from penjing.prune import prune
from penjing.prune.cost import count_all
from penjing.search.workload import Workloads

NAMES = ["clips", "frames"]


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_nothing_whole(name: str) -> None:
    model, inputs = build(name)
    result = prune(model, inputs)
    assert result.in_place
    assert {frozen.kind for frozen in result.frozen} <= {"input", "output"}
    assert result.after["params"] < 0.4 * result.before["params"]


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_those_of_one_sample(name: str) -> None:
    model, (x,) = build(name)
    one, two = (count_all(trace(model, inputs))["macs"] for inputs in (x, torch.cat([x, x])))
    assert one == two
    frames, area = (1, 36) if name == "clips" else (4, 36)
    first = frames * area * 3 * 8 * 9
    assert first < one < 4 * first
    graph = trace(model, x)
    ops = Workloads(graph, couple(graph), batch=8)({}).ops
    assert any(shape.x[0] == 8 * frames for shape in ops if shape.op == "conv")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_steps", [0, 30])
def test_the_refit_takes_whole_clips(name: str, block_steps: int) -> None:
    model, (x,) = build(name)
    data = [torch.randn(len(x) * n, *x.shape[1:]) for n in (2, 4, 1)]
    plain = prune(model, x, data=data, reconstruct={"block_steps": block_steps, "holdout": 0.3})
    refit = plain.reconstruction
    assert refit is not None
    assert refit.error_after < refit.error_before
    assert bool(refit.blocks) == bool(block_steps)


def test_a_file_of_clips_has_the_batch_of_the_example(tmp_path: Path) -> None:
    model, (x,) = build("clips")
    with pytest.raises(ExportError, match="multiples of 4"):
        export_onnx(model.eval(), tmp_path / "m.onnx", x)
    runner = OnnxRunner(export_onnx(model, tmp_path / "m.onnx", x, dynamic_batch="auto"))
    assert runner.inputs[0].shape == tuple(x.shape)
