"""`compress`: a trained network, its data and a budget in; a small network, checked and in files, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from penjing.batches import check_reiterable
from penjing.data import DataBundle
from penjing.errors import DataError, RecipeError
from penjing.events import Listener, silent
from penjing.measure.metric import Metric
from penjing.prune import Budget
from penjing.prune.budget import BOUNDS
from penjing.quantize import QuantizeConfig
from penjing.recipe.result import RunResult
from penjing.recipe.run import run
from penjing.recipe.schema import GIVEN, Recipe
from penjing.recipe.workspace import Given
from penjing.recover import RecoverConfig

_QUIET = RecoverConfig(epochs=10, lr=0.02)
"""Recovery when none is named: ten epochs of logit distillation."""

_FLOOR = 0.05
"""Share of the original beyond which a search for the smallest network does not go."""


def compress(
    model: nn.Module | str,
    data: DataBundle | str | Sequence[Any] | Mapping[str, Any],
    *,
    budget: Budget | Mapping[str, Any] | None = None,
    max_drop: float | str | None = 0.01,
    metric: Metric | str | None = None,
    smallest: str | None = None,
    trials: int = 3,
    recover: RecoverConfig | None = None,
    quantize: QuantizeConfig | bool | None = True,
    formats: Sequence[str] = ("onnx", "saved_model"),
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
        budget: What may be left, e.g. ``Budget(params=0.1)`` or ``Budget(latency="0.5x")``; by default half
            of the parameters. The best network within it is what comes back.
        max_drop: Largest loss of validation accuracy that counts as holding: a fraction (0.01 is one point),
            or a text: ``"0.5pt"`` (points), ``"1%"`` (of the original's). Also the bound under which
            quantization keeps layers in float. Where the budget does not hold, larger networks are tried,
            and the smallest that holds comes back; `RunResult.met` says whether both were kept.
        metric: What the loss is measured in instead of accuracy: ``metric(outputs, targets)`` on the whole
            validation split, such a function as ``"file.py:function"``, or an object with ``update``,
            ``compute`` and ``reset`` (torchmetrics); higher is better. ``"agreement"`` and ``"fidelity"``
            go by the original's own answers (`penjing.measure.original`), as data without labels does.
        smallest: ``"params"``, ``"macs"``, ``"bytes"`` or ``"latency"``: look for the smallest network by
            this that stays within ``max_drop``; a budget then is the furthest to go (by default 0.05).
        trials: Sizes tried at most, each with a recovery of its own; 1 takes the budget as it is.
        recover: Recovery options.
        quantize: Options of quantization; True takes the defaults, False or None leaves the network in fp32.
        formats: Export formats; the default needs TensorFlow (``pip install penjing[tf]``), ``("onnx",)``
            does not.
        prune: Further entries of the recipe's ``prune``.
        options: Further entries of the recipe, e.g. ``{"data": {"batch_size": 64}, "measure": {"threads":
            2}}``.
        out: Folder; by default ``runs/<name>``.
        name: Name of the run.
        seed: Seeds everything that draws.
        resume: Go on with a run that was interrupted; refused with another network or other data. Of one's
            own loaders this sees lists of batches whole, of others their number of batches, and the size and
            16 samples of a ``dataset`` that is indexed; what changes elsewhere goes unnoticed.
        listen: Hears all events.

    Returns:
        The folder, an artifact that `penjing.load` reads, and all numbers.

    Raises:
        PenjingError: naming stage, layer, cause and remedy.
    """
    pruning = dict(prune or {})
    allowed, drop = allowed_drop(max_drop)
    if smallest is not None:
        budget = _furthest(smallest, budget, allowed)
    if budget is None and not {"budget", "ratio", "ratios"} & pruning.keys():
        budget = Budget(params=0.5)
    if budget is not None:
        pruning["budget"] = budget.to_dict() if isinstance(budget, Budget) else dict(budget)
        if smallest is not None or pruning["budget"].get("latency") is not None:
            pruning = {"scope": "sensitivity", "reconstruct": True, **pruning}
    quantizing = quantize if isinstance(quantize, QuantizeConfig) else QuantizeConfig() if quantize else None
    once = allowed is None or trials == 1 or "budget" not in pruning or {"steps", "sparse"} & pruning.keys()
    search = None if once and smallest is None else {"trials": trials, "smallest": smallest is not None}
    extra = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in (options or {}).items()
    }
    for key in ("name", "seed", "prune", "recover", "quantize", "max_drop", "search"):
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
        "max_drop": allowed,
        "drop": drop,
        "search": search,
        "metric": metric if isinstance(metric, str) else None,
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
        metric=None if isinstance(metric, str) else metric,
    )
    folder = Path(out) if out is not None else Path("runs") / name
    return run(Recipe.parse(values), folder, resume=resume, given=given, listen=listen)


def allowed_drop(given: float | str | None) -> tuple[float | None, str]:
    """``0.005``, ``"0.005"`` and ``"0.5pt"`` → (0.005, "absolute"); ``"1%"`` → (0.01, "relative").

    Raises:
        RecipeError: for a text that is neither.
    """
    if not isinstance(given, str):
        return given, "absolute"
    text = given.strip()
    for ending, scale, kind in (("pt", 100, "absolute"), ("%", 100, "relative"), ("", 1, "absolute")):
        if text.endswith(ending):
            try:
                value = float(text.removesuffix(ending)) / scale
            except ValueError:
                break
            if 0 <= value <= 1:
                return value, kind
            break
    raise RecipeError(
        f"{given!r} is no allowed loss",
        layer="max_drop",
        remedy="Write '0.5pt' (points), '1%' (of the original's value), or a fraction",
    )


def _furthest(
    smallest: str, budget: Budget | Mapping[str, Any] | None, allowed: float | None
) -> Budget | Mapping[str, Any]:
    """How far a search for the smallest network goes."""
    if smallest not in BOUNDS:
        raise RecipeError(
            f"cannot look for the smallest {smallest!r}",
            layer="smallest",
            remedy=f"Choose one of {', '.join(BOUNDS)}",
        )
    if allowed is None:
        raise RecipeError(
            "the smallest network needs an allowed loss", layer="smallest", remedy="Give max_drop too"
        )
    if budget is not None:
        return budget
    return {smallest: f"{_FLOOR}x" if smallest == "latency" else _FLOOR}


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
        check_reiterable(part, key)
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
