from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import MeasureError
from penjing.export import export_onnx
from penjing.export.coexist import make_peace
from penjing.measure import (
    Candidate,
    latency,
    latency_onnx,
    latency_saved_model,
    latency_torch,
    onnx_candidate,
    onnx_session,
    speedup,
)


def test_a_sleep_takes_its_time_and_the_order_of_numbers_holds() -> None:
    found = latency(
        {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.01)}, num_runs=15, num_warmup=1
    )
    assert found["short"].median_ms >= 2
    assert found["long"].median_ms >= 10
    assert speedup(found["long"], found["short"]) > 1
    for each in found.values():
        assert each.low_ms <= each.median_ms <= each.high_ms
        assert each.median_ms <= each.p95_ms
        assert each.num_runs == 15
        assert each.device


def test_candidates_take_turns_and_the_first_place_goes_round() -> None:
    calls: list[str] = []
    names = ("a", "b", "c")
    latency({name: partial(calls.append, name) for name in names}, num_runs=6, num_warmup=1)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["abc", "abc", "bca", "cab", "abc", "bca", "cab"]


def test_time_is_limited_and_five_rounds_are_made_all_the_same() -> None:
    assert latency({"a": lambda: time.sleep(0.005)}, num_runs=1000, max_seconds=0.0)["a"].num_runs == 5


def test_a_failing_candidate_is_named() -> None:
    with pytest.raises(MeasureError, match=r"bad.*ZeroDivisionError"):
        latency({"good": lambda: 1, "bad": lambda: 1 // 0})
    with pytest.raises(MeasureError, match="nothing to time"):
        latency({})


def test_facts_of_a_candidate_are_recorded() -> None:
    found = latency({"a": Candidate(lambda: None, batch=32, threads=2, runtime="x 1")}, num_runs=5)["a"]
    assert (found.batch, found.threads, found.runtime) == (32, 2, "x 1")
    assert found.to_dict()["batch"] == 32


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_onnx_files_are_timed_at_a_batch(onnx_file: Path) -> None:
    found = latency_onnx(onnx_file, batch=8, num_runs=5)
    assert found.batch == 8
    assert found.runtime.startswith("onnxruntime ")
    pair = {"a": onnx_candidate(onnx_file), "b": onnx_candidate(onnx_file, batch=2)}
    assert set(latency(pair, num_runs=5)) == {"a", "b"}
    given = onnx_candidate(onnx_file, feeds={"x": np.ones((3, 4), np.float32)}).run()
    assert isinstance(given, list)
    assert given[0].shape == (3, 4)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(MeasureError, match=r"bad\.onnx: ONNX Runtime does not open it"):
        onnx_session(tmp_path / "bad.onnx")


class Spy(nn.Module):
    calls: Tensor

    def __init__(self, seen: list[tuple[int, bool, int]]) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None
        self.see = seen.append

    def forward(self, x: Tensor) -> Tensor:
        self.see((len(x), self.training, torch.get_num_threads()))
        self.calls += 1
        self.last = x
        return x


def test_torch_runs_in_eval_mode_with_its_threads_and_batch_and_is_left_as_it_was() -> None:
    seen: list[tuple[int, bool, int]] = []
    model = Spy(seen).train()
    threads = torch.get_num_threads()
    found = latency_torch(model, torch.zeros(2, 3), batch=4, threads=2, num_runs=5)
    assert set(seen) == {(4, False, 2)}
    assert model.training
    assert model.calls == 0
    assert model.last is None
    assert torch.get_num_threads() == threads
    assert found.runtime == f"torch {torch.__version__}"


@pytest.mark.tf
@pytest.mark.slow
def test_saved_models_are_timed(tmp_path: Path) -> None:
    make_peace()
    tf = pytest.importorskip("tensorflow")

    class Double(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")]
        )
        def __call__(self, x: Any) -> dict[str, Any]:
            return {"y": 2 * x}

    module = Double()
    tf.saved_model.save(module, str(tmp_path / "s"), signatures={"serving_default": module.__call__})
    found = latency_saved_model(tmp_path / "s", batch=4, num_runs=5)
    assert found.runtime.startswith("tensorflow ")
    assert found.threads >= 1
    command = [sys.executable, "-m", "penjing", "bench", str(tmp_path / "s"), "--threads", "1", "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["rows"]
    assert {row["threads"] for row in rows} == {1}
    with pytest.raises(MeasureError, match="has started"):
        latency_saved_model(tmp_path / "s", threads=found.threads + 1)
    with pytest.raises(MeasureError, match="does not open"):
        latency_saved_model(tmp_path / "missing")


@pytest.mark.tf
@pytest.mark.slow
def test_saved_models_that_look_up_indices_are_timed(tmp_path: Path) -> None:
    make_peace()
    tf = pytest.importorskip("tensorflow")

    class Table(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([None, 16], tf.int64, name="ids")]
        )
        def __call__(self, ids: Any) -> dict[str, Any]:
            return {"y": tf.gather(tf.ones([5, 2]), ids)}

    module = Table()
    tf.saved_model.save(module, str(tmp_path / "s"), signatures={"serving_default": module.__call__})
    assert latency_saved_model(tmp_path / "s", batch=4, num_runs=5).num_runs == 5


def test_free_sizes_are_given_by_name_or_place(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU())
    axes = {"*": {2: "length"}}
    export_onnx(net, tmp_path / "free.onnx", torch.randn(2, 2, 8), dynamic_axes=axes)
    with pytest.raises(MeasureError, match=r"dimension 2 of input '\w+' is free \(length\).*--size length="):
        onnx_candidate(tmp_path / "free.onnx")
    for sizes in ({"length": 5}, {"*:2": 5}):
        onnx_candidate(tmp_path / "free.onnx", sizes=sizes).run()
