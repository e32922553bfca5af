"""The traced network as JSON and safetensors, for PyTorch: every ATen op is kept and nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from penjing.export.base import Exporter, Runner, Source, TensorSpec, register
from penjing.export.exported import inference
from penjing.export.inputs import Feeds, to_numpy
from penjing.files import atomic_dir


class ProgramRunner(Runner):
    """A stored program, run by PyTorch without the class that defined it."""

    def __init__(self, path: Path | str) -> None:
        from penjing.export.program import load_program

        self.path = Path(path)
        self.runtime = f"torch {torch.__version__}"
        self._model = load_program(self.path)
        specs: list[TensorSpec] = []
        self._dtypes: list[torch.dtype | None] = []  # arrays have no bfloat16
        for node in self._model.graph.find_nodes(op="placeholder"):
            stored = node.meta.get("penjing_example")
            dtype: torch.dtype | None = getattr(torch, stored["dtype"]) if stored else None
            shape = tuple(d if isinstance(d, int) else None for d in stored["shape"]) if stored else ()
            specs.append(TensorSpec(str(node.target), to_numpy(torch.zeros((), dtype=dtype)).dtype, shape))
            self._dtypes.append(dtype)
        self.inputs = tuple(specs)
        self._takes = self._model.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
        self.outputs = ()

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the order of the model's own output structure; inputs in the order they are given."""
        pairs = zip(feeds.values(), self._dtypes, strict=True)
        tensors = [torch.from_numpy(array).to(dtype=dtype) for array, dtype in pairs]
        with inference(self._model):
            args, kwargs = torch.utils._pytree.tree_unflatten(tensors, self._takes)
            out = self._model(*args, **kwargs)
        return [to_numpy(t) for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


@register
class ProgramExporter(Exporter):
    """The traced program, trainable and loadable without the model's source."""

    name: ClassVar[str] = "program"
    filename: ClassVar[str] = "program"
    from_onnx: ClassVar[bool] = False

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A folder with ``program.json`` in it."""
        return (path / "program.json").is_file()

    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Trace the module and store it; gives what there is to know of the trace."""
        from penjing.export.program import save_program
        from penjing.graph import trace

        assert source.model is not None  # an ONNX file has no ATen graph: `export` asks
        graph = trace(source.model, source.example_inputs)
        with atomic_dir(path) as aside:
            save_program(graph, aside)
        return graph.notes

    def open(self, path: Path) -> Runner:
        """The program in PyTorch."""
        return ProgramRunner(path)
