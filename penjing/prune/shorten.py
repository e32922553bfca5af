"""Depth: take whole residual branches out, those first whose absence the network's output feels least.

Greedy, each time with the branches already gone (one at a time, Gromov et al. 2024, *The unreasonable
ineffectiveness of the deeper layers*, and Men et al. 2024, *ShortGPT*, go by a layer's own input and output;
here the network's output decides). What is measured for a branch rarely falls as others go, so a branch is
measured again only while it may still be the least: the lazy greedy of Minoux 1978.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.errors import BudgetError, PruneError
from penjing.events import Event, Listener, silent, warner
from penjing.graph import Graph, GraphModel, couple, trace
from penjing.graph.branches import Branch, WithoutBranches, chosen, cut, find_branches
from penjing.graph.inputs import flat_inputs
from penjing.graph.remembered import own_copies
from penjing.graph.solve import matches
from penjing.prune.compare import difference, relative_error, run, spread
from penjing.prune.cost import count_all
from penjing.prune.plan import Plan, tensor_shapes
from penjing.prune.reconstruct import calibration_batches
from penjing.prune.result import PruneResult, summarise
from penjing.prune.walk import given_to

_SAMPLES = 128
_TOLERANCE = 1e-4


def shorten(
    model: nn.Module,
    example_inputs: Any,
    branches: int | Sequence[str],
    data: Iterable[Any] | None = None,
    *,
    ignore: Sequence[str] = (),
    listen: Listener = silent,
) -> PruneResult:
    """Remove whole residual branches from a copy of the model: of ``x + f(x)`` only ``x`` is left.

    Args:
        model: The trained network; not changed.
        example_inputs: A tensor, a tuple or a dict the model can be called with.
        branches: How many to remove, least damage to the output first (needs data); or the names of those to
            remove, as `penjing.graph.branches.find_branches` gives them.
        data: Batches of the training set; labels are not looked at.
        ignore: Glob patterns on parameter names; a branch whose parameters all match is not chosen.
        listen: Hears what happens.

    Returns:
        The shorter network, which is a traced graph, and its plan.

    Raises:
        TraceError: if the model cannot be traced.
        PruneError: for more branches than there are, unknown names, or no data to choose by.
        DataError: for empty data or NaN in it.
    """
    graph = trace(model, example_inputs)
    found = find_branches(graph)
    if isinstance(branches, int):
        gone = least_felt(graph, _free(graph, found, ignore), branches, data, listen=listen)
    else:
        gone = chosen(found, branches)
    return _without(model, graph, gone, example_inputs)


def least_felt(
    graph: Graph,
    branches: Sequence[Branch],
    count: int,
    data: Iterable[Any] | None,
    *,
    samples: int = _SAMPLES,
    listen: Listener = silent,
) -> list[Branch]:
    """The branches whose removal changes the output least, chosen one after another.

    Args:
        graph: The traced network.
        branches: Those that may go.
        count: How many of them go.
        data: Batches of inputs, or of (inputs, targets).
        samples: Most samples used.
        listen: Hears the progress.

    Returns:
        ``count`` branches, in the order in which they go.

    Raises:
        PruneError: for more branches than there are, or no data.
    """
    if not 0 < count <= len(branches):
        raise PruneError(
            f"{count} branches are to go and the network has {len(branches)} that may",
            remedy="Give a number between 1 and that" if branches else "Prune its widths instead",
        )
    if data is None:
        raise PruneError(
            "choosing branches needs data", remedy="Pass data=… (batches of the training set), or names"
        )
    warn = warner("prune", listen)
    inputs = calibration_batches(data, samples, graph.input_names, warn)
    batches = [given_to(graph, batch) for batch in inputs]
    whole = _outputs(graph, (), batches)
    size = sum(spread(y) for y in whole) or 1.0
    out: list[Branch] = []

    def damage(branch: Branch) -> float:
        outputs = _outputs(graph, [*out, branch], batches)
        return sum(float(difference(a, b).square().sum()) for a, b in zip(outputs, whole, strict=True)) / size

    waiting = [(0.0, at) for at in range(len(branches))]  # damages last measured, never too high by much
    heapq.heapify(waiting)
    while len(out) < count:
        measured: set[int] = set()
        while waiting[0][1] not in measured:
            _, at = heapq.heappop(waiting)
            measured.add(at)
            heapq.heappush(waiting, (damage(branches[at]), at))
        harm, at = heapq.heappop(waiting)
        out.append(branches[at])
        listen(
            Event(
                "prune",
                "progress",
                len(out),
                count,
                "branch",
                {"damage": harm},
                f"without {branches[at].name}",
            )
        )
    return out


def best_depth(
    model: nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    prune: Callable[[Sequence[str]], PruneResult],
    refit: Callable[[PruneResult], PruneResult],
    *,
    refitted: bool = False,
    ignore: Sequence[str] = (),
    listen: Listener = silent,
) -> PruneResult:
    """Within one budget, the number of branches whose absence, with the widths that go with it, costs least.

    Depths are tried from none on, a sixth of the branches more each time, until the error rises twice.

    Args:
        model: The original.
        example_inputs: As it is called.
        data: Batches that branches are chosen on.
        prune: Takes these branches out and meets the budget with widths.
        refit: Reconstructs the result.
        refitted: Return the best as ``refit`` gave it, not as ``prune`` did.
        ignore: As in `shorten`.
        listen: Hears what was tried.

    Returns:
        The best of them, with `PruneResult.depths`.

    Raises:
        BudgetError: where no depth meets the budget.
    """
    graph = trace(model, example_inputs)
    found = _free(graph, find_branches(graph), ignore)
    if not found:
        return prune(())
    step = max(1, round(len(found) / 6))
    order = least_felt(graph, found, len(found) - len(found) // 3, data, listen=listen)
    errors: dict[int, float] = {}
    best: PruneResult | None = None
    problem: BudgetError | None = None
    for count in range(0, len(order) + 1, step):
        try:
            made = prune([branch.name for branch in order[:count]])
        except BudgetError as error:
            problem = error  # widths alone may not reach what widths and depth do
            continue
        fitted = refit(made)
        found_error = fitted.reconstruction.error_after
        if found_error < min(errors.values(), default=math.inf):
            best = fitted if refitted else made
        errors[count] = found_error
        listen(Event("prune", "note", message=f"{count} branches gone: output error {errors[count]:.4g}"))
        last = list(errors.values())[-3:]
        if len(last) == 3 and last[0] < last[1] < last[2]:
            break
    if best is None:
        assert problem is not None
        raise problem
    return replace(best, depths=errors)


def _free(graph: Graph, branches: Sequence[Branch], ignore: Sequence[str]) -> list[Branch]:
    """The branches that may be chosen: not those whose parameters are all to be left alone."""

    def is_left_alone(branch: Branch) -> bool:
        names = [name for name in branch.tensors if name in graph.params]
        return all(any(matches(name, pattern) for pattern in ignore) for name in names)

    return [branch for branch in branches if not is_left_alone(branch)]


def _without(model: nn.Module, graph: Graph, gone: Sequence[Branch], example_inputs: Any) -> PruneResult:
    """The graph without these branches as a model, compared with the whole graph in which they give zeros."""
    short = cut(graph, gone)
    result = GraphModel(short)
    result.train(model.training)
    flat = flat_inputs(graph.module, own_copies(example_inputs))
    with torch.no_grad():
        expected = WithoutBranches(graph, gone).run(*flat, enable_io_processing=False)
    error = relative_error(run(result, example_inputs), expected)
    if not error <= _TOLERANCE:
        raise PruneError(
            f"without {', '.join(branch.name for branch in gone)} the network gives something else "
            f"(relative error {error:.1e})",
            remedy="Keep these branches and report this model",
        )
    plan = Plan(
        shapes=tensor_shapes(model),
        groups={},
        tensors={},
        branches={branch.name: _in_state(branch, graph) for branch in gone},
        in_place=False,
        reason="whole branches are gone, which its class would still compute",
        created_by={"branches": len(gone)},
    )
    counted = summarise(result, plan, short, couple(short), {}, in_place=False)
    return replace(counted, before=count_all(graph))


def _in_state(branch: Branch, graph: Graph) -> tuple[str, ...]:
    """The branch's tensors that are in the state dict."""
    persistent = {held.name for held in graph.held() if held.persistent}
    return tuple(name for name in branch.tensors if name in persistent)


@torch.no_grad()
def _outputs(graph: Graph, off: Sequence[Branch], batches: Sequence[Sequence[Any]]) -> list[Tensor]:
    """The network's floating-point outputs, all samples together, with some branches off."""
    parts = []
    for batch in batches:
        answer = WithoutBranches(graph, off).run(*batch, enable_io_processing=False)
        parts.append([y.double() for y in pytree.tree_leaves(answer) if _is_output(y)])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _is_output(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
