"""`prune`: trace, couple, score, allocate, plan, apply — each a step of its own, here in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from penjing.batches import check_batches, check_reiterable
from penjing.errors import PruneError, TraceError
from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Graph, couple, trace
from penjing.graph.remembered import put_back
from penjing.prune.allocate import Scope, check_widths, matching
from penjing.prune.budget import Budget, as_budget
from penjing.prune.checks import check_model, checked_patterns
from penjing.prune.criteria import Criterion, Material, make_criterion
from penjing.prune.narrow import Amount, narrow
from penjing.prune.result import PruneResult
from penjing.prune.shorten import best_depth, shorten

if TYPE_CHECKING:
    from penjing.prune.reconstruct import ReconstructConfig
    from penjing.search.sensitivity import Sensitivity

_BY_EXAMPLE = (
    "the forward goes by what it finds in its inputs; what hangs together was seen where the example leads it"
)


def prune(
    model: nn.Module,
    example_inputs: Any,
    ratio: float = 0.5,
    criterion: str | Mapping[str, Any] | Criterion = "magnitude",
    scope: Scope = "local",
    ignore: str | Sequence[str] = (),
    data: Iterable[Any] | None = None,
    reconstruct: bool | ReconstructConfig | Mapping[str, Any] = False,
    *,
    ratios: Mapping[str, float] | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    round_to: int = 1,
    min_slots: int = 1,
    branches: int | Literal["auto"] | Sequence[str] = 0,
    prune_outputs: bool = False,
    loss: Any = None,
    seed: int = 0,
    sensed: Sensitivity | None = None,
    listen: Listener = silent,
) -> PruneResult:
    """Remove whole structures (channels, heads, widths) from a copy of the model.

    Args:
        model: The trained network; not changed.
        example_inputs: A tensor, a tuple or a dict the model can be called with.
        ratio: Fraction of the slots to remove, in [0, 1): of each group with scope "local", of all slots with
            "global", of each class of like groups with "isomorphic". Where a dimension is a product (heads
            and their sizes, groups of channels), its finest factor takes the ratio and the others stay
            whole. Unused when a budget is given.
        criterion: A name (``"magnitude"``, ``"taylor"``, …), ``{"name": …, option: value}`` or a `Criterion`.
        scope: How groups share the ratio or budget; with "sensitivity" widths go by measured damage against
            measured cost (needs a budget and data). Where a criterion's scores are damages that add up
            (``"obs"``), a budget divides them by what a slot saves, and a ratio takes them relative to their
            group (see `penjing.prune.worth`).
        ignore: Glob patterns on parameter names, or one of them; the axes of matching parameters stay whole,
            and a branch all of whose parameters match is not taken out unless it is named.
        data: Batches, for criteria that need them and for reconstruction.
        reconstruct: Refit what reads the removed slots to the original's outputs on ``data``, before any
            training; True or options (``block_steps`` fits whole blocks, too).
        ratios: Ratios of their own for groups with a parameter matching a glob; the last match wins. Globs of
            ids (`penjing.inspect` lists them) choose the factor of a product, too.
        budget: Bounds to meet with as few removals as possible, to within one slot.
        round_to: Kept counts are multiples of this, and of what a kernel takes (`Group.step`).
        min_slots: Slots that stay in any group.
        branches: Residual branches to take out whole first: how many, least damage to the output first (needs
            data), or their names (`penjing.inspect` lists them). Ratio and budget then go for the widths of
            what is left; a budget's shares are of the original all the same. With ``"auto"`` none, some and
            more of them are tried within the budget, each refitted, and the least output error on held-back
            samples decides.
        prune_outputs: Whether the model's outputs may lose positions too.
        loss: ``loss(output, batch) -> scalar`` for criteria that need gradients.
        seed: For criteria that draw.
        sensed: A sensitivity measured before, for scope "sensitivity".
        listen: Hears what happens.

    Returns:
        The pruned model with its plan.

    Raises:
        TraceError: if the model cannot be traced.
        PruneError: for bad options, a budget out of reach, or scores that are not finite.
        RecipeError: for a budget or reconstruction options with an unknown or wrong entry.
        DataError: for data that are no batches, or are needed again and can be iterated only once.
    """
    check_model(model)
    chosen = make_criterion(criterion)
    budget, refit_config = as_budget(budget), _refit_config(reconstruct)
    check_widths(round_to, min_slots)
    if branches != "auto" and (isinstance(branches, str) or not isinstance(branches, (int, Sequence))):
        raise PruneError(f"branches {branches!r}", remedy="Give a number, 'auto', or a list of names")
    if branches == "auto" and (budget is None or data is None):
        raise PruneError("branches 'auto' needs a budget and data", remedy="Pass both, or a number")
    counted = isinstance(branches, int) and branches > 0
    if data is not None:
        check_batches(data)
    passes = (chosen.needs_data, reconstruct, counted, scope == "sensitivity" and sensed is None)
    if data is not None and (branches == "auto" or sum(map(bool, passes)) > 1):
        check_reiterable(data)
    ignore = checked_patterns(ignore, model)
    checked_patterns(list(ratios or ()), model, "ratios")
    if reconstruct and data is None:
        raise PruneError("reconstruction needs data", remedy="Pass data=… (batches of the training set)")
    batches = () if data is None else data  # its truth is not asked: a stream has none, a tensor several
    listen(Event("prune", "start", message="trace and solve the axes"))

    def narrowed(model: nn.Module, budget: Budget | None, sensed: Sensitivity | None) -> PruneResult:
        graph = trace(model, example_inputs, by_example=True)
        if graph.by_example:
            listen(Event("prune", "note", message=_BY_EXAMPLE))
        coupling = couple(graph, ignore=ignore, prune_outputs=prune_outputs)
        material = Material(model, graph, coupling, data, loss, seed, listen)
        own = _present(ratios or {}, coupling, listen)
        amount = Amount(ratio, budget, scope, own, round_to, min_slots)
        return _served(narrow(material, example_inputs, chosen, amount, sensed), graph)

    def shorten_first(branches: int | Sequence[str]) -> PruneResult:
        from penjing.search.fit import budget_after  # only searches measure

        if not branches:
            return narrowed(model, budget, sensed)
        short = shorten(model, example_inputs, branches, data, ignore=ignore, listen=listen)
        left = budget and budget_after(budget, model, short.model, example_inputs)
        result = narrowed(short.model, left, None)
        plan = short.plan.then(result.plan)
        return replace(result, plan=plan, before=short.before, in_place=False, reason=plan.reason)

    def refit(result: PruneResult) -> PruneResult:
        from penjing.prune.reconstruct import reconstruct as refit_layers

        refitted = refit_layers(result.model, model, result.plan, batches, refit_config, listen=listen)
        return replace(result, model=refitted.model, reconstruction=refitted)

    with put_back(model):  # a forward that is run, or its graph, writes what it keeps
        if branches == "auto":
            result = best_depth(
                model,
                example_inputs,
                batches,
                shorten_first,
                refit,
                refitted=bool(reconstruct),
                ignore=ignore,
                listen=listen,
            )
        else:
            result = shorten_first(branches)
        if reconstruct and result.reconstruction is None:
            result = refit(result)
    if not result.plan.groups and not result.plan.branches:
        listen(Event("prune", "warning", message=_nothing_went(result, budget, round_to, min_slots)))
    metrics = {name: float(n) for name, n in result.after.items()}
    listen(Event("prune", "end", metrics=metrics, message=_went(result)))
    return result


def _nothing_went(result: PruneResult, budget: Budget | None, round_to: int, min_slots: int) -> str:
    """Why the network came back whole."""
    if budget is not None:  # out of reach it would have been an error
        allowed = ", ".join(f"{name} {budget.in_words(name)}" for name in budget.bounds)
        return f"nothing was removed: the network as given is within the budget ({allowed})"
    if max(round_to, min_slots) > 1:
        return f"nothing was removed: every group keeps round_to={round_to}, min_slots={min_slots}"
    return (
        f"nothing was removed; frozen axes: {len(result.frozen)}" if result.frozen else "nothing was removed"
    )


def _served(result: PruneResult, graph: Graph) -> PruneResult:
    """The result, unless it is a graph that holds for the example inputs alone.

    Raises:
        TraceError: where it is.
    """
    if result.in_place or not graph.by_example:
        return result
    raise TraceError(
        f"{graph.by_example}; pruned, its class does not serve, and a graph cannot: {result.reason}",
        layer=type(result.model).__name__,
        remedy="Make the forward free of data-dependent control flow, or prune a submodule that is",
    )


def _present(ratios: Mapping[str, float], coupling: Coupling, listen: Listener) -> dict[str, float]:
    """The ratios of groups that there are: some went with a branch, are frozen, or one slot wide."""
    found = {pattern: value for pattern, value in ratios.items() if matching(coupling.groups, pattern)}
    for pattern in (name for name in ratios if name not in found):
        listen(Event("prune", "warning", message=f"ratios pattern {pattern!r} matches no group that may go"))
    return found


def _went(result: PruneResult) -> str:
    from penjing.report.text import some

    done, total = result.after["params"], result.before["params"]
    went = f"{total:,} → {done:,} parameters in {some(len(result.plan.groups), 'group')}"
    gone = len(result.plan.branches)
    return f"{went}, {some(gone, 'branch', 'branches')} gone" if gone else went


def _refit_config(given: bool | ReconstructConfig | Mapping[str, Any]) -> ReconstructConfig | None:
    from penjing.prune.reconstruct import ReconstructConfig

    if isinstance(given, bool):
        return None
    if not isinstance(given, (Mapping, ReconstructConfig)):
        raise PruneError(f"reconstruct is {given!r}", remedy="Give True, False, or a ReconstructConfig")
    return ReconstructConfig.of(given)
