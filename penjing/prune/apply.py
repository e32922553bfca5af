"""Carrying out a plan: on the user's own class where it can follow, on the traced graph always, and
compared.
"""

from __future__ import annotations

import copy
import math
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from penjing.errors import PruneError
from penjing.graph import Coupling, Graph, GraphModel, count, couple, is_kept_whole, trace
from penjing.graph.branches import chosen, cut, find_branches
from penjing.graph.source import is_users, short_place
from penjing.graph.views import eval_view
from penjing.prune.compare import Reference, compare, forward
from penjing.prune.cost import count_all
from penjing.prune.held import get, has, put
from penjing.prune.layers import standard
from penjing.prune.plan import AttributeEdit, Plan
from penjing.prune.ranges import Positions
from penjing.prune.result import PruneResult, summarise
from penjing.prune.slicing.graph import slice_graph, slice_tensor, slice_tensors
from penjing.prune.slots import slots_of
from penjing.prune.tables import plain_tables, set_tables


@dataclass(frozen=True)
class Applied:
    """A sliced model and which path served."""

    model: nn.Module
    attributes: tuple[AttributeEdit, ...]
    values: Mapping[str, Tensor]
    in_place: bool
    reason: str


def apply(model: nn.Module, plan: Plan, example_inputs: Any) -> PruneResult:
    """Original weights + plan → the pruned model, bit for bit the one that `prune` gave.

    Args:
        model: A model with the names and shapes the plan was made for; it is copied.
        plan: What to keep.
        example_inputs: Inputs of the model: a tensor, a tuple or a dict.

    Raises:
        PruneError: if this is no plan, or one for another model.
    """
    if not isinstance(plan, Plan):
        raise PruneError(f"the plan is {plan!r}", remedy="Give a Plan; Plan.load reads one from a file")
    plan.check(model)
    whole = trace(model, example_inputs, by_example=True)
    graph = without_branches(whole, plan)
    coupling = couple(graph, prune_outputs=True)
    kept = slots_of(plan, coupling)
    done = carry_out(
        model, graph, coupling, kept, [plan.attributes], example_inputs, graph_only=not plan.in_place
    )
    if plan.in_place and not done.in_place:
        raise PruneError(
            f"the model's class does not follow the plan: {done.reason}",
            remedy="Make the plan again with this version of the model's code",
        )
    result = summarise(done.model, plan, graph, coupling, kept, in_place=done.in_place)
    return replace(result, before=count_all(whole)) if plan.branches else result


def without_branches(graph: Graph, plan: Plan) -> Graph:
    """The graph without the branches that go whole in a plan; itself where there are none."""
    return cut(graph, chosen(find_branches(graph), tuple(plan.branches))) if plan.branches else graph


def apply_(model: nn.Module, plan: Plan, example_inputs: Any) -> nn.Module:
    """As `apply`, changing ``model`` itself; parameters stay the same objects, so an optimizer keeps its
    references.

    Raises:
        PruneError: if the plan is for another model, or its class cannot follow (nothing is changed then).
    """
    if not plan.in_place:
        raise PruneError(
            f"the model's class cannot follow this plan ({plan.reason})",
            remedy="Use apply, which gives the traced graph as a model",
        )
    sliced = apply(model, plan, example_inputs).model
    sources = dict(sliced.named_parameters()) | dict(sliced.named_buffers())
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.data = sources[name].data
            tensor.grad = None
    set_tables(model, sliced)
    set_attributes(model, plan.attributes)
    return model


def carry_out(
    model: nn.Module,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    choices: Iterable[tuple[AttributeEdit, ...]],
    example_inputs: Any,
    *,
    graph_only: bool = False,
) -> Applied:
    """Slice the graph, slice a copy of the module, run both on the example inputs and compare.

    The user's class serves with the first choice of edits with which it agrees; otherwise the graph does, and
    the reason says why the first choice failed.
    """
    tensors = slice_tensors(graph, coupling, kept)
    sliced = slice_graph(graph, coupling, kept, tensors)
    values = {name: t for name, t in sliced.buffers.items() if name in tensors and t is not tensors[name]}
    if graph_only:
        return Applied(_as_model(sliced, model), (), values, False, "")
    reason = _scale_changes(graph, coupling, kept)
    if reason:
        return Applied(_as_model(sliced, model), (), values, False, reason)
    reference = Reference(sliced.module, example_inputs)
    for attributes in choices:
        module = slice_module(model, graph, {**tensors, **values}, attributes)
        followed, refused = _followed(module, model, graph, coupling, kept, attributes, reference)
        if not refused:
            return Applied(module, followed, values, True, "")
        reason = reason or refused
    if isinstance(model, GraphModel):
        reason = "it is a traced graph itself, which holds its sizes as numbers"
    return Applied(_as_model(sliced, model), (), values, False, reason)


