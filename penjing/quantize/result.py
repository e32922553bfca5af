"""What quantization gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from penjing.brief import Brief, InShort


@dataclass(frozen=True)
class LayerRow:
    """One layer with weights, in the order of the graph.

    Attributes:
        name: The layer's name, from its weight.
        op: ``"Conv"``, ``"Gemm"``, ``"MatMul"``, ``"LSTM"``, ``"GRU"``, ``"RNN"`` or, a
            table of embeddings, ``"Gather"``.
        quantized: Whether its weights are int8 in the file.
        why: Why it stayed in float, or "".
        range_min: Smallest input value represented.
        range_max: Largest input value represented.
        observer: The observer that found the range, or "" for a float layer.
        weight_db: Signal to error of the weights alone, in dB.
        output_db: Signal to error of the layer's output in the quantized network against fp32, in dB, with
            all the errors of the layers before it; None where not measured.
        gain_db: What the network's output gains, in dB, when this layer alone goes back to float; None where
            not measured.
    """

    name: str
    op: str
    quantized: bool
    why: str = ""
    range_min: float | None = None
    range_max: float | None = None
    observer: str = ""
    weight_db: float | None = None
    output_db: float | None = None
    gain_db: float | None = None


@dataclass(frozen=True)
class Timing:
    """The int8 file against the fp32 one, in the same process.

    Attributes:
        fp32_ms: Milliseconds per call of the fp32 network, as if nothing else ran (`Latency.quiet_ms`).
        int8_ms: The same of the int8 file.
        speedup: ``fp32_ms / int8_ms``.
        batch: Samples per call.
        threads: Threads used by the runtime.
        runtime: The runtime and its version.
    """

    fp32_ms: float
    int8_ms: float
    speedup: float
    batch: int
    threads: int
    runtime: str

    @property
    def pays(self) -> bool:
        """Whether int8 is faster on this machine."""
        return self.speedup > 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"pays": self.pays}


@dataclass(frozen=True, repr=False)
class QuantizeResult(InShort):
    """A quantized network, written and checked.

    Attributes:
        path: The QDQ ONNX file.
        weights_path: The safetensors file with int8 weights, scales and zero points.
        layers: One row per layer with weights.
        sqnr_db: Signal to error of the file's outputs against fp32, in dB (the worst output), on samples kept
            out of calibration.
        db_samples: How many samples that is over.
        agreement_db: The file's int8 kernels against the simulation of the same file, in dB.
        simulated_db: Signal to error of the simulation against fp32, in dB.
        num_quantized: Layers whose weights are int8.
        num_float: Layers and other float ops that stayed in float.
        float_ops: ``(name, op, why)`` of everything that stayed in float.
        metric_fp32: The metric of the fp32 network, where one was measured.
        metric_int8: The metric of the int8 file, where one was measured.
        metric_samples: How many samples the metric is over.
        size_bytes: Size of the ONNX file.
        fp32_bytes: Size of the fp32 file.
        samples: Calibration samples used.
        reduce_range: How weights were kept from overflowing: ``"off"``, ``"pairs"`` or ``"full"``.
        timing: int8 against fp32 on this machine, where measured.
        seconds: Time taken.
        notes: Lines for people: what was done that they may not expect.
    """

    path: Path
    weights_path: Path
    layers: tuple[LayerRow, ...]
    sqnr_db: float
    agreement_db: float
    simulated_db: float
    num_quantized: int
    num_float: int
    float_ops: tuple[tuple[str, str, str], ...]
    size_bytes: int
    fp32_bytes: int
    samples: int
    reduce_range: str
    seconds: float
    metric_fp32: float | None = None
    metric_int8: float | None = None
    metric_samples: int = 0
    db_samples: int = 0
    timing: Timing | None = None
    notes: tuple[str, ...] = field(default=())

    def at(self, path: Path) -> Self:
        """The same files, at another place."""
        return replace(self, path=path, weights_path=path.with_suffix(".safetensors"))

    def in_short(self) -> Brief:
        """Size and error of the file; its layers, the worst first."""
        from penjing.report.text import changed, size

        def decibels(value: float | None) -> str:
            return "–" if value is None else f"{value:.1f} dB"

        worst = sorted(self.layers, key=lambda layer: (layer.quantized, layer.output_db or float("inf")))
        rows = [
            (
                layer.name,
                layer.op,
                "int8" if layer.quantized else f"float: {layer.why}",
                decibels(layer.output_db),
            )
            for layer in worst
        ]
        smaller = changed(self.fp32_bytes, self.size_bytes, "smaller", "larger")
        title = (
            f"{size(self.fp32_bytes)} → {size(self.size_bytes)} ({smaller}), "
            f"{self.sqnr_db:.1f} dB against fp32 (n={self.db_samples}); "
            f"{self.num_quantized} layers in int8, {self.num_float} ops in float"
        )
        return Brief(title, ("layer", "op", "kept as", "output"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, paths as strings."""
        data = asdict(self)
        data["path"], data["weights_path"] = str(self.path), str(self.weights_path)
        data["timing"] = self.timing.to_dict() if self.timing else None
        data["layers"] = [asdict(row) for row in self.layers]
        data["float_ops"] = [list(item) for item in self.float_ops]
        data["notes"] = list(self.notes)
        return data
