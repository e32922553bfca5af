"""Even out channel ranges: scale a channel down where it is made and up where it is read."""

from __future__ import annotations

import onnx_ir as ir

from penjing.quantize.feeds import Feeds
from penjing.quantize.place import Placement


def equalize(model: ir.Model, placement: Placement, feeds: Feeds, *, memory_mb: int) -> int:
    """TEMP."""
    return 0
