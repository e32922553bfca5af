"""Sizes tried one after the other against the allowed loss; the best that held goes on."""

from __future__ import annotations

import shutil
import time
from typing import Any

from torch import nn

from penjing.events import Event, Listener
from penjing.files import atomic_write
from penjing.measure.metric import is_allowed, score
from penjing.prune.budget import Budget
from penjing.recipe.guard import Trial, choose, drop_of, next_power
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.stages.pruning import prune_round, start_of_recovery
from penjing.recipe.stages.recovery import recover_round
from penjing.recipe.store import Marker, stage_key
from penjing.recipe.workspace import Workspace

RESERVED = 0.2
"""Share of the allowed loss that is left to quantization where that follows."""


def search_size(space: Workspace, listen: Listener) -> Output:
    """Prune and recover at one size after the other until the guard has found its place.

    Requires: ``work/dense.safetensors``. Ensures: the files of every trial, with the suffix ``-try<number>``;
    a finished trial is not done again after an interruption.
    """
    recipe = space.recipe
    assert recipe.search is not None
    assert recipe.max_drop is not None
    dense = judge(space, space.dense())
    allowed = recipe.max_drop * (1 - RESERVED if recipe.quantize is not None else 1)
    trials: list[Trial] = []
    checks: list[dict[str, Any]] = []
    started = time.perf_counter()
    while (power := next_power(trials, recipe.search.trials, smallest=recipe.search.smallest)) is not None:
        number = len(trials) + 1
        listen(Event("search", "progress", number - 1, recipe.search.trials, "trial"))
        marker = _trial(space, listen, number, power)
        found = marker.result
        drop = drop_of(dense, found["score"], recipe.drop)
        trial = Trial(number, power, found["score"], drop, is_allowed(drop, allowed), found["spent"])
        trials.append(trial)
        checks.append(marker.timing)
        listen(Event("search", "note", message=_sentence(trial, allowed)))
    chosen = choose(trials)
    reached = recipe.search.smallest or chosen.power == 1.0  # whether the loss held, the file will tell
    result = {
        "original": dense,
        "allowed": allowed,
        "drop": recipe.drop,
        "trials": [t.to_dict() for t in trials],
        "chosen": chosen.number,
        "reached": reached,
    }
    return Output(
        plain(result),
        {"seconds": time.perf_counter() - started, "trials": checks},
        tuple(sorted({name for t in trials for name in _files(space, t.number)})),
    )


def adopt_pruned(space: Workspace, listen: Listener) -> Output:
    """Take over the plan and the pruned weights of the trial that was chosen.

    Requires: the search. Ensures: ``work/plan.json``, ``work/pruned.safetensors`` and with reconstruction
    ``work/refitted.safetensors``.
    """
    mark, marker = _chosen(space)
    names = ["pruned", start_of_recovery(space.recipe.prune, "")]
    files = [_copy(space, f"plan{mark}.json", "plan.json")]
    files += [_copy(space, f"{n}{mark}.safetensors", f"{n}.safetensors") for n in dict.fromkeys(names)]
    timing = {"latency": marker.timing.get("latency"), "trial_seconds": marker.timing.get("prune_seconds")}
    return Output(marker.result["pruned"], timing, tuple(files))


def adopt_recovered(space: Workspace, listen: Listener) -> Output:
    """Take over the recovered weights of the trial that was chosen.

    Requires: the search. Ensures: ``work/recovered.safetensors``.
    """
    mark, marker = _chosen(space)
    file = _copy(space, f"recovered{mark}.safetensors", "recovered.safetensors")
    timing = {"trial_seconds": marker.timing.get("recover_seconds")}  # this stage itself only copies
    return Output(marker.result["recovered"], timing, (file,))


def prune_at_random(space: Workspace, listen: Listener) -> Output:
    """Prune at random to the size that was chosen.

    Requires: the search, ``work/dense.safetensors``. Ensures: what `prune_round` does, under ``-random``.
    """
    found = space.result("search")
    power = found["trials"][found["chosen"] - 1]["power"]
    return prune_round(space.with_budget(_goal(space, power)), listen, mark="-random", criterion="random")