def _followed(
    module: nn.Module,
    model: nn.Module,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    attributes: tuple[AttributeEdit, ...],
    reference: Reference,
) -> tuple[tuple[AttributeEdit, ...], str]:
    """The edits with which a sliced module agrees with the sliced graph; or why it does not."""

    def refusal() -> tuple[str, float]:
        """Why it does not serve, or "", and how far it came: calls of torch, where it raised."""
        inputs = reference.inputs
        with _Calls() as calls:
            try:
                reason = compare(module, reference)
                reason = reason or _heads_differ(module, graph, coupling, kept, inputs)
                if not reason and graph.params.keys() - graph.read_names():
                    reason = _training_differs(model, module, inputs)
            except Exception as error:  # the user's forward may raise anything once its sizes are wrong
                return f"its forward raises {_first_line(error)}{_raised_in(error, module)}", calls.number
        return reason, math.inf

    reason, reached = refusal()
    if not reason:
        return attributes, ""
    left, by_chance = list(of_one_kind(module, attributes)), set[AttributeEdit]()
    while left:  # numbers that had a pruned size by chance: a layer's place, an image's height
        farthest: tuple[AttributeEdit, ...] = ()
        for same in left:
            set_attributes(module, tuple(replace(edit, new=edit.old) for edit in same))
            still, now = refusal()
            if not still:
                by_chance.update(same)
                return tuple(edit for edit in attributes if edit not in by_chance), ""
            set_attributes(module, same)
            if now > reached:  # past where it raised: one such number, and there is another
                reason, reached, farthest = still, now, same
        if not farthest:
            break
        left.remove(farthest)
        by_chance.update(farthest)
        set_attributes(module, tuple(replace(edit, new=edit.old) for edit in farthest))
    return (), reason


def of_one_kind(
    module: nn.Module, attributes: tuple[AttributeEdit, ...], *, by_value: bool = False
) -> tuple[tuple[AttributeEdit, ...], ...]:
    """The edits of each attribute of each class that is no standard layer's, or of each old value of it."""
    holders, kinds = dict(module.named_modules()), defaultdict[Any, list[AttributeEdit]](list)
    for edit in attributes:
        holder = holders[edit.module]
        if standard(holder, edit.name, edit.old, {}) is None:
            kinds[type(holder), edit.name, edit.old if by_value else None].append(edit)
    return tuple(map(tuple, kinds.values()))


def _as_model(sliced: Graph, model: nn.Module) -> GraphModel:
    """The sliced graph as a model, with the training flag of the model it stands for."""
    as_graph = GraphModel(sliced)
    as_graph.train(model.training)
    return as_graph


def _scale_changes(graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]) -> str:
    """Why the class would compute another attention: it takes the scale from the pruned head size; or "".

    Near-uniform attention hides the difference, so that comparing outputs does not find it reliably.
    """
    for node in graph.module.graph.nodes:
        if node.meta.get("implicit_scale"):
            query = coupling.values[node.args[0].name][0]
            if not is_kept_whole(query[-1], kept):
                return f"its attention at {graph.source(node)} scales by 1/√(head size), which changes"
    return ""


class _Calls(TorchFunctionMode):
    """Counts calls of torch: how far a forward comes before it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


class _Queries(TorchFunctionMode):
    """Notes the shapes of attention's queries, without the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else (kwargs or {})["query"]
            self.shapes.append(tuple(query.shape[1:]))
        return func(*args, **(kwargs or {}))


