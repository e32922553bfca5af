"""The recipe: everything a run does, as one object, the same in YAML, in the run's record and in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from penjing.config import Config
from penjing.errors import RecipeError
from penjing.files import atomic_write
from penjing.plain_yaml import from_yaml, to_yaml
from penjing.prune.budget import Budget
from penjing.quantize.config import QuantizeConfig
from penjing.recover.config import RecoverConfig

GIVEN = "<given>"
"""The spec of a model or data set that was handed over as a Python object and has no name."""


class DataConfig(Config):
    """Where the samples come from and how they are fed.

    Attributes:
        spec: ``glyphs``, an image folder, a Parquet or ``.npz`` file, or ``file.py:factory``.
        options: Options of that source.
        batch_size: Samples in a training batch.
        eval_batch_size: Samples in a batch when nothing is trained.
        augment: Augmentation of training batches by name (``penjing.recover.augment``), or None.
        augment_options: Options of the augmentation.
        layout: Layout of the batches the model is given: ``"nchw"``, ``"nhwc"``, or ``"auto"``, by the
            model's inputs.
        normalize: How images are fed: with the ``"mean_std"`` of the training images (or of the source's
            options ``mean`` and ``std``), as the ``"model"``'s own source says (timm, torchvision, an
            artifact), as ``"unit"`` ([0, 1] as it is), or ``"auto"``: mean_std where this recipe trains the
            network or the options give them, otherwise as the model's source says, otherwise unit.
        calibration: Most training samples used for statistics (importance, reconstruction, quantization
            ranges).
    """

    spec: str
    options: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(default=128, ge=1)
    eval_batch_size: int = Field(default=250, ge=1)
    augment: str | None = None
    augment_options: dict[str, Any] = Field(default_factory=dict)
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    normalize: Literal["auto", "model", "mean_std", "unit"] = "auto"
    calibration: int = Field(default=2048, ge=1)


class ModelConfig(Config):
    """Which network.

    Attributes:
        spec: ``penjing:NAME``, ``timm:NAME``, ``torchvision:NAME``, ``file.py:factory``, ``model.keras``,
            a folder of ``save_pretrained``…
        options: Options of the factory.
        weights: A ``.safetensors`` file with trained weights.
        trust: Accept files that run code when opened (``.pt``, ``.pth``, ``.pt2``).
    """

    spec: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    trust: bool = False


class PruneConfig(Config):
    """How the network is made smaller.

    Attributes:
        budget: What may be left (parameters, MACs, bytes, latency); or use ``ratio``.
        ratio: Fraction of the slots removed, 0 to 1, instead of a budget; of heads and their sizes (groups of
            channels and their widths) the finer one takes it.
        ratios: Ratios by glob of parameter names or group ids, beside ``ratio``.
        criterion: Name of the importance criterion.
        scope: Where scores compete: ``"local"``, ``"global"`` or ``"isomorphic"``; or ``"sensitivity"``:
            widths by measured damage against measured cost, scores within each group.
        ignore: Parameter-name globs that stay whole.
        round_to: Widths become multiples of this.
        min_slots: Fewest slots left in a group.
        branches: Residual branches taken out whole before any width: how many, least damage first; names; or
            ``"auto"``, the number that loses least within the budget.
        reconstruct: Refit the layers to the original's outputs after removal; false, true, or its options.
        steps: Rounds of pruning, with ``between`` as recovery after each but the last.
        between: Recovery between rounds; None takes the recipe's ``recover`` with a quarter of its epochs.
        sparse: Sparse training of the dense network before the first round (its ``regularize`` says how);
            None leaves it out.
    """

    budget: Budget | None = None
    ratio: float | None = Field(default=None, ge=0, lt=1)
    ratios: dict[str, float] = Field(default_factory=dict)
    criterion: str = "magnitude"
    scope: Literal["local", "global", "isomorphic", "sensitivity"] = "global"
    ignore: tuple[str, ...] = ()
    round_to: int = Field(default=1, ge=1)
    min_slots: int = Field(default=1, ge=1)
    branches: Annotated[int, Field(ge=0)] | Literal["auto"] | tuple[str, ...] = 0
    reconstruct: bool | dict[str, Any] = False
    steps: int = Field(default=1, ge=1)
    between: RecoverConfig | None = None
    sparse: RecoverConfig | None = None

    @field_validator("reconstruct", mode="after")
    @classmethod
    def _options_known(cls, value: bool | dict[str, Any]) -> bool | dict[str, Any]:
        if isinstance(value, dict):
            from penjing.prune.reconstruct import ReconstructConfig  # imports torch: only when it is named

            ReconstructConfig.model_validate(value)  # its errors get this entry's place
        return value

    @field_validator("criterion", mode="after")
    @classmethod
    def _criterion_known(cls, value: str) -> str:
        from penjing.prune.criteria import all_criteria

        if value not in all_criteria():
            raise ValueError(f"unknown criterion {value!r}; known: {', '.join(all_criteria())}")
        return value

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if self.budget is not None and self.ratio is not None:
            raise ValueError("give either `budget` or `ratio`")
        if self.budget is None and self.ratio is None and not self.ratios:
            raise ValueError("give a `budget`, a `ratio` or `ratios`")
        if self.steps > 1 and self.budget is None:
            raise ValueError("`steps` needs a `budget` to approach step by step")
        if self.steps > 1 and self.budget is not None and not {"params", "macs"} >= set(self.budget.bounds):
            raise ValueError(
                "`steps` approaches a budget of params or macs; latency and bytes are met at once"
            )
        if self.between is not None and self.steps == 1:
            raise ValueError("`between` is recovery between rounds; give `steps` of 2 or more")
        if self.branches == "auto" and self.budget is None:
            raise ValueError("branches `auto` needs a `budget`")
        if self.scope == "sensitivity" and self.budget is None:
            raise ValueError("scope `sensitivity` needs a `budget`")
        if self.sparse is not None and not self.sparse.regularize:
            raise ValueError("`sparse` needs `regularize`, such as {group_lasso: {strength: 0.001}}")
        return self


class ExportConfig(Config):
    """Which files are written.

    Attributes:
        formats: Names of export formats (``penjing.export``); ``onnx`` is always among them, it is what is
            measured.
        dynamic_axes: Sizes of inputs beside the batch that callers of the files choose: input (or a pattern)
            → dimension → name, such as ``{"*": {1: sequence}}``; the int8 file has them, too.
        opset: ONNX opset; None takes the exporter's default.
        batch_sizes: Batch sizes at which every file is checked against the network it was made from.
    """

    formats: tuple[str, ...] = ("onnx", "saved_model")
    dynamic_axes: dict[str, dict[int, str]] = Field(default_factory=dict)
    opset: int | None = Field(default=None, ge=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 3, 8), min_length=1)

    @field_validator("formats", mode="after")
    @classmethod
    def _onnx_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return ("onnx", *(name for name in value if name != "onnx"))


class MeasureConfig(Config):
    """What the final table measures.

    Attributes:
        threads: Threads of the runtime while latency is measured.
        batches: Batch sizes of the latency columns.
        runs: Timed runs of each file at each batch size, taken in turns.
        max_train: Most training samples for the train accuracy; the table states n.
        robustness: Also measure accuracy under noise, blur, contrast and JPEG on the test set (validation
            where there is none).
    """

    threads: int = Field(default=1, ge=1)
    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 32), min_length=1)
    runs: int = Field(default=50, ge=3)
    max_train: int = Field(default=2000, ge=1)
    robustness: bool = False


class SearchConfig(Config):
    """How sizes are tried against `Recipe.max_drop`, each with its own recovery.

    Attributes:
        trials: Sizes tried at most.
        smallest: Look for the smallest network within the allowed loss, with the budget as the furthest to
            go; otherwise the budget is the goal, and only where it does not hold something larger is tried.
    """

    trials: int = Field(default=3, ge=1)
    smallest: bool = False


class QuantizeStage(QuantizeConfig):
    """How the recovered network is brought to int8: `QuantizeConfig`, and what belongs to a run.

    Attributes:
        qat: Train on in int8, with the dense float network as teacher, starting from what calibration found;
            None leaves it at that.
        fallback: What is delivered where no int8 layer can stay within ``max_drop``: the recovered network in
            ``"float"``, with the reason in the report, or an ``"error"``.
    """

    qat: RecoverConfig | None = None
    fallback: Literal["float", "error"] = "float"

    @model_validator(mode="after")
    def _trains_what_it_writes(self) -> Self:
        if self.qat is not None and self.mode != "static":
            raise ValueError(f"qat trains mode 'static', not {self.mode!r}")
        return self

    def alone(self) -> QuantizeConfig:
        """The options of quantization itself."""
        return QuantizeConfig.parse(
            {k: v for k, v in self.to_dict().items() if k in QuantizeConfig.model_fields}
        )


class Recipe(Config):
    """A whole run: train → prune → recover → quantize → export → verify → measure → report.

    Attributes:
        name: Name of the run; letters, digits, ``-``, ``_`` and ``.``.
        seed: Seeds everything that draws.
        data: The samples.
        model: The network.
        article: Training the way the article's text does it, for the first row of the table; None leaves the
            row out.
        train: Training of the dense network; None where it comes trained.
        prune: How it is made smaller.
        recover: Distillation from the dense network.
        quantize: To int8, after training or with training in int8; None leaves the network in fp32.
        export: The files.
        measure: The table.
        max_drop: Largest loss of validation accuracy, dense to final file, that counts as holding (a
            fraction: 0.01 is one point); None does not judge.
        drop: Whether ``max_drop`` is a difference (``"absolute"``) or a share of the dense network's value
            (``"relative"``).
        metric: ``"file.py:function"`` of outputs and targets, higher is better: what quality is instead of
            the share answered right. ``"agreement"`` (of the highest scores) and ``"fidelity"`` (R² of the
            outputs) go by the original's answers; data without labels is judged by the fitting one of them.
        search: Try sizes until the loss is allowed; None prunes once.
        baselines: Also run random pruning to the same size with the same recovery, and the small network
            trained from scratch for the same time.
    """

    name: str = "run"
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataConfig
    model: ModelConfig
    article: RecoverConfig | None = None
    train: RecoverConfig | None = None
    prune: PruneConfig
    recover: RecoverConfig = RecoverConfig()
    quantize: QuantizeStage | None = QuantizeStage()
    export: ExportConfig = ExportConfig()
    measure: MeasureConfig = MeasureConfig()
    max_drop: float | None = Field(default=None, ge=0, le=1)
    drop: Literal["absolute", "relative"] = "absolute"
    metric: str | None = None
    search: SearchConfig | None = None
    baselines: bool = False

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.strip("."):
            raise ValueError(f"name {value!r} names no folder of its own")
        if not re.fullmatch(r"[\w.-]+", value):
            raise ValueError(f"name {value!r} has other signs than letters, digits, '-', '_' and '.'")
        return value

    @model_validator(mode="after")
    def _trained_somewhere(self) -> Self:
        if self.article is not None and self.train is None:
            raise ValueError("`article` compares with `train`; give `train` as well")
        return self

    @model_validator(mode="after")
    def _drop_of_something(self) -> Self:
        if self.drop == "relative" and self.max_drop is None:
            raise ValueError("`drop: relative` says how `max_drop` is meant; give `max_drop`, such as 0.01")
        return self

    @model_validator(mode="after")
    def _free_in_all_files(self) -> Self:
        """What is free in the float files is free in the int8 file."""
        axes = self.export.dynamic_axes
        if not axes or self.quantize is None or self.quantize.dynamic_axes:
            return self
        object.__setattr__(self, "quantize", self.quantize.model_copy(update={"dynamic_axes": axes}))
        return self

    @model_validator(mode="after")
    def _bounds_what_is_delivered(self) -> Self:
        """A bounded latency is that of the int8 file where there will be one."""
        budget = self.prune.budget
        if budget is None or budget.latency is None or budget.precision is not None:
            return self
        static = self.quantize is not None and self.quantize.mode == "static"
        precision = "int8" if static and budget.runtime == "onnxruntime" else "fp32"
        settled = self.prune.model_copy(update={"budget": budget.model_copy(update={"precision": precision})})
        object.__setattr__(self, "prune", settled)
        return self

    @model_validator(mode="after")
    def _search_has_a_goal(self) -> Self:
        if self.search is None:
            return self
        if self.max_drop is None:
            raise ValueError("`search` needs `max_drop`, the loss to stay within")
        if self.prune.steps > 1 or self.prune.sparse is not None:
            raise ValueError("`search` tries sizes in one round each; leave `steps` and `sparse` out")
        if self.prune.budget is None:
            raise ValueError("`search` needs a `budget`: the goal, or with `smallest` the furthest to go")
        return self

    @classmethod
    def from_file(cls, path: Path | str) -> Recipe:
        """Read a YAML recipe.

        Raises:
            RecipeError: if the file is missing, is not YAML, or has an unknown or wrong entry.
        """
        path = Path(path)
        try:
            values = from_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            cause = f"cannot read the recipe {path} ({error.strerror or error})"
            raise RecipeError(cause, remedy="Give the path of a YAML recipe") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            cause = f"{path} is not YAML ({' '.join(str(error).split())})"
            raise RecipeError(cause, remedy="Correct the file at that place") from error
        if not isinstance(values, dict):
            raise RecipeError(
                f"{path} is empty"
                if values is None
                else f"{path} holds {type(values).__name__} instead of a mapping",
                remedy="Start from `recipes/demo.yaml`",
            )
        return cls.parse(values)

    def to_yaml(self, path: Path | str | None = None) -> str:
        """The recipe as YAML that `from_file` reads back as an equal object; also written to ``path``."""
        text = to_yaml(self.to_dict())
        if path is not None:
            with atomic_write(path) as aside:
                aside.write_text(text, encoding="utf-8")
        return text


def first_difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first entry in which two recipes (plain data) differ: dotted key, old, new; or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(k for k in new if k not in old)):
            at = f"{where}.{key}" if where else str(key)
            found = first_difference(old.get(key), new.get(key), at)
            if found:
                return found
        return None
    return None if old == new else (where, old, new)
