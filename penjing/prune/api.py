"""`prune`: trace, couple, score, allocate, plan, apply — each a step of its own, here in one call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from penjing.batches import check_reiterable
from penjing.errors import BudgetError, PruneError, TraceError
from penjing.events import Event, Listener, silent
from penjing.graph import Coupling, Graph, Group, couple, trace
from penjing.graph.remembered import put_back
from penjing.graph.solve import matches
from penjing.prune.allocate import Scope, allocate, check_widths, matching, own_ratios
from penjing.prune.apply import carry_out
from penjing.prune.budget import Budget, as_budget
from penjing.prune.criteria import Criterion, Material, make_criterion
from penjing.prune.follow import follow, settled
from penjing.prune.granted import granted_widths, written_widths
from penjing.prune.noted import noted
from penjing.prune.plan import AttributeEdit, Plan, tensor_shapes
from penjing.prune.ranges import Positions
from penjing.prune.result import PruneResult, summarise
from penjing.prune.shorten import best_depth, shorten
from penjing.prune.slots import by_leaf, group_edits, index_values, renamed, tensor_edits
from penjing.prune.torn import Torn, blame, even_ratios, head_sizes, torn
from penjing.prune.trials import Trials
from penjing.prune.worth import per_cost

if TYPE_CHECKING:
    from penjing.prune.reconstruct import ReconstructConfig
    from penjing.search.sensitivity import Sensitivity

_EVENED = 3
"""How often groups are made to keep equally many: where all share a ratio, the others change with it."""
_NAMED = 3
"""Groups that are named where many are meant."""
_WORTH = 0.5
"""What the class must lose at least, of the parameters that the graph loses, to be preferred to it."""
_WORTH_WRITTEN = 0.8
"""The same where more than what is multiplied has to stay whole (`written_widths`)."""
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
            (``"obs"``), a budget divides them by what a slot saves (see `penjing.prune.worth`).
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
        DataError: for data that is needed again and can be iterated only once.
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
    passes = (chosen.needs_data, reconstruct, counted, scope == "sensitivity" and sensed is None)
    if data is not None and (branches == "auto" or sum(map(bool, passes)) > 1):
        check_reiterable(data)
    ignore = checked_patterns(ignore, model)
    checked_patterns(list(ratios or ()), model, "ratios")
    if reconstruct and data is None:
        raise PruneError("reconstruction needs data", remedy="Pass data=… (batches of the training set)")
    batches = () if data is None else data  # its truth is not asked: a stream has none, a tensor several
    listen(Event("prune", "start", message="trace and solve the axes"))
    options: dict[str, Any] = {"round_to": round_to, "min_slots": min_slots}

    def narrow(model: nn.Module, budget: Budget | None, sensed: Sensitivity | None) -> PruneResult:
        graph = trace(model, example_inputs, by_example=True)
        if graph.by_example:
            listen(Event("prune", "note", message=_BY_EXAMPLE))
        coupling = couple(graph, ignore=ignore, prune_outputs=prune_outputs)
        material = Material(model, graph, coupling, data, loss, seed, listen)
        own = _present(ratios or {}, coupling, listen)
        result = _narrow(material, example_inputs, chosen, ratio, budget, scope, sensed, own, options)
        return _served(result, graph)

    def shorten_first(branches: int | Sequence[str]) -> PruneResult:
        from penjing.search.fit import budget_after  # only searches measure

        if not branches:
            return narrow(model, budget, sensed)
        short = shorten(model, example_inputs, branches, data, ignore=ignore, listen=listen)
        left = budget and budget_after(budget, model, short.model, example_inputs)
        result = narrow(short.model, left, None)
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


def _narrow(
    material: Material,
    example_inputs: Any,
    criterion: Criterion,
    ratio: float,
    budget: Budget | None,
    scope: Scope,
    sensed: Sensitivity | None,
    ratios: Mapping[str, float],
    options: Mapping[str, Any],
) -> PruneResult:
    """Score, allocate and remove slots; again where the class could serve if groups kept equally many."""
    graph, coupling = material.graph, material.coupling
    scores = criterion.scores(material)
    if budget is None and scope == "sensitivity":
        raise PruneError("scope 'sensitivity' needs a budget", remedy="Pass budget=Budget(…)")
    if budget is not None and criterion.adds_up and criterion.normalisation == "none":
        scores = per_cost(graph, coupling, scores, budget)
    made = {
        "criterion": criterion.name,
        "scope": scope,
        **({"budget": budget.to_dict()} if budget else {"ratio": ratio}),
        "seed": material.seed,
    }

    def made_with(ratios: Mapping[str, float], sensed: Sensitivity | None) -> PruneResult:
        meter = None
        if budget is None:
            kept = allocate(coupling.groups, scores, ratio=ratio, scope=scope, ratios=ratios, **options)
        else:
            from penjing.search.fit import fit_to_budget  # only searches measure

            kept, sensed, meter = fit_to_budget(
                material, scores, example_inputs, budget, scope=scope, ratios=ratios, sensed=sensed, **options
            )
        result = prune_slots(material.model, example_inputs, graph, coupling, kept, made=made)
        return replace(result, sensitivity=sensed, latency=meter)

    result = made_with(ratios, sensed)
    asked = {coupling.groups[at].id for at in own_ratios(coupling.groups, ratios)}

    def served(again: PruneResult, fixed: Mapping[str, float]) -> PruneResult:
        """Pruned again with even ratios until the class serves, or there is nothing to even."""
        found: tuple[Torn, ...] = ()
        even: dict[str, float] = {}
        free = [group for group in coupling.groups if group.id not in fixed]
        for _ in range(_EVENED):
            if again.in_place:
                break
            kept, last = by_leaf(coupling, {key: edit.kept for key, edit in again.plan.groups.items()}), even
            found += torn(material.model, graph, coupling, kept)
            settled = {
                group.id: 1 - len(kept[group.leaf]) / group.size if group.leaf in kept else 0.0
                for group in coupling.groups
                if group.id in asked
            }
            even = even_ratios(found, free, kept, settled=settled, **options)
            if even in ({}, last):
                break
            again = made_with({**ratios, **fixed, **even}, result.sensitivity)
        return again

    def keeping(widths: set[str]) -> PruneResult:
        """The same with these groups whole, but for those that have a ratio of their own."""
        whole = dict.fromkeys(widths - asked, 0.0)
        return served(made_with({**ratios, **whole}, result.sensitivity), whole)

    worth = _WORTH
    try:
        again = served(result, {})
        heads = head_sizes(coupling.groups) - asked
        if heads and not again.in_place:  # attentions take head sizes for granted, numbers of heads seldom
            again = keeping(heads)
        for widths in () if again.in_place else granted_widths(graph, coupling):
            again = keeping(widths)
            if again.in_place:
                break
        # not under a budget: what stayed whole would have to go elsewhere, at a loss that nothing shows
        written = () if again.in_place or budget else written_widths(material.model, graph, coupling)
        for widths in written:
            again, worth = keeping(widths), _WORTH_WRITTEN
            if again.in_place:
                break
    except BudgetError:  # out of reach for so few choices
        return result
    if again is result or not again.in_place or _removed(again) < worth * _removed(result):
        return result
    again = replace(again, evened=_evened(result, again))
    if again.evened:
        material.listen(Event("prune", "note", message=again.evened))
    return again


def _evened(alone: PruneResult, served: PruneResult) -> str:
    """What is said where groups keep other numbers than they would if the class did not count."""

    from penjing.report import text

    def kept(result: PruneResult, group: Group) -> int:
        edit = result.plan.groups.get(group.id)
        return group.size if edit is None else len(edit.kept)

    changed = [
        f"{text.group(group.id)} {kept(served, group)} instead of {kept(alone, group)}"
        for group in served.groups
        if kept(served, group) != kept(alone, group)
    ]
    if not changed:
        return ""
    named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if changed[_NAMED:] else "")
    said = f"so that the class serves, groups keep other numbers than scores alone give ({named})"
    return f"{said}: {alone.reason}"


def _removed(result: PruneResult) -> int:
    return result.before["params"] - result.after["params"]


def check_model(model: Any) -> None:
    """Refuse what is no network.

    Raises:
        PruneError: naming its type.
    """
    if not isinstance(model, nn.Module):
        exported = type(model).__name__ == "ExportedProgram"
        instead = " or its .pt2 file (load_model with trust=True)" if exported else ""
        raise PruneError(f"the model is a {type(model).__name__}", remedy=f"Give a torch.nn.Module{instead}")


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


def names_one(pattern: str, params: Sequence[str]) -> bool:
    """Whether a glob matches a parameter, a module that holds one, or a group's id that begins with one."""
    return any(matches(name, pattern.partition(":")[0]) for name in params)


