"""ONNX Runtime sessions on one graph: with the outputs asked for, optimised or as written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from penjing.errors import QuantizeError
from penjing.files import temporary
from penjing.quantize.feeds import Feed

_IN_MEMORY = 2**31 - 2**24


class Session:
    """Runs a graph and gives named arrays.

    Args:
        model: A path, or a graph in memory.
        outputs: Values to give, by name; by default the graph's outputs.
        simulate: Run quantize and dequantize ops one by one in float instead of int8 kernels.
        threads: Threads inside an op; 0 lets the runtime choose.
        arena: Keep the memory of the largest batch for the next one: faster, but it is never given back.
        quiet: Let the runtime print nothing of a call that fails.
    """

    def __init__(
        self,
        model: Path | str | ir.Model,
        *,
        outputs: Sequence[str] | None = None,
        simulate: bool = False,
        threads: int = 0,
        arena: bool = False,
        quiet: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4 if quiet else 3
        options.intra_op_num_threads = threads
        # Idle threads that spin take the cores that the statistics are computed on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = arena
        if simulate:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            if isinstance(model, ir.Model):
                self._session = _open(model, outputs, options)
            else:
                self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise QuantizeError(
                f"ONNX Runtime cannot load the graph ({error})", remedy="Check the model with onnx.checker"
            ) from error
        self.names = [out.name for out in self._session.get_outputs()]

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises:
            QuantizeError: when the runtime refuses the feed.
        """
        try:
            values = self._session.run(self.names, feed)
        except Exception as error:
            raise QuantizeError(
                f"ONNX Runtime fails on the data ({error})",
                remedy="Check that the data is what the network was made for",
            ) from error
        return dict(zip(self.names, values, strict=True))


def _open(model: ir.Model, outputs: Iterable[str] | None, options: Any) -> Any:
    model = model.clone()
    if outputs is not None:
        _set_outputs(model.graph, list(outputs))
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size < _IN_MEMORY:
        return ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    with temporary() as folder:
        path = folder / "graph.onnx"
        ir.save(model, path, external_data="graph.data")
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _set_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Make the graph give exactly these values; what feeds none of them is left for the runtime to drop."""
    values = {v.name: v for node in graph for v in node.outputs}
    graph.outputs.clear()
    for name in dict.fromkeys(names):
        value = values[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)


def batch_limit(session: Session, feed: Feed, memory_mb: int) -> int:
    """Samples a call may have so that its outputs stay within the memory, from a run on one sample."""
    size = sum(array.nbytes for array in session.run(feed).values())
    return max(1, min(256, (memory_mb << 20) // max(size, 1)))
