"""What speaks against a run is said before its first stage, not after hours of training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from penjing.batches import ask, check_labels, classifies, logits_of
from penjing.data import Split
from penjing.errors import DataError, RecipeError
from penjing.export.base import get_format
from penjing.export.onnx import export_onnx
from penjing.files import temporary
from penjing.floats import floats_of, only_other_floats
from penjing.prune import prune
from penjing.recipe.schema import Recipe
from penjing.recipe.store import Store
from penjing.recipe.trainings import check_trainings
from penjing.recipe.workspace import Workspace
from penjing.recover.augment import make_augment


def check_words(recipe: Recipe, folder: Path) -> None:
    """Refuse what is misspelt or not installed.

    Raises:
        ExportError, RecipeError: naming it.
    """
    for name in recipe.export.formats:
        exporter = get_format(name)
        if Store(folder).read("export") is None:
            exporter.require()
    if recipe.data.augment is not None:
        make_augment(recipe.data.augment, recipe.data.augment_options)


def check_work(space: Workspace) -> None:
    """Refuse what the recipe cannot do with this network and this data.

    Raises:
        PenjingError: of the stage that would refuse it, naming the recipe's entry where there is one.
    """
    is_trained = space.store.read("train") is not None  # so it was allowed
    if not is_trained:
        _check_floats(space)
        _check_pruning(space)
    _check_table(space)
    if not is_trained:
        _check_labels(space)
        _check_images(space)
        check_trainings(space)
        _check_export(space)


def _check_pruning(space: Workspace) -> None:
    """What keeps a network from being pruned: unsound weights, a forward that cannot be traced, names that
    fit nothing, a budget out of reach.
    """
    config = space.recipe.prune
    counts = {name: getattr(config.budget, name, None) for name in ("params", "macs", "bytes")}
    bounds = {name: most for name, most in counts.items() if most is not None}
    prune(
        space.original(),
        space.examples,
        ratio=config.ratio or 0.0,
        scope="global",  # which reaches as far as any
        budget=bounds if bounds and not config.branches else None,  # branches may reach farther
        ignore=config.ignore,
        ratios=config.ratios,
        round_to=config.round_to,
        min_slots=config.min_slots,
    )


def _check_floats(space: Workspace) -> None:
    """A network without a weight in float32 is refused, as quantization would refuse it."""
    if space.recipe.quantize is None:
        return
    if others := only_other_floats(floats_of(space.original().parameters())):
        raise RecipeError(
            f"the weights of the network are {others}, and int8 is made from float32",
            layer="quantize",
            remedy="Give it in float32 (an ONNX file exported so, a module by model.float()), and such data",
        )


def _check_export(space: Workspace) -> None:
    """An operator set that the exporter cannot write for, or a size to leave free that the network fixes."""
    config = space.recipe.export
    if config.opset is not None or config.dynamic_axes:
        with temporary() as folder:
            export_onnx(
                space.original(),
                folder / "model.onnx",
                space.examples,
                dynamic_batch="auto",
                dynamic_axes=config.dynamic_axes,
                opset=config.opset,
            )


def _check_table(space: Workspace) -> None:
    """Rows and columns of the table that this data cannot give are refused before the work, not after it."""
    if space.store.read("measure") is not None:
        return
    recipe, bundle = space.recipe, space.bundle
    seen = bundle.val if bundle.test is None else bundle.test
    if recipe.measure.robustness and not isinstance(seen, Split):
        raise RecipeError(
            "robustness corrupts images, and data of one's own loaders is batches of anything",
            layer="measure.robustness",
            remedy="Leave it out, or give the data as a folder, Parquet or .npz file",
        )
    if recipe.baselines and recipe.train is None and not _has_classes(space):
        raise RecipeError(
            "the network trained from scratch has no original to learn from, and the targets are no classes",
            layer="baselines",
            remedy="Leave it out",
        )


def _has_classes(space: Workspace) -> bool:
    """Whether the targets are classes of the network's outputs."""
    logits_NK, target = _answers(space, space.feed.split("val"))
    return target is not None and classifies(target, logits_NK)


def _answers(space: Workspace, batches: Iterable[Any]) -> tuple[torch.Tensor, Any]:
    """What the network says to the first batch, and its target."""
    model, batch = space.original().eval(), space.feed.first(batches)
    if batch is None:
        raise DataError("the validation data has no batches", remedy="Check its path")
    with torch.no_grad():
        return logits_of(ask(model, batch.inputs, "model"), batch.target), batch.target


def _check_labels(space: Workspace) -> None:
    """A class that the network does not have is found by the labels alone, before anything is measured. What
    labels are to a metric is not known.
    """
    if space.metric is not None or not isinstance(space.bundle.val, Split):
        return
    logits_NK, target = _answers(space, space.feed.split("val", 2))
    if not classifies(target, logits_NK):
        return
    for part in (space.bundle.train, space.bundle.val, space.bundle.test):
        if isinstance(part, Split):
            ignored = space.recipe.recover.ignore_index
            check_labels(torch.from_numpy(part.labels), logits_NK.shape[1], part.name, ignored)


def _check_images(space: Workspace) -> None:
    """Images that are looked at after hours of training are decoded once before it, and those of training,
    too, where they are then kept.
    """
    for part in (space.bundle.train, space.bundle.val, space.bundle.test):
        if isinstance(part, Split) and (part is not space.bundle.train or part.in_memory):
            part.check()
