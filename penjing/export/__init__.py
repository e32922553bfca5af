"""Served formats: ONNX, SavedModel, LiteRT, OpenVINO, PT2 — each file verified in its own runtime."""

from penjing.export.base import Exporter, Runner, TensorSpec, formats, open_file
from penjing.export.export import ExportedFile, ExportResult, export
from penjing.export.onnx import OnnxRunner, export_onnx
from penjing.export.verify import VerifyResult, VerifyRow, verify

__all__ = [
    "ExportResult",
    "ExportedFile",
    "Exporter",
    "OnnxRunner",
    "Runner",
    "TensorSpec",
    "VerifyResult",
    "VerifyRow",
    "export",
    "export_onnx",
    "formats",
    "open_file",
    "verify",
]
