"""Numbers of the user's modules that would need several values at once, and how to prune without that.

Many attentions write one head size into the shapes of queries, keys and values. Nothing couples the values to
the queries, so they may lose differently many; then no value of that number fits, and the class cannot
serve. Others give what their heads hold together the shape of what they were given (``B, N, C = x.shape``); a
width of one dimension then becomes what the heads keep. A shortcut that is padded to its stage's width writes
one amount before and after.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from torch import nn

from penjing.graph import Axis, Coupling, Graph, Group, count, positions
from penjing.graph.axes import Index, Leaf, Product, leaves, slot_index
from penjing.prune.follow import integers
from penjing.prune.layers import standard
from penjing.prune.made import How, given_axes, made_axes, padded
from penjing.prune.ranges import Positions

_Shaped = dict[tuple[str, int], dict[int, set[int]]]
"""Groups behind a size that a module had, by module and size, and by the size it would get."""


@dataclass(frozen=True)
class Torn:
    """A number that a module writes into several shapes, which would get different sizes.

    Attributes:
        name: The attribute, ``"module.name"``, or what the module is given.
        value: What it is.
        sizes: What it would have to be, rising.
        leaves: Leaf ids of the groups behind these shapes.
        single: Those of them that are such a shape by themselves.
        products: Shapes that are several dimensions as one (heads and their sizes), by these.
    """

    name: str
    value: int
    sizes: tuple[int, ...]
    leaves: frozenset[int]
    single: frozenset[int] = frozenset()
    products: frozenset[tuple[Leaf, ...]] = frozenset()


def torn(
    model: nn.Module, graph: Graph, coupling: Coupling, kept: Mapping[int, Positions]
) -> tuple[Torn, ...]:
    """The attributes, and the widths of what modules are given, that no single value fits.

    Args:
        model: The original model.
        graph: Its traced graph.
        coupling: Its axes.
        kept: Kept slots by leaf id.
    """
    groups = {group.leaf for group in coupling.groups}
    shaped: _Shaped = defaultdict(lambda: defaultdict(set))
    by_number: _Shaped = defaultdict(lambda: defaultdict(set))
    made_of: dict[tuple[str, int], set[tuple[Leaf, ...]]] = defaultdict(set)
    for path, axis, how in made_axes(graph, coupling):
        behind = _behind(axis, groups)
        if behind and how is not How.OTHER:
            shaped[path, axis.size][count(axis, kept)] |= behind
            made_of[path, axis.size].add(_factors(axis))
            if how is How.SHAPED:  # a convolution may make another width than it reads
                by_number[path, axis.size][count(axis, kept)] |= behind
    for path, axis, at in padded(graph, coupling):
        behind = _behind(axis, groups, at)
        if behind:
            shaped[path, len(at)][int(np.isin(at, positions(axis, kept)).sum())] |= behind
    numbers = [
        (f"{path}.{name}" if path else name, path, value, shaped.get((path, value), {}))
        for path, module in model.named_modules()
        for name, value in integers(module)
        if not isinstance(value, tuple) and standard(module, name, value, {}) is None
    ]
    given: _Shaped = {}
    for path, axis in given_axes(graph, coupling):
        behind, key = _behind(axis, groups), (path, axis.size)
        if behind and key in by_number:  # it is written into shapes, too
            by_size = given.setdefault(key, {size: set(ids) for size, ids in by_number[key].items()})
            by_size.setdefault(count(axis, kept), set()).update(behind)
            made_of[key].add(_factors(axis))
    numbers += [
        (f"the width that {path or 'the network'} is given", path, value, by_size)
        for (path, value), by_size in given.items()
    ]
    return tuple(
        Torn(
            name,
            value,
            tuple(sorted(by_size)),
            frozenset().union(*by_size.values()),
            frozenset(axes[0].id for axes in made_of[path, value] if len(axes) == 1) & groups,
            frozenset(axes for axes in made_of[path, value] if len(axes) > 1),
        )
        for name, path, value, by_size in numbers
        if len(by_size) > 1
    )


def _factors(axis: Axis) -> tuple[Leaf, ...]:
    """The dimensions that an axis is, or the product of; empty where it is anything else."""
    factors = axis.factors if isinstance(axis, Product) else (axis,)
    plain = tuple(factor for factor in factors if isinstance(factor, Leaf))
    return plain if len(plain) == len(factors) else ()


def _behind(axis: Axis, groups: Set[int], at: Index | None = None) -> set[int]:
    """Leaf ids of the groups that an axis, or these positions of it, are made of."""
    found = {leaf.id: leaf for leaf in leaves(axis) if leaf.id in groups}
    if at is None:
        return set(found)
    return {key for key, leaf in found.items() if np.isin(at, slot_index(axis, leaf)).any()}


def blame(found: tuple[Torn, ...]) -> str:
    """What is said of them after the reason why the class does not serve; "" if there are none."""
    if not found:
        return ""
    first = found[0]
    more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
    sizes = " and ".join(map(str, first.sizes))
    return f"; {first.name}, {first.value}, would have to be {sizes} at once{more}"


def head_sizes(groups: Sequence[Group]) -> set[str]:
    """Ids of the groups that are the size of heads whose number may be pruned instead."""
    return {group.id for group in groups if group.kind == "head_dim" and group.cofactors}


def even_ratios(
    found: tuple[Torn, ...],
    groups: Sequence[Group],
    kept: Mapping[int, Positions],
    *,
    settled: Mapping[str, float],
    round_to: int,
    min_slots: int,
) -> dict[str, float]:
    """Ratios with which the groups behind each number keep the same share of it, near the mean of now.

    Args:
        found: The numbers.
        groups: All groups that may change.
        kept: Slots kept now, by leaf id.
        settled: Ratios by group id that stay as they are: what else is behind the number takes the same.
        round_to: Kept counts are multiples of this.
        min_slots: Slots that stay in any group.

    Returns:
        Fraction to remove by id of the other groups, exact in slots; nothing where an even share would be all
        or none.
    """
    by_leaf = {group.leaf: group for group in groups}
    limits = {"round_to": round_to, "min_slots": min_slots}
    # the shares of heads and of their sizes multiply: no share is even where a single width is to be as many
    heads = tuple(one for one in found if one.products and one.single)
    plain = tuple(one for one in found if one not in heads)
    even = _evened(plain, by_leaf, kept, settled, **limits)
    if heads:
        matched = _as_products(heads, by_leaf, kept, even | dict(settled), **limits)
        if any(settled.get(name, ratio) != ratio for name, ratio in matched.items()):
            matched = {}
        # what else has the size of such a width keeps as much as it does, which the heads say
        even = _evened(plain, by_leaf, kept, matched | dict(settled), **limits) | matched
        if not matched or matched != _as_products(heads, by_leaf, kept, even | dict(settled), **limits):
            even = _evened(found, by_leaf, kept, settled, **limits)
    return {name: ratio for name, ratio in even.items() if name not in settled}


def _evened(
    found: Sequence[Torn],
    groups: Mapping[int, Group],
    kept: Mapping[int, Positions],
    settled: Mapping[str, float],
    *,
    round_to: int,
    min_slots: int,
) -> dict[str, float]:
    """Ratios with which all groups behind each number keep one share: that of a ``settled`` one, if any."""
    sets: list[frozenset[int]] = []
    for one in found:  # numbers that share a group (one rotary embedding for all layers) go together
        joined = one.leaves.union(*(other for other in sets if other & one.leaves))
        sets = [other for other in sets if not other & one.leaves] + [joined]
    ratios: dict[str, float] = {}
    for behind in sets:
        tied = [groups[leaf] for leaf in sorted(behind & groups.keys())]
        if not tied:
            continue
        given = {settled[group.id] for group in tied if group.id in settled}
        sizes = [group.size for group in tied]
        parts = math.gcd(*sizes)  # shares that are whole slots everywhere
        whole = [(math.lcm(round_to, group.step), group.size // parts) for group in tied]
        step = math.lcm(*(multiple // math.gcd(multiple, slots) for multiple, slots in whole))
        shares = [len(kept[group.leaf]) / group.size if group.leaf in kept else 1.0 for group in tied]
        share = max(sum(shares) / len(shares), min_slots / min(sizes))
        stay = step * math.ceil(share * parts / step - 1e-9)
        if stay >= parts and share < 1:  # the share below, where there is one
            stay = step * ((parts - 1) // step)
        if given:
            exact = (1 - min(given)) * parts
            stay = round(exact)
            multiplied = any(one.products and one.leaves & behind for one in found)
            if multiplied or len(given) > 1 or abs(exact - stay) > 1e-6 or (stay < parts and stay % step):
                continue  # no share is all of these, or it is no whole slots everywhere
        if stay * min(sizes) >= min_slots * parts and stay:
            ratios |= {group.id: 1 - min(stay, parts) / parts for group in tied}
    return ratios


def _as_products(
    found: Sequence[Torn],
    groups: Mapping[int, Group],
    kept: Mapping[int, Positions],
    ratios: Mapping[str, float],
    *,
    round_to: int,
    min_slots: int,
) -> dict[str, float]:
    """Ratios with which single widths keep what heads and their sizes keep together (with ``ratios``); empty
    where a width would have to be two numbers at once (layers that keep differently many heads), or cannot.
    """

    def stays(axis: Leaf) -> int:
        group = groups.get(axis.id)
        if group and group.id in ratios:
            return round(axis.size * (1 - ratios[group.id]))
        return len(kept[axis.id]) if axis.id in kept else axis.size

    matched: dict[str, float] = {}
    for one in found:
        wanted = {math.prod(map(stays, axes)) for axes in one.products}
        if len(wanted) != 1 or not one.single <= groups.keys():
            return {}
        (stay,) = wanted
        for group in (groups[leaf] for leaf in one.single):
            share = 1 - stay / group.size
            if stay < min_slots or stay % math.lcm(round_to, group.step):
                return {}
            if matched.setdefault(group.id, share) != share:
                return {}
    return matched
