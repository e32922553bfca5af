"""Find the first op at which two files, or a file and its model, part ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from penjing.export.base import Runner
from penjing.export.choices import chosen_by_rounding
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

    ONNX files are compared value by value with another ONNX file, or with a torch module's traced graph, most
    of whose names the exporter keeps; a value that is found under another name is no difference. Other
    runtimes do not show their intermediate values: what comes from ``source``, the ONNX file, by TensorFlow
    is translated again and run op by op.
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
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for value in theirs.values():
        by_shape.setdefault(value.shape, []).append(value)

    def agrees(name: str) -> bool:
        # By any name: where torch takes an op apart for ONNX, the names behind it are counted anew.
        a = ours[name]
        return any(_relative(a, b) <= tolerance for b in by_shape.get(a.shape, ()))

    unseen: list[onnx.NodeProto] = []  # ops since the last agreement whose values only one side has

    def suspects() -> str:
        called = " or ".join(_called(suspect) for suspect in unseen[-4:])
        return called + _choice(chosen_by_rounding(graph, unseen, ours))

    for node in graph.node:
        seen = [name for name in node.output if name in ours]
        if seen and all(map(agrees, seen)):
            unseen.clear()
            continue
        unseen.append(node)
        if not theirs.keys().isdisjoint(seen):
            return suspects()
    return suspects() if unseen else None  # outputs go by other names than values on the way


def _called(node: onnx.NodeProto) -> str:
    layer = next((p.value for p in node.metadata_props if p.key == "layer"), "")
    return f"{node.op_type} {node.output[0]!r}" + (f" of layer {layer!r}" if layer else "")


def _choice(found: tuple[onnx.NodeProto, float] | None) -> str:
    if found is None:
        return ""
    node, gap = found
    near = f"differ by {gap:.0e} of the largest" if gap else "are equal"
    return (
        f", behind {_called(node)}, which chooses among values of which two {near}: rounding decides, and "
        "runtimes round differently (in a network that is not trained, this may be all that is wrong)"
    )


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
