"""`compress`: a trained network, its data and a budget in; a small network, checked and in files, out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from penjing.data import DataBundle
from penjing.errors import DataError, RecipeError
from penjing.events import Listener, silent
from penjing.prune import Budget
from penjing.quantize import QuantizeConfig
from penjing.recipe.result import RunResult
from penjing.recipe.run import run
from penjing.recipe.schema import GIVEN, Recipe
from penjing.recipe.workspace import Given
from penjing.recover import RecoverConfig

_QUIET = RecoverConfig(epochs=10, lr=0.02)
"""Recovery when none is named: ten epochs of logit distillation."""


def compress(
    model: nn.Module | str,
    data: DataBundle | str | Sequence[Any] | Mapping[str, Any],
    *,
    budget: Budget | Mapping[str, float] | None = None,
    max_drop: float | None = 0.01,
    recover: RecoverConfig | None = None,
    quantize: QuantizeConfig | bool | None = True,
    formats: Sequence[str] = ("onnx",),
    prune: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    name: str = "compressed",
    seed: int = 0,
    resume: bool = False,
    listen: Listener = silent,
) -> RunResult:
    """Make a trained network small: prune to the budget, recover from the original, quantize, export, verify.

    The model is copied; the steps are those of any recipe, and the recipe that was carried out is in the
    result's folder.

    Args:
        model: A trained network, or a model spec such as ``timm:resnet18``.
        data: A `DataBundle`, a data spec such as a folder of images, or one's own re-iterable loaders as
            ``(train, val)``, ``(train, val, test)`` or a mapping with these names.
        budget: What may be left, e.g. ``Budget(params=0.1)``; by default half of the parameters.
        max_drop: Largest loss of validation accuracy (a fraction: 0.01 is one point) that counts as holding;
            also the bound under which quantization keeps layers in float. The result says whether it held.
        recover: Recovery options.
        quantize: Options of quantization; True takes the defaults, False or None leaves the network in fp32.
        formats: Export formats.
        prune: Further entries of the recipe's ``prune``.
        options: Further entries of the recipe, e.g. ``{"data": {"batch_size": 64}, "measure": {"threads":
            2}}``.
        out: Folder; by default ``runs/<name>``.
        name: Name of the run.
        seed: Seeds everything that draws.
        resume: Go on with a run that was interrupted.
        listen: Hears all events.

    Returns:
        The folder, an artifact that `penjing.load` reads, and all numbers.

    Raises:
        PenjingError: naming stage, layer, cause and remedy.
    """
    pruning = dict(prune or {})
    if budget is None and not {"budget", "ratio", "ratios"} & pruning.keys():
        budget = Budget(params=0.5)
    if budget is not None:
        pruning["budget"] = budget.to_dict() if isinstance(budget, Budget) else dict(budget)
    quantizing = _quantize(quantize, max_drop)
    extra = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in (options or {}).items()
    }
    for key in ("name", "seed", "prune", "recover", "quantize", "max_drop"):
        if key in extra:
            raise RecipeError(
                f"{key!r} is an argument of its own", layer="options", remedy=f"Give {key}=… instead"
            )
    values: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "prune": pruning,
        "recover": (recover or _QUIET).to_dict(),
        "quantize": None if quantizing is None else quantizing.to_dict(),
        "max_drop": max_drop,
        **extra,
        "data": {"spec": data if isinstance(data, str) else GIVEN, **extra.get("data", {})},
        "model": {"spec": model if isinstance(model, str) else GIVEN, **extra.get("model", {})},
        "export": {"formats": list(formats), **extra.get("export", {})},
    }
    if not isinstance(data, str) and "normalize" not in values["data"]:
        values["data"]["normalize"] = "mean_std"  # an opened bundle already says how it is normalised
    given = Given(
        model=None if isinstance(model, str) else model,
        data=None if isinstance(data, str) else as_bundle(data),
    )
    folder = Path(out) if out is not None else Path("runs") / name
    return run(Recipe.parse(values), folder, resume=resume, given=given, listen=listen)


def as_bundle(data: DataBundle | Sequence[Any] | Mapping[str, Any]) -> DataBundle:
    """One's own loaders as a bundle.

    Raises:
        DataError: if they are not two or three, or can be iterated only once.
    """
    if isinstance(data, DataBundle):
        return data
    names = ("train", "val", "test")
    parts = dict(data) if isinstance(data, Mapping) else dict(zip(names, data, strict=False))
    size = len(data)
    if not {"train", "val"} <= parts.keys() or size != len(parts) or parts.keys() - set(names):
        raise DataError(
            f"data has {', '.join(map(str, parts)) or 'nothing'}"
            if isinstance(data, Mapping)
            else f"data has {size} parts",
            remedy="Give (train, val) or (train, val, test), or a mapping with these names",
        )
    for key, part in parts.items():
        if not isinstance(part, Iterable) or iter(part) is part:
            raise DataError(
                f"{key} can be iterated only once"
                if isinstance(part, Iterable)
                else f"{key} cannot be iterated",
                layer=key,
                remedy="Give a DataLoader or a list of batches instead of a generator",
            )
    return DataBundle(
        train=parts["train"],
        val=parts["val"],
        test=parts.get("test"),
        classes=(),
        mean=(),
        std=(),
        image_shape=(),
        source=GIVEN,
    )


def _quantize(quantize: QuantizeConfig | bool | None, max_drop: float | None) -> QuantizeConfig | None:
    if isinstance(quantize, QuantizeConfig):
        return quantize
    return QuantizeConfig.parse({"max_drop": max_drop}) if quantize else None