def judge(space: Workspace, model: nn.Module) -> float:
    """The validation metric of a network: the user's own, or the share answered right."""
    if space.metric is not None or not space.names_classes:  # which says what is missing without a metric
        return score(space.metric, model, space.judged())
    from penjing.recover.evaluate import share_right

    return share_right(model, space.feed.split("val"))


def _trial(space: Workspace, listen: Listener, number: int, power: float) -> Marker:
    """Prune to one size, recover, judge; or read what an earlier session found."""
    recipe, mark, name = space.recipe, f"-try{number}", f"search-{number}"
    config = {
        key: plain(value)
        for key, value in {
            "data": recipe.data,
            "model": recipe.model,
            "prune": recipe.prune,
            "recover": recipe.recover,
            "power": power,
        }.items()
    }
    train = space.store.read("train")
    inputs = {**space.fingerprints, "train": train.digest if train else ""}
    key = stage_key(name, config, recipe.seed, inputs)
    known = space.store.finished(name, key)
    checkpoint = space.work / "checkpoints" / f"recover{mark}"
    if known is not None:
        shutil.rmtree(checkpoint, ignore_errors=True)
        space.remember(known.result["pruned"].get("sensitivity"))
        listen(Event("search", "note", message=f"trial {number}: done before"))
        return known
    inner = space.with_budget(_goal(space, power))
    pruned = _pruned(inner, listen, mark, key)
    space.remember(pruned.result.get("sensitivity"))
    recovered = recover_round(inner, listen, mark=mark)
    files = (*pruned.files, *recovered.files)
    spent = {n: pruned.result["after"][n] for n in ("params", "macs") if n in pruned.result["after"]}
    facts = {
        "pruned": pruned.result,
        "recovered": recovered.result,
        "spent": spent,
        "score": judge(space, inner.student(f"recovered{mark}", f"plan{mark}")),
    }
    timing = {
        "latency": pruned.timing.get("latency"),
        "prune_seconds": pruned.timing.get("seconds"),
        "recover_seconds": recovered.timing.get("seconds"),
    }
    marker = Marker(name, key, plain(facts), plain(timing), space.store.hash_files(files))
    space.store.write(marker)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return marker


def _pruned(space: Workspace, listen: Listener, mark: str, key: str) -> Marker:
    """A trial's pruning; where a session ended in the recovery after it, what that one did. A bounded latency
    may be measured otherwise now, and the recovery's checkpoint is of that network.
    """
    name = f"prune{mark}"
    marker = space.store.finished(name, key)
    if marker is None:
        shutil.rmtree(space.work / "checkpoints" / f"recover{mark}", ignore_errors=True)
        started = time.perf_counter()
        made = prune_round(space, listen, mark=mark)
        timing = {**made.timing, "seconds": time.perf_counter() - started}
        marker = Marker(name, key, made.result, timing, space.store.hash_files(made.files))
        space.store.write(marker)
    return marker


def _goal(space: Workspace, power: float) -> Budget:
    """The budget that lies so far towards the recipe's own."""
    goal = space.recipe.prune.budget
    assert goal is not None
    if power == 1.0:
        return goal
    from penjing.graph import couple, trace
    from penjing.search.meter import Meter

    model = space.dense()
    graph = trace(model, space.examples)
    return goal.eased(Meter(model, space.examples, graph, couple(graph), goal).original, power)


def _chosen(space: Workspace) -> tuple[str, Marker]:
    number = space.result("search")["chosen"]
    marker = space.store.read(f"search-{number}")
    assert marker is not None  # the search has written it
    return f"-try{number}", marker


def _copy(space: Workspace, name: str, to: str) -> str:
    with atomic_write(space.work / to) as aside:
        shutil.copyfile(space.work / name, aside)
    return space.relative(space.work / to)


def _files(space: Workspace, number: int) -> list[str]:
    marker = space.store.read(f"search-{number}")
    return [] if marker is None else list(marker.files)


def _sentence(trial: Trial, allowed: float) -> str:
    outcome = "held" if trial.held else "did not hold"
    sizes = ", ".join(f"{value:,} {name}" for name, value in trial.spent.items())
    return f"trial {trial.number}: {sizes}; lost {trial.drop:.4f} of {allowed:.4f} allowed: {outcome}"
