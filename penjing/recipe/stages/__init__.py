"""The stages of a run, in order, as the recipe asks for them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from penjing.config import Config
from penjing.recipe.schema import Recipe
from penjing.recipe.stages.base import Output, Stage
from penjing.recipe.stages.exporting import export_student, quantize_student, verify_files
from penjing.recipe.stages.measuring import measure_rows
from penjing.recipe.stages.pruning import prune_round
from penjing.recipe.stages.recovery import (
    between,
    recover_round,
    train_from_scratch,
    train_sparse,
)
from penjing.recipe.stages.reporting import write_all
from penjing.recipe.stages.searching import (
    adopt_pruned,
    adopt_recovered,
    prune_at_random,
    search_size,
)
from penjing.recipe.stages.training import take_dense, train_as_article, train_dense

__all__ = ["Output", "Stage", "stages_of"]


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of this recipe, each after those it requires."""
    feed = {"data": _plain(recipe.data), "model": _plain(recipe.model)}
    stages: list[Stage] = []
    if recipe.article is not None:
        config = {**feed, "article": _plain(recipe.article)}
        stages.append(Stage("article", "train as the article does", train_as_article, config))
    dense = take_dense if recipe.train is None else train_dense
    title = "read the dense network" if recipe.train is None else "train the dense network"
    stages.append(Stage("train", title, dense, {**feed, "train": _plain(recipe.train)}))
    if recipe.prune.sparse is not None:
        config = {**feed, "sparse": _plain(recipe.prune.sparse)}
        stages.append(Stage("sparse", "train towards sparsity", train_sparse, config, ("train",)))
    rounds = _search(recipe, feed) if recipe.search is not None else _rounds(recipe, feed)
    stages += rounds
    allowed = {"max_drop": recipe.max_drop, "drop": recipe.drop}
    config = {**feed, "quantize": _plain(recipe.quantize), **allowed}
    if recipe.quantize is not None:
        original = ("train",) if recipe.quantize.qat is not None or recipe.max_drop is not None else ()
        inputs = (*original, "prune", "recover", *(("search",) if recipe.search is not None else ()))
        stages.append(Stage("quantize", "quantize to int8", quantize_student, config, inputs))
    made = ("prune", "recover", *(("quantize",) if recipe.quantize is not None else ()))
    config = {**feed, "export": _plain(recipe.export), "int8": recipe.quantize is not None}
    stages.append(Stage("export", "write the files", export_student, config, made))
    stages.append(Stage("verify", "check every file in its runtime", verify_files, config, (*made, "export")))
    if recipe.baselines:
        replaced = ("train", *_sparse(recipe), *(stage.name for stage in rounds if stage.name != "search"))
        stages += _baselines(recipe, feed, replaced)
    before = tuple(stage.name for stage in stages)
    config = {**feed, "measure": _plain(recipe.measure)}
    stages.append(Stage("measure", "measure everything", measure_rows, config, before))
    stages.append(
        Stage(
            "report", "write the report and the artifact", write_all, recipe.to_dict(), (*before, "measure")
        )
    )
    return tuple(stages)


def _rounds(recipe: Recipe, feed: dict[str, Any], tail: str = "", criterion: str = "") -> list[Stage]:
    """Pruning and recovery, as often as the recipe says; the last round's names carry no number.

    ``tail`` ends the names of the random baseline, which goes the same way by a ``criterion`` of its own.
    """
    count, stages, before = recipe.prune.steps, [], ""
    pruning = {**feed, "prune": _plain(recipe.prune)}
    prunes, recovers = (
        ("prune at random", "recover what was pruned at random") if tail else ("prune", "recover")
    )
    for index in range(1, count + 1):
        last = index == count
        mark = tail if last else f"{tail}-{index}"
        inputs = ("train", *((f"prune{before}", f"recover{before}") if before else _sparse(recipe)))
        which = "" if count == 1 else f", round {index} of {count}"
        work = partial(prune_round, mark=mark, before=before, share=index / count, criterion=criterion)
        stages.append(Stage(f"prune{mark}", f"{prunes}{which}", work, pruning, inputs))
        config = {**pruning, "recover": _plain(recipe.recover if last else between(recipe))}
        work = partial(recover_round, mark=mark, last=last)
        stages.append(Stage(f"recover{mark}", f"{recovers}{which}", work, config, ("train", f"prune{mark}")))
        before = mark
    return stages


def _search(recipe: Recipe, feed: dict[str, Any]) -> list[Stage]:
    """Pruning and recovery at several sizes; then the files of the size that was chosen take their names."""
    config = {
        **feed,
        "prune": _plain(recipe.prune),
        "recover": _plain(recipe.recover),
        "search": _plain(recipe.search),
        "max_drop": recipe.max_drop,
        "drop": recipe.drop,
        "reserved": recipe.quantize is not None,
    }
    return [
        Stage("search", "find the size that holds", search_size, config, ("train",)),
        Stage("prune", "take the pruned network of that size", adopt_pruned, None, ("search",)),
        Stage("recover", "take the recovered network of that size", adopt_recovered, None, ("search",)),
    ]


def _baselines(recipe: Recipe, feed: dict[str, Any], replaced: tuple[str, ...]) -> list[Stage]:
    """Random pruning on the same way to the same size, and training from scratch instead of all that."""
    stages = _rounds(recipe, feed, "-random", "random")
    if recipe.search is not None:  # the size is the one that was chosen
        stages[0] = replace(stages[0], work=prune_at_random, requires=(*stages[0].requires, "search"))
    config = {**feed, "train": _plain(recipe.train), "recover": _plain(recipe.recover)}
    work = partial(train_from_scratch, replaced=replaced)
    return [*stages, Stage("scratch", "train the small network from scratch", work, config, replaced)]


def _sparse(recipe: Recipe) -> tuple[str, ...]:
    """The stage of sparse training, where there is one."""
    return () if recipe.prune.sparse is None else ("sparse",)


def _plain(config: Config | None) -> Any:
    return None if config is None else config.to_dict()