def checked_patterns(patterns: str | Sequence[str], model: nn.Module, what: str = "ignore") -> Sequence[str]:
    """The patterns, each of which matches a parameter: any other is a misspelling.

    Raises:
        PruneError: naming the pattern, and the parameter that may be meant.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not names_one(pattern, names):
            near = difflib.get_close_matches(pattern, names, n=1)
            raise PruneError(
                f"{what} pattern {pattern!r} matches no parameter",
                remedy=f"Did you mean {near[0]!r}?" if near else f"Names look like {names[0]!r}",
            )
    return patterns


_WIDER: tuple[dict[str, bool], ...] = ({}, {"given": True}, {"shared": True})
"""What `follow` may take for a number that follows, beyond what is certain, in the order of trying."""


def _distinct(choices: Iterable[tuple[AttributeEdit, ...]]) -> Iterator[tuple[AttributeEdit, ...]]:
    """Each choice once, made when it is asked for."""
    seen = set[tuple[AttributeEdit, ...]]()
    for choice in choices:
        if choice not in seen:
            seen.add(choice)
            yield choice


def prune_slots(
    model: nn.Module,
    example_inputs: Any,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[str, Positions],
    *,
    made: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Prune to chosen slots: for searches that choose by themselves.

    Args:
        model: The traced model.
        example_inputs: What it was traced with.
        graph: ``trace(model, example_inputs)``.
        coupling: ``couple(graph)``.
        kept: Kept slots (strictly increasing) by group id; groups that are missing stay whole.
        made: What to record in the plan about how it was made.
    """
    leaves = by_leaf(coupling, kept)
    found = (follow(model, graph, coupling, leaves, **wider) for wider in _WIDER)
    done = carry_out(model, graph, coupling, leaves, _distinct(found), example_inputs)
    reason = done.reason and done.reason + blame(torn(model, graph, coupling, leaves))
    trials = Trials(done.model, example_inputs)
    plan = Plan(
        shapes=tensor_shapes(model),
        groups=group_edits(coupling, kept),
        tensors=tensor_edits(graph, coupling, leaves),
        attributes=noted(trials, settled(trials, done.attributes)),
        values=index_values(graph, done.values),
        renamed=renamed(coupling, leaves),
        in_place=done.in_place,
        reason=reason,
        created_by=dict(made or {}),
    )
    return summarise(done.model, plan, graph, coupling, leaves, in_place=done.in_place)
