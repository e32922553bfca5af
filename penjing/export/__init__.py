"""Served formats: ONNX, SavedModel, LiteRT, OpenVINO, PT2 — each file verified in its own runtime."""

from penjing.export.base import Exporter, Runner, TensorSpec, formats, open_file
from penjing.export.onnx import OnnxRunner, export_onnx

__all__ = ["Exporter", "OnnxRunner", "Runner", "TensorSpec", "export_onnx", "formats", "open_file"]
