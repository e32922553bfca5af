"""ONNX op → torch: one file a family, one decorated function (or table row) an op.

Importing this package fills `OPS` (torch rules) and `HOST` (the same ops on sizes, in NumPy).
"""

import importlib
import pkgutil

from penjing.models.onnx_ops.node import HOST, OPS, Node, as_tensor, host, op

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["HOST", "OPS", "Node", "as_tensor", "host", "op"]
