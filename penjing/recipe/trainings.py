"""What every training of a recipe needs of network and data, seen before any stage has worked.

A run goes on with its own recipe only, so an option that recovery refuses would cost all that was trained
before.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from penjing.batches import Batch
from penjing.errors import PenjingError, RecipeError
from penjing.recipe.schema import Recipe
from penjing.recipe.workspace import Workspace
from penjing.recover.config import LossTerm, RecoverConfig
from penjing.recover.losses import FeatureLoss, make_loss
from penjing.recover.mix import mixable


def check_trainings(space: Workspace) -> None:
    """Refuse losses on layers that the network does not have, losses on labels that the data does not have,
    and mixing of what cannot be mixed.

    Raises:
        PenjingError: naming the recipe's entry.
    """
    names = [name for name, _ in space.original().named_modules() if name]
    with space.same_chance("trainings"):
        batch = space.feed.first(space.feed.train())
    for entry, config in trainings(space.recipe):
        _check_layers(entry, config.losses, names)
        if batch is not None:  # where there is none it is said when it is asked for
            _check_batch(entry, config, batch)


def trainings(recipe: Recipe) -> tuple[tuple[str, RecoverConfig], ...]:
    """The options of every training that the recipe asks for, by their entry."""
    found = (
        ("article", recipe.article),
        ("train", recipe.train),
        ("prune.sparse", recipe.prune.sparse),
        ("prune.between", recipe.prune.between),
        ("recover", recipe.recover),
        ("quantize.qat", None if recipe.quantize is None else recipe.quantize.qat),
    )
    return tuple((entry, config) for entry, config in found if config is not None)


def _check_layers(entry: str, losses: Iterable[LossTerm], names: list[str]) -> None:
    for term in losses:
        loss = make_loss(term.name, term.options)
        for pattern in loss.layers if isinstance(loss, FeatureLoss) and loss.layers != "blocks" else ():
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"no layer of the network matches {pattern!r}, where the loss {term.name!r} looks",
                    layer=f"{entry}.losses",
                    remedy=f"Use names of modules, for example {', '.join(names[:5])}",
                )


def _check_batch(entry: str, config: RecoverConfig, batch: Batch) -> None:
    for term in config.losses:
        if "target" in make_loss(term.name, term.options).needs and batch.target is None:
            raise RecipeError(
                f"the loss {term.name!r} needs labels and the data has none",
                layer=f"{entry}.losses",
                remedy="Give batches as (inputs, target), or use losses without labels such as 'kd'",
            )
    if config.mixup or config.cutmix:
        try:
            mixable(batch, 0, config, labels=False, asks=True)
        except PenjingError as error:
            error.layer = entry
            raise
