"""The dense network: taken as it came, trained properly, and trained as the article trains it."""

from __future__ import annotations

from typing import Any

from penjing.events import Event, Listener
from penjing.measure import Accuracy, accuracy
from penjing.measure.original import Answered, agreement
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.workspace import Workspace
from penjing.recover import RecoverConfig, RecoverResult, train

_LOOK = 2000
"""Validation samples at most that tell whether a network as given knows anything."""

_FEW = 8
"""Fewer samples may all be of one class."""


def take_dense(space: Workspace, listen: Listener) -> Output:
    """Write the weights that the network came with, and say so if they know nothing.

    Requires: the recipe's model. Ensures: ``work/dense.safetensors``.
    """
    model = space.original()
    said = _knows_nothing(space, model)
    if said:
        listen(Event("train", "warning", message=said))
    return Output({"notes": [said]} if said else {}, files=(space.save_weights(model, "dense"),))


def _knows_nothing(space: Workspace, model: Any) -> str:
    """What is to be said of a network that does not know the classes: all that follows holds it to its own
    answers, and would be done in vain. "" for one that does, and where there are no classes.
    """
    if not space.names_classes:
        return _answers_one_class(space, model) if space.metric is agreement else ""
    found = accuracy(model, space.feed.split("val", _LOOK))
    if other := _wants_statistics(space, model, found):
        return other
    if not found.is_chance:
        return ""
    return (
        f"the network as given is no better than chance: {found.value:.1%} of {found.n:,} validation samples "
        f"right, chance {found.by_chance:.1%}. Is it untrained (weights, --weights)? Is it fed as it was in "
        "training (mean and std, --data-option, --normalize), are the classes in the same order?"
    )


def _wants_statistics(space: Workspace, model: Any, found: Accuracy) -> str:
    """What is to be said of a network that answers better where images are not fed as they are, though nobody
    says how they were in training.
    """
    feed = space.feed.by_statistics
    if feed is None:
        return ""
    other = accuracy(model, feed.split("val", _LOOK))
    if other.low <= found.high:
        return ""
    return (
        f"the network as given has {found.value:.1%} of {found.n:,} validation samples right with images in "
        f"[0, 1], as they are fed, and {other.value:.1%} with the mean and deviation of the training images: "
        "feed it as it was in training. Give its mean and std (--data-option 'mean=[…]' "
        "--data-option 'std=[…]'), or --normalize mean_std"
    )


def _answers_one_class(space: Workspace, model: Any) -> str:
    """What is to be said where the original has one class for everything: whatever has it, too, agrees."""
    said: set[int] = set()
    samples = 0
    for _, answers in Answered(space.feed.split("val", _LOOK), lambda: model):
        classes = answers.argmax(1)
        said |= set(classes.tolist())
        samples += len(classes)
    if samples < _FEW or len(said) > 1:
        return ""
    return (
        f"the network as given answers class {said.pop()} to all of {samples:,} validation samples, so that "
        "agreement with it tells nothing. Is it untrained (weights, --weights)? Is it fed as in training "
        "(mean and std, --data-option, --normalize)? The metric fidelity compares all scores"
    )


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
