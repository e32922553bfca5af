"""The dense network: taken as it came, trained properly, and trained as the article trains it."""

from __future__ import annotations

from typing import Any

from penjing.events import Listener
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.workspace import Workspace
from penjing.recover import RecoverConfig, RecoverResult, train


def take_dense(space: Workspace, listen: Listener) -> Output:
    """Write the weights that the network came with.

    Requires: the recipe's model. Ensures: ``work/dense.safetensors``.
    """
    return Output({}, files=(space.save_weights(space.original(), "dense"),))


def train_dense(space: Workspace, listen: Listener) -> Output:
    """Train the dense network as the recipe says.

    Requires: the recipe's model and ``train``. Ensures: ``work/dense.safetensors``.
    """
    assert space.recipe.train is not None
    return train_as(space, listen, space.recipe.train, stage="train", weights="dense")


def train_as_article(space: Workspace, listen: Listener) -> Output:
    """Train the network the way the article's text does.

    Requires: the recipe's model and ``article``. Ensures: ``work/article.safetensors``.
    """
    assert space.recipe.article is not None
    return train_as(space, listen, space.recipe.article, stage="article", weights="article", augment=False)


def train_as(
    space: Workspace,
    listen: Listener,
    config: RecoverConfig,
    *,
    stage: str,
    weights: str,
    augment: bool = True,
    model: Any = None,
) -> Output:
    """Train a network on the recipe's data and write its weights."""
    trained = train(
        space.original() if model is None else model,
        space.feed.train(augment=augment),
        config,
        val=space.feed.split("val"),
        checkpoint=space.work / "checkpoints" / stage,
        seed=space.recipe.seed,
        listen=listen,
    )
    return trained_output(space, trained, weights)


def trained_output(space: Workspace, trained: RecoverResult, weights: str) -> Output:
    """Write the weights; numbers to the result, clocks to the timing."""
    facts = plain(trained)
    timing = facts.pop("timing")
    return Output(facts, timing, (space.save_weights(trained.model, weights),))
