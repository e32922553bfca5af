"""Which integer attributes of the user's modules follow the sizes: found from the axes, never from a class
list alone.

An attribute follows when its value is the old size of a pruned axis that the module works with: a dim of a
tensor it owns, or of a value that a shape-making op in its own forward produced. Where several axes have
that size, the ones closest to the module and most often met come first. The result is always
verified by running the module.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from penjing.graph import Axis, Coupling, Graph, count, positions
from penjing.prune.apply import of_one_kind, set_attributes
from penjing.prune.held import kept_integers
from penjing.prune.layers import Own, normalised_dims, standard
from penjing.prune.made import How, given_axes, made_axes, owner, padded, split_axes
from penjing.prune.plan import AttributeEdit, Shape
from penjing.prune.ranges import Positions
from penjing.prune.trials import Trials

Evidence = dict[int, Counter[int]]  # old size → new sizes, by weight

_WEIGHT_OWN_TENSOR, _WEIGHT_SHAPE_OP, _WEIGHT_OTHER = 10_000, 100, 1
_NEVER = frozenset(
    {
        "training",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "output_padding",
        "num_classes",
        "img_size",
        "patch_size",
    }
)


def follow(
    model: nn.Module,
    graph: Graph,
    coupling: Coupling,
    kept: Mapping[int, Positions],
    *,
    given: bool = False,
    shared: bool = False,
) -> tuple[AttributeEdit, ...]:
    """The attribute edits that make the user's modules fit the sliced tensors.

    Args:
        model: The original model.
        graph: Its traced graph.
        coupling: Its axes.
        kept: Kept slots by leaf id.
        given: Also edit numbers that are the size of what a module is given and only hands on, or splits: a
            forward may check it, or divide it by a number of heads. More of them have that size by chance.
        shared: Also edit numbers in the configurations that modules keep, for all that share one.
    """
    evidence = _from_values(graph, coupling, kept, given=given)
    normalised: dict[str, list[tuple[Axis, ...]]] = defaultdict(list)
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and "_norm" in str(node.target) and node.name in coupling.values:
            normalised[owner(node)].append(coupling.values[node.name][0])
    edits: list[AttributeEdit] = []
    for path, module in model.named_modules():
        own = _from_tensors(path, module, graph, coupling, kept)
        own = own or _from_normalised(module, normalised.get(path, []), kept)
        for name, value in integers(module):
            fixed = standard(module, name, value, own)
            new = fixed if fixed is not None else _choose(value, own, evidence.get(path, {}))
            if new != value:
                edits.append(AttributeEdit(path, name, value, new))
    return (*edits, *(_of_configurations(model, evidence) if shared else ()))


def _of_configurations(model: nn.Module, evidence: Mapping[str, Evidence]) -> Iterator[AttributeEdit]:
    """Edits of what configurations say, each in the name of the first module that keeps it."""
    first: dict[tuple[int, str], tuple[str, str, int]] = {}
    nearby: dict[tuple[int, str], list[Evidence]] = defaultdict(list)
    for path, module in model.named_modules():
        for holder, name, value in kept_integers(module):
            key = (holder, name.partition(".")[2])
            first.setdefault(key, (path, name, value))
            nearby[key].append(evidence.get(path, {}))
    for key, (path, name, value) in first.items():
        votes: Evidence = defaultdict(Counter)
        for found in nearby[key]:
            votes[value].update(found.get(value, {}))
        if (new := _winner(value, votes)) != value:
            yield AttributeEdit(path, name, value, new)


def settled(trials: Trials, edits: tuple[AttributeEdit, ...]) -> tuple[AttributeEdit, ...]:
    """The edits without those of numbers that had a pruned size by chance (a window, a limit, a count).

    Such a number is read by the forward and either value gives the same output here; on other inputs the old
    one is right. A width that is only noted, which the forward does not read, follows.

    Args:
        trials: Of a pruned model that works with these edits; it is left with those that are given back.
        edits: What was edited.
    """
    alike = of_one_kind(trials.model, edits, by_value=True)
    # a configuration says much that has nothing to do with widths: in it nothing counts as noted
    own = [same for same in alike if not any("." in edit.name for edit in same)]
    unread, by_chance = trials.unread(own), set[AttributeEdit]()
    for same in alike:
        if same in unread:
            continue
        if trials.is_same_with(tuple(replace(edit, new=edit.old) for edit in same)):
            by_chance.update(same)
        else:
            set_attributes(trials.model, same)
    return tuple(edit for edit in edits if edit not in by_chance)


def integers(module: nn.Module) -> Iterator[tuple[str, int | Shape]]:
    """Attributes that are integers above 1, or tuples (or lists) with some."""
    for name, value in vars(module).items():
        if name.startswith("__") or name in _NEVER or isinstance(value, bool):
            continue
        if isinstance(value, int) and value > 1:
            yield name, value
        elif isinstance(value, tuple | list) and value and all(type(v) is int for v in value):
            yield name, tuple(value)


def _from_tensors(
    path: str, module: nn.Module, graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]
) -> Own:
    """(axis, kept positions) of each dim of each tensor the module itself holds, by local name; {} if none
    changes.
    """
    own: Own = {}
    held = {name: name for name in (*module._parameters, *module._buffers)} | dict(_parametrized(module))
    for local, name in held.items():
        full = f"{path}.{name}" if path else name
        axes = coupling.tensors.get(graph.aliases.get(full, full))
        if axes:
            own[local] = tuple((axis, positions(axis, kept)) for axis in axes)
    changed = any(axis.size != len(new) for row in own.values() for axis, new in row)
    return own if changed else {}


def _from_normalised(
    module: nn.Module, values: Sequence[tuple[Axis, ...]], kept: Mapping[int, Positions]
) -> Own:
    """What stands for the weight of a norm that has no tensors: the dims of its values that it would cover.

    {} where no such dim changes, or its calls would need several sizes.
    """
    found = [normalised_dims(module, axes) for axes in values]
    rows = [tuple((axis, positions(axis, kept)) for axis in axes) for axes in found]
    sizes = {tuple(len(new) for _, new in row) for row in rows}
    if len(sizes) != 1 or all(axis.size == len(new) for axis, new in rows[0]):
        return {}
    return {"weight": rows[0]}


def _parametrized(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Tensors computed from others (weight norm, spectral norm), and which of these has their shape."""
    for name, made in getattr(module, "parametrizations", {}).items():
        source = "original" if hasattr(made, "original") else "original1"  # of weight norm the direction
        yield name, f"parametrizations.{name}.{source}"


