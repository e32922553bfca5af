from __future__ import annotations

from typing import Any

from penjing.report import Metrics

VALUES: dict[str, Any] = {
    "name": "sample <b>&",
    "before": "dense",
    "after": "int8",
    "max_drop": 0.005,
    "held": True,
    "rows": [
        {
            "key": "dense",
            "label": "dense, trained properly",
            "accuracy": {
                "train": {"value": 0.99, "n": 2000, "low": 0.985, "high": 0.993},
                "val": {"value": 0.95, "n": 2000, "low": 0.939, "high": 0.959},
                "test": {"value": 0.9412, "n": 5000, "low": 0.9343, "high": 0.9474},
            },
            "num_params": 102_300_000,
            "num_macs": 180_000_000,
            "size_bytes": 409_000_000,
            "file": "",
            "latency": [
                {
                    "batch": 1,
                    "median_ms": 12.1,
                    "p95_ms": 13.0,
                    "threads": 1,
                    "runtime": "onnxruntime 1",
                    "num_runs": 50,
                },
                {
                    "batch": 32,
                    "median_ms": 210.0,
                    "p95_ms": 222.0,
                    "threads": 1,
                    "runtime": "onnxruntime 1",
                    "num_runs": 50,
                },
            ],
        },
        {
            "key": "pruned",
            "label": "pruned, before recovery",
            "note": "no training",
            "accuracy": {"test": {"value": 0.31, "n": 5000, "low": 0.297, "high": 0.323}},
            "num_params": 9_800_000,
            "num_macs": 45_000_000,
            "size_bytes": 39_300_000,
        },
        {
            "key": "int8",
            "label": "int8",
            "accuracy": {
                "val": {"value": 0.949, "n": 2000, "low": 0.938, "high": 0.958},
                "test": {"value": 0.9404, "n": 5000, "low": 0.9335, "high": 0.9466},
            },
            "num_params": 9_800_000,
            "num_macs": 45_000_000,
            "size_bytes": 9_900_000,
            "file": "model.int8.onnx",
            "latency": [
                {
                    "batch": 1,
                    "median_ms": 1.1,
                    "p95_ms": 1.2,
                    "threads": 1,
                    "runtime": "onnxruntime 1",
                    "num_runs": 50,
                }
            ],
        },
    ],
    "curves": {
        "train": [
            {"epoch": 1, "train_loss": 4.0, "val_accuracy": 0.2},
            {"epoch": 2, "train_loss": 1.0, "val_accuracy": 0.95},
        ],
        "recover": [{"epoch": 1, "train_loss": 0.4, "val_accuracy": 0.949}],
    },
    "widths": [{"name": "features.0.weight:0", "before": 64, "after": 20, "kind": "channel"}],
    "frozen": [
        {"reason": "no rule for op", "op": "aten.x", "source": "model.py:12", "params": ["a.weight:0"]}
    ],
    "quantized": [
        {"name": "features.0", "op": "Conv", "sqnr_db": 41.2},
        {"name": "head", "op": "Gemm", "kept_float": "the drop did not hold with it"},
    ],
    "checks": [
        {
            "file": "model.onnx",
            "format": "onnx",
            "runtime": "onnxruntime 1",
            "batch": 3,
            "max_abs_diff": 1e-6,
            "rel_diff": 2e-7,
            "against": "torch",
        }
    ],
    "files": [
        {
            "file": "model.onnx",
            "format": "onnx",
            "size_bytes": 39_300_000,
            "accuracy": {"val": {"value": 0.95, "n": 2000, "low": 0.939, "high": 0.959}},
        }
    ],
    "classes": [{"name": "Ж", "n": 50, "before": 0.9, "after": 0.8}],
    "robustness": {"dense": {"noise": {"value": 0.9, "n": 5000, "low": 0.89, "high": 0.91}}},
    "confusions": [{"label": "Ж", "taken_for": "Щ", "before": 1, "after": 6}],
    "search": {
        "original": 0.95,
        "allowed": 0.008,
        "trials": [
            {"number": 1, "power": 1.0, "score": 0.9, "drop": 0.05, "held": False, "spent": {"params": 5e6}},
            {"number": 2, "power": 0.5, "score": 0.95, "drop": 0.0, "held": True, "spent": {"params": 9.8e6}},
        ],
        "chosen": 2,
        "reached": False,
    },
    "sensitivity": {
        "groups": ["features.0.weight:0"],
        "sizes": [64],
        "ratios": [0.25, 0.5],
        "damage": [[0.0, 0.3]],
        "measure": "kl",
        "samples": 64,
    },
    "latency": {
        "limit": 0.002,
        "original": 0.004,
        "batch": 1,
        "threads": 1,
        "runtime": "onnxruntime",
        "checks": [
            {"name": "uniform, 0% removed", "seconds": 0.004, "predicted": None, "error": None},
            {"name": "choice 1", "seconds": 0.0021, "predicted": 0.002, "error": 0.05},
        ],
    },
    "notes": ["a note"],
    "recipe": "name: sample\n",
    "environment": {"CPU": "a CPU"},
    "seconds": {"train": 340.2, "recover": 61.0},
}


def sample() -> Metrics:
    """Every kind of number."""
    return Metrics.parse(VALUES)


def by_metric(name: str) -> Metrics:
    """The same of a network that is judged by a metric, of which there are no intervals."""
    rows = [{**row, "accuracy": _bare(row["accuracy"])} for row in VALUES["rows"]]
    return Metrics.parse({**VALUES, "rows": rows, "metric": name})


def _bare(cells: dict[str, Any]) -> dict[str, Any]:
    return {split: {**cell, "low": None, "high": None} for split, cell in cells.items()}


def least() -> Metrics:
    """The least a run can measure."""
    row: dict[str, Any] = {"label": "x", "num_params": 1, "num_macs": 1, "size_bytes": 1}
    return Metrics.parse(
        {
            "name": "bare",
            "before": "dense",
            "after": "recovered",
            "rows": [{**row, "key": "dense"}, {**row, "key": "recovered"}],
        }
    )
