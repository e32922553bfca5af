"""What every served format is: something that writes a file, and opens it again in its own runtime."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from penjing.errors import ExportError
from penjing.export.inputs import Feeds
from penjing.table import adder

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class TensorSpec:
    """One input of a file: name, NumPy dtype, shape (None where it is free), and what free sizes are called
    (None elsewhere; empty where the format has no names for them)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    free: tuple[str | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "dtype": str(self.dtype), "shape": list(self.shape)}


class Runner(ABC):
    """An exported file, opened from disk in the runtime that serves it.

    Attributes:
        path: The file or folder.
        runtime: Name and version of the runtime.
        inputs: What it wants to be fed.
        outputs: Names of what it gives, in order.
    """

    path: Path
    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """Outputs, in order, for named input arrays."""


@dataclass(frozen=True)
class Source:
    """What a format is made from.

    Attributes:
        onnx: The fp32 ONNX file all served formats come from; none is there if no format is `from_onnx`.
        feeds: Example inputs by name.
        model: The torch module, where there is one.
        example_inputs: As the model is called.
        data: Calibration batches, for formats that quantize.
        int8: A quantized (QDQ) ONNX file, if there is one.
        layout: Dimension order of image inputs in the file's signature.
        axes: Dimensions of the inputs to leave free beside the batch, with what they are called.
        scratch: A folder that lives as long as the export, for what several formats are made from.
    """

    onnx: Path
    feeds: Feeds
    model: Any = None
    example_inputs: Any = None
    data: Iterable[Any] | None = None
    int8: Path | None = None
    layout: Layout = "nchw"
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    scratch: Path | None = None

    def quantized(self, name: str) -> Path:
        """The int8 file.

        Raises:
            ExportError: if none was given; ``name`` is the format that needs it.
        """
        if self.int8 is None:
            raise ExportError(
                f"format {name!r} was asked for, but there is no quantized model",
                remedy="Quantize first and pass that file: int8=…, on the command line --int8",
            )
        return self.int8


class Exporter(ABC):
    """One format. Subclass, name it, and decorate with `register`; nothing else has to know.

    Attributes:
        name: What users ask for.
        filename: File or folder made in the export folder.
        extra: The optional dependency set that it needs (``pip install penjing[extra]``), or None.
        module: The import that shows whether the extra is there.
        quantized: Whether numbers are rounded on purpose, so that only a loose agreement can be asked for.
        changes_layout: Whether ``layout="nhwc"`` turns this format's image inputs.
        from_onnx: Whether it is made from the ONNX file, which is written only where a format needs it.
    """

    name: ClassVar[str]
    filename: ClassVar[str]
    extra: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    quantized: ClassVar[bool] = False
    changes_layout: ClassVar[bool] = False
    from_onnx: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def write(self, source: Source, path: Path) -> tuple[str, ...] | None:
        """Write the file atomically; return notes where it is not all that the format's name says."""

    @abstractmethod
    def open(self, path: Path) -> Runner:
        """Open a written file in its runtime."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this is a file of this format, by its suffix."""
        return path.suffix.lower() == Path(cls.filename).suffix and path.is_file()

    def require(self) -> None:
        """Raise `ExportError` with the install command if the runtime is missing."""
        # Looked up, not imported: the order in which frameworks are loaded matters (see tf_ops.backend).
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise ExportError(
                f"format {self.name!r} needs the package {self.module!r}, which is not installed",
                remedy=f"Run: pip install 'penjing[{self.extra}]'",
            )


_FORMATS: dict[str, type[Exporter]] = {}


def register(exporter: type[Exporter]) -> type[Exporter]:
    """Class decorator: make a format known by its name; another one of that name is a ``ValueError``."""
    return adder(_FORMATS, "format ")(exporter.name)(exporter)


def formats() -> dict[str, type[Exporter]]:
    """Every format by name, discovered from the modules of this package."""
    import penjing.export as package

    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(_FORMATS)


def get_format(name: str) -> Exporter:
    """The format of that name.

    Raises:
        ExportError: for an unknown name, with the nearest one.
    """
    known = formats()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ExportError(f"unknown format {name!r}", remedy=f"{hint}Known: {', '.join(sorted(known))}")
    return known[name]()


def open_file(path: Path | str) -> Runner:
    """Open an exported file by what it is called: ``.onnx``, ``.tflite``, ``.xml``, or a SavedModel folder.

    Raises:
        ExportError: if it is missing or no format has that name.
    """
    path = Path(path)
    if not path.exists():
        raise ExportError("no such file", layer=str(path), remedy="Give the path of an exported file")
    for exporter in formats().values():
        if exporter.accepts(path):
            instance = exporter()
            instance.require()
            return instance.open(path)
    raise ExportError(
        "no format opens this file", layer=str(path), remedy="Give .onnx, .tflite, .xml or a SavedModel"
    )
