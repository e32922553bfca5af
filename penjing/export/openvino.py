"""OpenVINO IR, converted from the ONNX file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from penjing.errors import ExportError
from penjing.export.base import Exporter, Runner, Source, TensorSpec, register
from penjing.export.inputs import Feeds
from penjing.files import atomic_dir


class OpenVinoRunner(Runner):
    """An OpenVINO IR folder (or its ``.xml``) on the CPU, in fp32.

    Processors with bfloat16 would otherwise run fp32 files in it, and the numbers would not be the model's.
    """

    def __init__(self, path: Path | str) -> None:
        OpenVinoExporter().require()
        import openvino as ov

        self.path = Path(path)
        xml = self.path if self.path.suffix == ".xml" else self.path / "model.xml"
        self.runtime = f"openvino {ov.__version__}"
        try:
            core = ov.Core()
            self._model = core.compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot open the file: {str(error).splitlines()[0]}",
                layer=str(xml),
                remedy="Check that model.xml and model.bin are both there",
            ) from error
        self.inputs = tuple(
            TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), _shape(port))
            for port in self._model.inputs
        )
        self.outputs = tuple(port.get_any_name() for port in self._model.outputs)

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs in the model's order."""
        results = self._model(feeds)
        return [np.array(results[i]) for i in range(len(self.outputs))]


def _reason(text: str) -> str:
    """Every op that it names with what is wrong, from a log of many lines."""
    told = re.findall(r"<Node\((.+)\): .*>'.*\n(?:FrontEnd API failed.*\n)?(.+)", text)
    return "; ".join(f"{op}: {why}" for op, why in told) or text.splitlines()[0]


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(None if dim.is_dynamic else int(dim.get_length()) for dim in port.get_partial_shape())


@register
class OpenVinoExporter(Exporter):
    """OpenVINO IR: ``openvino/model.xml`` and ``model.bin``, weights in fp32."""

    name: ClassVar[str] = "openvino"
    filename: ClassVar[str] = "openvino"
    extra: ClassVar[str | None] = "openvino"
    module: ClassVar[str | None] = "openvino"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """An ``.xml`` file or a folder with ``model.xml``."""
        return path.suffix.lower() == ".xml" or (path / "model.xml").is_file()

    def write(self, source: Source, path: Path) -> None:
        """Convert the ONNX file."""
        import openvino as ov

        try:
            model = ov.convert_model(str(source.onnx))
        except Exception as error:  # front-end errors have no public base class
            raise ExportError(
                f"OpenVINO cannot convert the model: {_reason(str(error))}",
                layer=self.name,
                remedy="Export to ONNX only, or change the op named",
            ) from error
        with atomic_dir(path) as aside:
            ov.save_model(model, str(aside / "model.xml"), compress_to_fp16=False)

    def open(self, path: Path) -> Runner:
        """The IR on the CPU."""
        return OpenVinoRunner(path)
