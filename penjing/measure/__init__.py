"""Measurements: parameters and MACs, accuracy with its interval, latency, sizes, robustness, prunability."""

from __future__ import annotations

from penjing.measure.accuracy import Accuracy, accuracy, wilson
from penjing.measure.count import Count, LayerCount, count
from penjing.measure.inspect import GroupRow, Inspection, LayerRow, inspect
from penjing.measure.latency import (
    Candidate,
    Latency,
    device_name,
    latency,
    latency_onnx,
    latency_saved_model,
    latency_torch,
    onnx_candidate,
    onnx_session,
    saved_model_candidate,
    speedup,
    torch_candidate,
)
from penjing.measure.robustness import Robustness, robustness
from penjing.measure.sizes import size_bytes

__all__ = [
    "Accuracy",
    "Candidate",
    "Count",
    "GroupRow",
    "Inspection",
    "LayerCount",
    "LayerRow",
    "Latency",
    "Robustness",
    "accuracy",
    "count",
    "device_name",
    "inspect",
    "latency",
    "latency_onnx",
    "latency_saved_model",
    "latency_torch",
    "onnx_candidate",
    "onnx_session",
    "robustness",
    "saved_model_candidate",
    "size_bytes",
    "speedup",
    "torch_candidate",
    "wilson",
]
