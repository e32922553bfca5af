"""Find the first op at which two files, or a file and its model, part ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from penjing.export.base import Runner
from penjing.export.coexist import quiet_tf
from penjing.export.exported import inference
from penjing.export.inputs import Feeds
from penjing.files import temporary
from penjing.graph.data_written import DataFollowed


def first_divergence(
    file: Runner, reference: Runner, feeds: Feeds, tolerance: float, source: Path | None = None
) -> str | None:
    """Name of the first op whose output differs by more than ``tolerance`` (relative), or None if none can
    be named.

    Where ops before it have values that only one side has (a folded batch norm), they are named as well, at
    most four.

    ONNX files are compared value by value: with another ONNX file by value names, with a torch module by
    running its traced graph, whose node names the exporter keeps. Other runtimes do not show their
    intermediate values: what comes from ``source``, the ONNX file, by TensorFlow is translated again and run
    op by op.
    """
    from penjing.export.onnx import OnnxRunner
    from penjing.export.verify import TorchRunner

    if isinstance(file, OnnxRunner):
        path = file.path
        ours = onnx_values(path, feeds)
        if isinstance(reference, OnnxRunner):
            theirs = onnx_values(reference.path, feeds)
        elif isinstance(reference, TorchRunner):
            theirs = torch_values(reference, feeds)
        else:
            return None
    elif source is not None and file.runtime.startswith("tensorflow"):
        path, theirs, ours = source, onnx_values(source, feeds), tensorflow_values(source, feeds)
    else:
        return None
    graph = onnx.load(str(path), load_external_data=False).graph
    unseen: list[onnx.NodeProto] = []  # ops since the last agreement whose values only one side has
    for node in graph.node:
        shared = [(ours[name], theirs[name]) for name in node.output if name in ours and name in theirs]
        if not shared:
            unseen.append(node)
        elif all(a.shape == b.shape and _relative(a, b) <= tolerance for a, b in shared):
            unseen.clear()
        else:
            return " or ".join(_called(suspect) for suspect in [*unseen, node][-4:])
    return None


def _called(node: onnx.NodeProto) -> str:
    layer = next((p.value for p in node.metadata_props if p.key == "layer"), "")
    return f"{node.op_type} {node.output[0]!r}" + (f" of layer {layer!r}" if layer else "")


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = np.abs(a - b)
    return (
        float("inf")
        if not np.isfinite(difference).all()
        else float(difference.max() / max(np.abs(b).max(), 1e-12))
    )


def onnx_values(path: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """Every intermediate float value of an ONNX file, by name."""
    import onnxruntime as ort

    model = onnx.load(str(path))
    given = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in given:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    with temporary() as folder:
        target = folder / "all.onnx"
        onnx.save(model, str(target), save_as_external_data=model.ByteSize() > 2**30)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # Unfused, so that each value is the one the graph names.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, feeds)
    return {
        n: v for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray) and v.dtype.kind == "f"
    }


def tensorflow_values(path: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """Every intermediate float value of an ONNX file's translation to TensorFlow, by name."""
    from penjing.export.tf_ops.backend import tf
    from penjing.export.tf_ops.trace import GraphTracer
    from penjing.export.tf_ops.value import Value

    values: dict[str, np.ndarray] = {}

    def watch(name: str, value: Value) -> None:
        if value.const is None and value.quantized is None:
            array = np.asarray(value.plain().numpy())
            if array.dtype.kind == "f":
                values[name] = array

    with quiet_tf():
        GraphTracer(onnx.load(str(path)))({n: tf.constant(a) for n, a in feeds.items()}, watch)
    return values


def torch_values(reference: Runner, feeds: Feeds) -> dict[str, np.ndarray]:
    """Every intermediate float value of the reference's traced graph, by its node's name."""
    from penjing.export.verify import TorchRunner

    assert isinstance(reference, TorchRunner)
    leaves = iter([torch.from_numpy(feeds[name]) for name in (reference.names or feeds)])
    mixed = [next(leaves) if isinstance(leaf, torch.Tensor) else leaf for leaf in reference._leaves]
    args, kwargs = torch.utils._pytree.tree_unflatten(mixed, reference._spec)
    values: dict[str, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and result.is_floating_point() and n.op == "call_function":
                values[n.name] = result.detach().float().cpu().numpy()
            return result

    with inference(reference.model), DataFollowed():
        program = torch.export.export(reference.model, args, kwargs, strict=False)
        Recorder(program.module()).run(*torch.utils._pytree.tree_leaves((args, kwargs)))
    return values