def _from_values(
    graph: Graph, coupling: Coupling, kept: Mapping[int, Positions], *, given: bool
) -> dict[str, Evidence]:
    """Sizes that values made inside each module's own forward, or given to it, had and get."""
    found: dict[str, Evidence] = defaultdict(lambda: defaultdict(Counter))
    for path, axis, how in made_axes(graph, coupling):
        weight = _WEIGHT_OTHER if how is How.OTHER else _WEIGHT_SHAPE_OP
        found[path][axis.size][count(axis, kept)] += weight
    for path, axis, at in padded(graph, coupling):
        found[path][len(at)][int(np.isin(at, positions(axis, kept)).sum())] += _WEIGHT_SHAPE_OP
    for path, axis in given_axes(graph, coupling) if given else ():
        found[path][axis.size][count(axis, kept)] += _WEIGHT_OTHER
    for path, axis in split_axes(graph, coupling) if given else ():
        found[path][axis.size][count(axis, kept)] += _WEIGHT_SHAPE_OP
    return found


def _choose(value: int | Shape, own: Own, nearby: Evidence) -> int | Shape:
    """The new value with most evidence; for a tuple entry by entry."""
    votes: Evidence = defaultdict(Counter)
    for old, counter in nearby.items():
        votes[old].update(counter)
    for row in own.values():
        for axis, new in row:
            votes[axis.size][len(new)] += _WEIGHT_OWN_TENSOR
    if isinstance(value, tuple):
        return tuple(_winner(v, votes) for v in value)
    return _winner(value, votes)


def _winner(value: int, votes: Evidence) -> int:
    changed = {new: n for new, n in votes.get(value, {}).items() if new != value}
    if not changed:
        return value
    best = max(changed, key=lambda new: changed[new])
    # an attribute that some shape op uses unchanged and none changed is left alone
    unchanged = votes[value].get(value, 0)
    return best if changed[best] >= unchanged or changed[best] >= _WEIGHT_SHAPE_OP else value
