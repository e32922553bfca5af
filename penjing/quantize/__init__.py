"""Quantization, after training or in training, to int8 ONNX files that run in int8 kernels."""

from penjing.quantize.config import QuantizeConfig
from penjing.quantize.observe import Observer, observers
from penjing.quantize.pack import load_quantized, read_header
from penjing.quantize.ptq import quantize
from penjing.quantize.result import LayerRow, QuantizeResult, Timing
from penjing.quantize.slice import prune_quantized
from penjing.quantize.student import QuantizedStudent, quantized_student
from penjing.quantize.timing import time_against_fp32

__all__ = [
    "LayerRow",
    "Observer",
    "QuantizeConfig",
    "QuantizeResult",
    "QuantizedStudent",
    "Timing",
    "load_quantized",
    "observers",
    "prune_quantized",
    "quantize",
    "quantized_student",
    "read_header",
    "time_against_fp32",
]