def _heads_differ(
    module: nn.Module, graph: Graph, coupling: Coupling, kept: Mapping[int, Positions], example_inputs: Any
) -> str:
    """Why the sliced class attends in other heads than the graph; or "".

    A forward that knows how many heads there are makes smaller ones of what is left; near-uniform attention
    hides that, too.
    """
    calls = [
        (node, coupling.values[node.args[0].name][0][1:])
        for node in graph.module.graph.nodes
        if str(node.target) == "aten.scaled_dot_product_attention.default"
    ]
    if all(is_kept_whole(axis, kept) for _, axes in calls for axis in axes):
        return ""
    with eval_view(module), torch.no_grad(), _Queries() as seen:
        forward(module, example_inputs)
    if len(seen.shapes) != len(calls):  # it attends by other means, which are compared by numbers
        return ""
    for (node, axes), shape in zip(calls, seen.shapes, strict=True):
        traced = graph.shape(node.args[0])[1:]
        sizes = (count(axis, kept) for axis in axes)
        if any(
            isinstance(n, int) and here != size for n, here, size in zip(traced, shape, sizes, strict=True)
        ):
            return f"its attention at {graph.source(node)} makes other heads of what is left"
    return ""


def _training_differs(model: nn.Module, module: nn.Module, example_inputs: Any) -> str:
    """Why the sliced class does not train where the original does: a branch that only training takes; or "".

    Such a branch (an auxiliary classifier) is not in the graph, so what it reads is not known to be coupled.
    """
    try:
        forward(copy.deepcopy(model).train(), example_inputs)
    except Exception:  # the original does not train on these inputs either, so nothing can be told
        return ""
    try:
        forward(copy.deepcopy(module).train(), example_inputs)
    except Exception as error:
        return f"in training mode its forward raises {_first_line(error)}"
    return ""


def _raised_in(error: Exception, module: nn.Module) -> str:
    """``" (module, file:line)"`` of the innermost part of the model that an error came through."""
    names = {id(part): name for name, part in module.named_modules()}
    path, at = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = names.get(id(frame.f_locals.get("self"))) or path
        if path and is_users(frame.f_code.co_filename):
            at = short_place(frame.f_code.co_filename, line)
    return f" ({', '.join(filter(None, (path, at)))})" if path else ""


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def slice_module(
    model: nn.Module,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    attributes: tuple[AttributeEdit, ...],
) -> nn.Module:
    """A deep copy of the user's module that holds sliced tensors; the originals are never copied.

    Shared parameters stay shared, ``requires_grad``, dtype, device and training flags stay.
    """
    memo: dict[int, Any] = {}
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        first = graph.aliases.get(name, name)
        memo[id(tensor)] = tensors[first] if first in tensors else slice_tensor(tensor, {})
    for holder, attribute, name in plain_tables(model, graph):
        if name in tensors:
            memo[id(getattr(holder, attribute))] = tensors[name]
    module = copied(model, memo)
    set_attributes(module, attributes)
    return module


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of modules that hold tensors with a history.

    Args:
        model: Stays as it is.
        memo: What stands for some objects, by id.

    Raises:
        PruneError: if something in it cannot be copied.
    """
    memo = {} if memo is None else memo
    for part in model.modules():
        for value in vars(part).values():
            if type(value) is OrderedDict and not value:  # most of a module: hooks, which copy slowly
                memo[id(value)] = OrderedDict()
            elif isinstance(value, Tensor) and not value.is_leaf:  # the old weight norm's last weight
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise PruneError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            remedy="Let its modules hold only parameters, buffers and plain values",
        ) from error


def set_attributes(model: nn.Module, attributes: tuple[AttributeEdit, ...]) -> None:
    """Write the integer attributes; a list stays a list."""
    modules = dict(model.named_modules())
    for edit in attributes:
        holder = modules.get(edit.module)
        if holder is None or not has(holder, edit.name):
            raise PruneError(
                f"no attribute {edit.name!r}",
                layer=edit.module,
                remedy="Apply the plan to the class it was made for",
            )
        old = get(holder, edit.name)
        put(holder, edit.name, list(edit.new) if isinstance(old, list) else edit.new)  # type: ignore[arg-type]
