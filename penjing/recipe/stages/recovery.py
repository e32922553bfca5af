"""Recovery of the pruned network from the dense one, and the two baselines that keep it honest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from penjing.errors import RecoverError
from penjing.events import Event, Listener
from penjing.recipe.schema import Recipe
from penjing.recipe.stages.base import Output
from penjing.recipe.stages.pruning import start_of_recovery
from penjing.recipe.stages.training import train_as, trained_output
from penjing.recipe.workspace import Workspace
from penjing.recover import RecoverConfig, RecoverResult, recover


def train_sparse(space: Workspace, listen: Listener) -> Output:
    """Train the dense network so that whole slots fall away, while it goes on answering as it did.

    Requires: ``work/dense.safetensors``. Ensures: ``work/sparse.safetensors``.
    """
    assert space.recipe.prune.sparse is not None
    trained = recover(
        space.dense(),
        space.dense(),
        space.feed.train(),
        space.recipe.prune.sparse,
        val=space.rated("val"),
        metric=space.recovery_metric,
        checkpoint=space.work / "checkpoints" / "sparse",
        seed=space.recipe.seed,
        listen=listen,
    )
    return trained_output(space, trained, "sparse")


def recover_round(space: Workspace, listen: Listener, *, mark: str = "", last: bool = True) -> Output:
    """Train the pruned network to answer as the dense one does.

    Requires: ``work/dense.safetensors``, and the plan and weights of the pruning round of the same mark.
    Ensures: ``work/recovered<mark>.safetensors``.
    """
    plan = space.plan(f"plan{mark}")
    config = space.recipe.recover if last else between(space.recipe)
    trained = recover(
        space.student(start_of_recovery(space.recipe.prune, mark), f"plan{mark}"),
        space.dense(),
        space.feed.train(),
        config,
        val=space.rated("val"),
        metric=space.recovery_metric,
        plan=plan,
        checkpoint=space.work / "checkpoints" / f"recover{mark}",
        seed=space.recipe.seed,
        listen=listen,
    )
    _check_finite(trained)
    return trained_output(space, trained, f"recovered{mark}")


def _check_finite(trained: RecoverResult) -> None:
    """A training that exploded in its last step has a finite loss and useless weights."""
    if not all(bool(value.isfinite().all()) for value in trained.model.state_dict().values()):
        what = "the weights are not finite after training"
    elif trained.history and not math.isfinite(trained.history[-1].get("val_loss", 0.0)):
        what = "the validation loss is not finite after training"
    else:
        return
    raise RecoverError(what, remedy="Lower lr, or clip the gradients")


def between(recipe: Recipe) -> RecoverConfig:
    """Recovery between two rounds of pruning: the recipe's own, or a quarter of the final one."""
    if recipe.prune.between is not None:
        return recipe.prune.between
    return recipe.recover.model_copy(update={"epochs": max(1, recipe.recover.epochs // 4)})


def train_from_scratch(space: Workspace, listen: Listener, *, replaced: Sequence[str]) -> Output:
    """Train a network of the pruned widths from random weights, in the time the whole way took.

    Requires: the plan, and the timings of the stages that this training replaces. Ensures:
        ``work/scratch.safetensors``.
    """
    budget = sum(space.seconds(stage) for stage in replaced)
    listen(
        Event("scratch", "note", message=f"{budget:.0f} s, as long as {', '.join(replaced)} took together")
    )
    model = space.student(start_of_recovery(space.recipe.prune, ""))
    reset_weights(model, space.recipe.seed + 1)
    by_the_clock = {
        "max_seconds": max(budget, 1.0),
        "epochs": 1_000_000,
        "max_steps": None,
        "patience": None,
        "losses": (),
    }
    config = (space.recipe.train or space.recipe.recover).model_copy(update=by_the_clock)
    return train_as(space, listen, config, stage="scratch", weights="scratch", model=model)


def reset_weights(model: nn.Module, seed: int) -> None:
    """Draw all parameters anew: by each module's own ``reset_parameters``, else from a normal distribution of
    the tensor's present mean and deviation (which has the scale that training found fitting)."""
    done: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                done |= {id(p) for p in module.parameters(recurse=False)}
        for parameter in model.parameters():
            if id(parameter) not in done:
                parameter.normal_(float(parameter.mean()), float(parameter.std(correction=0)))
