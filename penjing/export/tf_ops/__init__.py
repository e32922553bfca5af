"""ONNX op → TensorFlow op: one file a family, one decorated function (or table row) an op.

Importing this package imports TensorFlow; `penjing.export.saved_model` does so inside its functions.
"""

import importlib
import pkgutil

from penjing.export.tf_ops.node import OPS, Node, op
from penjing.export.tf_ops.value import Value, Weights

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "trace":  # it reads the finished table
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["OPS", "Node", "Value", "Weights", "op"]
