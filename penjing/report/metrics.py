"""What ``metrics.json`` holds: every number of a run, each with what is needed to judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from penjing.config import Config
from penjing.errors import ArtifactError


class AccuracyCell(Config):
    """Share of samples answered right: value, how many samples, and the 95% Wilson interval.

    Without classes to be right about: the value of ``metric``, with an interval where that is a share of the
    samples (``"agreement"`` of scores).
    """

    value: float
    n: int
    low: float | None
    high: float | None
    metric: str = ""

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the share answered right; metrics of runs of before have no name, and no interval."""
        return not self.metric and self.low is not None


_BUSY = 1.5
"""How far a median lies above the quiet time where other work must have run beside."""


class LatencyCell(Config):
    """Time of one call, in milliseconds: median and 95th percentile, what the median would be if nothing else
    ran (`penjing.measure.latency.Latency`; None in runs of before), and the conditions."""

    batch: int
    median_ms: float
    p95_ms: float
    quiet_ms: float | None = None
    threads: int
    runtime: str
    device: str = "cpu"
    num_runs: int = 0

    @property
    def busy(self) -> bool:
        """Whether other work ran beside, so that the median tells more of it than of the file."""
        return self.quiet_ms is not None and self.median_ms > _BUSY * self.quiet_ms


class Row(Config):
    """One line of the table: a network or a file made from it.

    Attributes:
        key: Short name, e.g. ``"int8"``.
        label: What people read.
        note: What has to be said about it, or "".
        accuracy: By split: ``train``, ``val``, ``test``.
        metric: Value of the user's own metric on the validation split, where there is one.
        num_params: Parameters (for an int8 file, of the network it stores).
        num_macs: Multiply-accumulates of one sample.
        file: The file that was measured, relative to the run folder ("" where it was not kept).
        size_bytes: Its size on disk.
        latency: Measured on that file.
        measured_on: What answered: ``"file, ONNX Runtime 1.32"``…
    """

    key: str
    label: str
    note: str = ""
    accuracy: dict[str, AccuracyCell] = Field(default_factory=dict)
    metric: float | None = None
    num_params: int
    num_macs: int
    file: str = ""
    size_bytes: int
    latency: tuple[LatencyCell, ...] = ()
    measured_on: str = ""

    def latency_at(self, batch: int) -> LatencyCell | None:
        """The latency at a batch size, if it was measured."""
        return next((cell for cell in self.latency if cell.batch == batch), None)


class Width(Config):
    """Slots of one group of channels, heads or features before and after."""

    name: str
    before: int
    after: int
    kind: str = ""


class FrozenAxis(Config):
    """What could not be pruned, and why."""

    reason: str
    op: str = ""
    source: str = ""
    params: tuple[str, ...] = ()


class QuantizedLayer(Config):
    """Quantization error of one layer's output, in dB of signal to noise (None where it stayed float)."""

    name: str
    op: str = ""
    sqnr_db: float | None = None
    kept_float: str = ""


class FileCheck(Config):
    """One check of an exported file in its own runtime."""

    file: str
    format: str
    runtime: str = ""
    batch: int
    free: str = ""
    max_abs_diff: float | None = None
    rel_diff: float | None = None
    against: str = ""
    ok: bool = True


class FileRow(Config):
    """One exported file: size, checks, and the accuracy of the file itself."""

    file: str
    format: str
    size_bytes: int
    accuracy: dict[str, AccuracyCell] = Field(default_factory=dict)
    runtime: str = ""


class ClassChange(Config):
    """Test accuracy of one class before and after."""

    name: str
    n: int
    before: float
    after: float


class ConfusionChange(Config):
    """Test samples of one class taken for another, before and after."""

    label: str
    taken_for: str
    before: int
    after: int


class TrialCell(Config):
    """One size that was tried against the allowed loss."""

    number: int
    power: float
    score: float
    drop: float
    held: bool
    spent: dict[str, float] = Field(default_factory=dict)


class SearchCell(Config):
    """Sizes tried: the original's score, the loss allowed before quantization, and which size was chosen.

    ``reached`` says whether the chosen size is within the budget.
    """

    original: float
    allowed: float
    drop: str = "absolute"
    trials: tuple[TrialCell, ...]
    chosen: int
    reached: bool


