"""Values that a graph computes from its weights alone, worked out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penjing.quantize.runtime import Session


def constant_part(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The part of a graph that gives these values, which read no input; a copy."""
    return ir.Model(ir.convenience.extract(model.graph, [], list(names)), ir_version=model.ir_version)


def work_out(part: ir.Model) -> dict[str, NDArray[np.generic]]:
    """What such a part gives, by name."""
    return Session(part).run({})
