"""Post-training quantization to int8 ONNX files that run in int8 kernels."""

from penjing.quantize.config import QuantizeConfig
from penjing.quantize.observe import Observer, observers
from penjing.quantize.pack import load_quantized, read_header
from penjing.quantize.ptq import quantize
from penjing.quantize.result import LayerRow, QuantizeResult, Timing
from penjing.quantize.timing import time_against_fp32

__all__ = [
    "LayerRow",
    "Observer",
    "QuantizeConfig",
    "QuantizeResult",
    "Timing",
    "load_quantized",
    "observers",
    "quantize",
    "read_header",
    "time_against_fp32",
]