class Metrics(Config):
    """Everything a run measured. ``seconds`` and the latencies are timings; the rest repeats exactly.

    Attributes:
        name: Name of the run.
        seed: Its seed.
        rows: The table, from the article's training to the int8 file.
        before: Key of the row compared from.
        after: Key of the row delivered.
        max_drop: The allowed loss of validation accuracy, or None.
        drop: Whether that is a difference (``"absolute"``) or a share (``"relative"``).
        metric: Name of the metric it is measured in; "" is the share answered right.
        held: Whether it held, or None where nothing was asked.
        search: Sizes that were tried, where there was a search.
        sensitivity: `penjing.search.Sensitivity` as plain data, where it chose the widths.
        latency: Limit and measured files, where latency was bounded.
        curves: History of every training, by stage: a dict an epoch.
        widths: Of every group, before and after.
        frozen: What was left whole, and why.
        quantized: Quantization error by layer.
        checks: Of every exported file.
        files: Sizes and accuracies of the exported files.
        normalize: ``mean`` and ``std`` of each channel that images in [0, 1] are normalised by; None where
            the user's own loaders do it.
        classes: The classes whose accuracy changed most.
        confusions: The pairs of classes that are confused more often, or less, than before.
        robustness: Accuracy by corruption, of the rows before and after.
        notes: What a reader should know.
        recipe: The recipe as YAML.
        environment: Versions, CPU, threads.
        seconds: Wall-clock seconds of each stage.
    """

    name: str
    seed: int = 0
    rows: tuple[Row, ...]
    before: str
    after: str
    max_drop: float | None = None
    drop: str = "absolute"
    metric: str = ""
    held: bool | None = None
    search: SearchCell | None = None
    sensitivity: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    curves: dict[str, tuple[dict[str, Any], ...]] = Field(default_factory=dict)
    widths: tuple[Width, ...] = ()
    frozen: tuple[FrozenAxis, ...] = ()
    quantized: tuple[QuantizedLayer, ...] = ()
    checks: tuple[FileCheck, ...] = ()
    files: tuple[FileRow, ...] = ()
    normalize: dict[str, tuple[float, ...]] | None = None
    classes: tuple[ClassChange, ...] = ()
    confusions: tuple[ConfusionChange, ...] = ()
    robustness: dict[str, dict[str, AccuracyCell]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recipe: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the loss held, and at the budget that was asked for; None where nothing was asked."""
        return None if self.held is None else self.missed is None

    @property
    def missed(self) -> Literal["loss", "budget", "int8"] | None:
        """What was asked for and is not there: the allowed loss at any size, the budget with it, or a file in
        int8 whose latency the budget bounds.
        """
        if self.held is False:
            return "loss"
        if self.search is not None and not self.search.reached:
            return "budget"
        bounded = self.latency is not None and self.latency.get("precision") == "int8"
        return "int8" if self.held and bounded and self.after != "int8" else None

    @property
    def classifies(self) -> bool:
        """Whether quality is the share of samples answered right; else it is the user's metric."""
        return all(cell.is_accuracy for row in self.rows for cell in row.accuracy.values())

    @property
    def beside_accuracy(self) -> str:
        """Name of the user's metric where it goes beside the share answered right; "" where one of the two is
        all there is.
        """
        measured = any(row.metric is not None for row in self.rows)
        return self.metric if self.classifies and measured else ""

    def row(self, key: str) -> Row | None:
        """The row of that key, if there is one."""
        return next((row for row in self.rows if row.key == key), None)

    @classmethod
    def read(cls, path: Path | str) -> Metrics:
        """Read ``metrics.json``, given its path or its folder.

        Raises:
            ArtifactError: if it is missing or not what a run writes.
        """
        path = Path(path)
        path = path / "metrics.json" if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            cause = f"cannot read {path} ({error.strerror or error})"
            raise ArtifactError(cause, remedy="Give the folder of a finished run") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            cause = f"{path} is not what a run writes ({where}: {first['msg']})"
            raise ArtifactError(cause, remedy="Run again to write it anew") from error
