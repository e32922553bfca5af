"""Pruning, in one round or several, and refitting before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from penjing.errors import RecipeError
from penjing.events import Listener
from penjing.graph import Group, couple, trace
from penjing.prune import Budget, Plan, PruneResult, prune
from penjing.prune.apply import without_branches
from penjing.prune.checks import names_one
from penjing.recipe.schema import PruneConfig
from penjing.recipe.stages.base import Output, plain
from penjing.recipe.workspace import Workspace


def prune_round(
    space: Workspace,
    listen: Listener,
    *,
    mark: str = "",
    before: str = "",
    share: float = 1.0,
    criterion: str = "",
) -> Output:
    """One round of pruning.

    Requires: ``work/dense.safetensors`` (``work/sparse.safetensors`` after sparse training), or the plan and
    recovered weights of the round before.
    Ensures: ``work/plan<mark>.json`` (from the original network), ``work/pruned<mark>.safetensors``, and with
    reconstruction ``work/refitted<mark>.safetensors``.

    Args:
        space: The run.
        listen: Hears what happens.
        mark: Suffix of the names of this round's files.
        before: Suffix of the round before, or "" for the first.
        share: How far to the budget this round goes, 0 to 1, on a logarithmic scale.
        criterion: Another criterion than the recipe's (for the random baseline).
    """
    config = space.recipe.prune
    if before:
        current = space.student(f"recovered{before}", f"plan{before}")
    else:
        current = space.dense("dense" if config.sparse is None else "sparse")
    original = space.result(f"prune{_first(before)}")["before"] if before else None
    pruned = _prune(space, listen, config, current, criterion, share, original)
    earlier = space.plan(f"plan{before}") if before else None
    plan, groups = pruned.plan, pruned.groups
    if earlier is not None:
        original_graph = without_branches(trace(space.dense(), space.examples), earlier)
        coupling = couple(original_graph, ignore=config.ignore)
        plan, groups = earlier.then(pruned.plan, coupling), coupling.groups
    plan.save(space.work / f"plan{mark}.json")
    files = [f"work/plan{mark}.json", space.save_weights(pruned.model, f"pruned{mark}")]
    refitted: Any = None
    if config.reconstruct is not False:
        refitted = _refit(space, listen, config, pruned, current)
        files.append(space.save_weights(refitted.model, f"refitted{mark}"))
    return Output(
        _facts(pruned, _widths(groups, plan), original, refitted), _timing(pruned, refitted), tuple(files)
    )


def start_of_recovery(config: PruneConfig, mark: str) -> str:
    """Name of the weights that recovery starts from."""
    return f"pruned{mark}" if config.reconstruct is False else f"refitted{mark}"


def _first(before: str) -> str:
    """Suffix of the first round, whose ``before`` counts are the original's."""
    return "-1" if before else ""


def _prune(
    space: Workspace,
    listen: Listener,
    config: PruneConfig,
    model: nn.Module,
    criterion: str,
    share: float,
    original: dict[str, int] | None,
) -> PruneResult:
    options: dict[str, Any] = {"ratio": config.ratio} if config.ratio is not None else {}
    if config.budget is not None:
        options["budget"] = _budget(space, config.budget, model, share, original)
        known = original is None and not criterion  # another criterion's slots do other damage
        options["sensed"] = space.sensed if known else None
    pruned = prune(
        model,
        space.examples,
        criterion=criterion or config.criterion,
        scope=config.scope,
        ignore=config.ignore,
        data=space.feed.calibration(),
        ratios=_own_ratios(config.ratios, model, is_first=original is None),
        round_to=config.round_to,
        min_slots=config.min_slots,
        branches=config.branches if original is None else 0,  # later rounds find them gone
        seed=space.recipe.seed,
        listen=listen,
        **options,
    )
    if space.recipe.export.dynamic_axes and not pruned.in_place:  # said here, not after recovery
        raise RecipeError(
            f"no size can be left free: the class cannot follow ({pruned.reason}), and a graph has its sizes "
            "as numbers",
            layer="export.dynamic_axes",
            remedy="Leave dynamic_axes out, or take what the reason names into prune.ignore",
        )
    return pruned


def _own_ratios(ratios: Mapping[str, float], model: nn.Module, *, is_first: bool) -> dict[str, float]:
    """Ratios of their own, which the first round takes whole: later ones leave alone what is left of them."""
    if is_first:
        return dict(ratios)
    names = [name for name, _ in model.named_parameters()]
    return {pattern: 0.0 for pattern in ratios if names_one(pattern, names)}


def _budget(
    space: Workspace, budget: Budget, model: nn.Module, share: float, original: dict[str, int] | None
) -> Budget:
    """The budget of this round: the recipe's for ``share`` 1, the geometric part of it before."""
    if share == 1.0 and original is None:
        return budget
    if original is None:
        from penjing.prune.cost import count_all

        original = count_all(trace(model, space.examples, by_example=True))
    limits = budget.limits(original)
    return budget.eased({name: original[name] for name in limits}, share)


def _refit(
    space: Workspace, listen: Listener, config: PruneConfig, pruned: PruneResult, teacher: nn.Module
) -> Any:
    from penjing.prune.reconstruct import ReconstructConfig, reconstruct

    options = config.reconstruct if isinstance(config.reconstruct, dict) else {}
    return reconstruct(
        pruned.model,
        teacher,
        pruned.plan,
        space.feed.calibration(),
        ReconstructConfig.parse(options),
        listen=listen,
    )


def _timing(pruned: PruneResult, refitted: Any) -> dict[str, Any]:
    seconds = getattr(refitted, "seconds", None)
    timing = {} if seconds is None else {"refit_seconds": seconds}
    return timing if pruned.latency is None else {**timing, "latency": plain(pruned.latency)}


def _widths(groups: Sequence[Group], plan: Plan) -> list[dict[str, Any]]:
    """Slots of every group of the original before and after, and the branches that went."""
    widths = []
    for group in groups:
        edit = plan.groups.get(group.id)
        after = group.size if edit is None else len(edit.kept)
        widths.append({"name": group.id, "before": group.size, "after": after, "kind": group.kind})
    return [*widths, *({"name": name, "before": 1, "after": 0, "kind": "branch"} for name in plan.branches)]


def _facts(
    pruned: PruneResult, widths: list[dict[str, Any]], original: dict[str, int] | None, refitted: Any
) -> dict[str, Any]:
    frozen = [
        {
            "reason": one.reason,
            "op": str(getattr(one, "op", "") or ""),
            "source": str(getattr(one, "source", "") or ""),
            "params": list(getattr(one, "params", ()) or ()),
        }
        for one in pruned.frozen
    ]
    facts = plain(refitted) if refitted is not None else None
    if isinstance(facts, dict):
        facts = {k: v for k, v in facts.items() if k not in ("seconds", "timing")}
    return {
        "before": dict(original or pruned.before),
        "after": dict(pruned.after),
        "in_place": pruned.in_place,
        "reason": pruned.reason,
        "evened": pruned.evened,
        "widths": widths,
        "frozen": frozen,
        "reconstruction": facts,
        "sensitivity": None if pruned.sensitivity is None else pruned.sensitivity.to_dict(),
    }
